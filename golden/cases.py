"""Which models the golden files hold: their configurations, and a table of what each must exercise.

A configuration is the content of config.json, in the hub's spelling (`rope_theta`, `rope_scaling`,
`torch_dtype`) or in transformers 5's own (`rope_parameters`, `dtype`), which then writes the file.
"""

from dataclasses import dataclass, field

import torch

import reference
import storage

DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"],
    "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "kv_lora_rank": 16,
    "intermediate_size": 48, "moe_intermediate_size": 24, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256, "num_nextn_predict_layers": 0, "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 1,
    # What transformers does not use but other readers of a DeepSeek folder ask for.
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1,
}  # fmt: skip
TRANSFORMERS_SPELLING = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "dtype": "float32",
}  # fmt: skip
# What stands in DeepSeek's own config.json beside the fields above.
DEEPSEEK_SPELLING = {
    "attention_bias": False, "attention_dropout": 0.0, "ep_size": 1, "hidden_act": "silu",
    "initializer_range": 0.02, "rope_scaling": None, "rope_theta": 10000.0,
    "torch_dtype": "float32", "use_cache": True,
}  # fmt: skip


def yarn(factor, original, mscale, mscale_all_dim, beta_fast=32):
    return {
        "type": "yarn", "factor": factor, "original_max_position_embeddings": original,
        "beta_fast": beta_fast, "beta_slow": 1, "mscale": mscale, "mscale_all_dim": mscale_all_dim,
    }  # fmt: skip


V3_ON_THE_HUB = DEEPSEEK_V3 | DEEPSEEK_SPELLING
# Small bases make the YaRN ramp have an inside: some frequency is neither kept nor divided.
V3_GROUPS_YARN = V3_ON_THE_HUB | {
    "num_hidden_layers": 2, "q_lora_rank": 12, "qk_rope_head_dim": 8, "n_routed_experts": 16,
    "moe_intermediate_size": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
    "max_position_embeddings": 64, "rope_theta": 30.0, "rope_scaling": yarn(4, 16, 1.0, 1.0),
}  # fmt: skip
V3_MTP = V3_ON_THE_HUB | {
    "num_hidden_layers": 2, "q_lora_rank": 12, "moe_intermediate_size": 8,
    "num_nextn_predict_layers": 1,
}  # fmt: skip
FP8 = {
    "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
    "weight_block_size": [128, 128],
}  # fmt: skip
# kv_b_proj has 200 rows, o_proj is [144, 132]: blocks of 128 leave a rest on either side.
V3_FP8 = V3_ON_THE_HUB | {
    "num_hidden_layers": 2, "q_lora_rank": 20, "hidden_size": 144, "qk_nope_head_dim": 17,
    "qk_rope_head_dim": 8, "v_head_dim": 33, "kv_lora_rank": 24, "intermediate_size": 16,
    "moe_intermediate_size": 8, "n_routed_experts": 4, "torch_dtype": "bfloat16",
    "quantization_config": FP8,
}  # fmt: skip
DEEPSEEK_V2 = V3_ON_THE_HUB | {
    "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"],
    "scoring_func": "softmax", "norm_topk_prob": False, "n_shared_experts": 2,
    "aux_loss_alpha": 0.001, "seq_aux": True, "pretraining_tp": 1, "bos_token_id": 62,
    "eos_token_id": 63, "num_hidden_layers": 2, "moe_intermediate_size": 12, "vocab_size": 72,
    "max_position_embeddings": 64,
}  # fmt: skip
del DEEPSEEK_V2["num_nextn_predict_layers"]
V2_LITE = DEEPSEEK_V2 | {
    "q_lora_rank": None, "topk_method": "greedy", "routed_scaling_factor": 1.0,
    "num_experts_per_tok": 2, "qk_rope_head_dim": 8, "rope_theta": 30.0,
    "rope_scaling": yarn(4, 16, 0.707, 0.707),
}  # fmt: skip
# mscale differs from mscale_all_dim in no release, so that its use is seen only here.
V2_GROUPS = DEEPSEEK_V2 | {
    "q_lora_rank": 12, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
    "n_routed_experts": 16, "num_experts_per_tok": 3, "routed_scaling_factor": 16.0,
    "moe_intermediate_size": 8, "qk_rope_head_dim": 16, "rope_theta": 100.0, "rms_norm_eps": 1e-2,
    "max_position_embeddings": 128, "rope_scaling": yarn(4, 32, 1.0, 0.707, beta_fast=2),
}  # fmt: skip
DENSE = {
    "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "use_cache": True,
    "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": 80,
    "max_position_embeddings": 256, "torch_dtype": "float32", "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
WINDOW_OFF = {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 1}
QWEN2 = DENSE | WINDOW_OFF | {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN2_UNTIED = QWEN2 | {
    "tie_word_embeddings": False, "rope_theta": 1000000.0, "torch_dtype": "float32",
}  # fmt: skip
QWEN3 = DENSE | WINDOW_OFF | {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": False,
    "head_dim": 16, "attention_bias": False, "rope_scaling": None, "rope_theta": 1000000.0,
}  # fmt: skip
# As in DeepSeek-R1-0528-Qwen3-8B.
QWEN3_YARN = QWEN3 | {
    "max_position_embeddings": 128, "rope_theta": 100.0, "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
        "attn_factor": 0.8782488562869419,
    },
}  # fmt: skip
QWEN3_MOE = QWEN3 | {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 3,
    "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True, "mlp_only_layers": [1],
    "decoder_sparse_step": 1, "moe_intermediate_size": 8, "router_aux_loss_coef": 0.001,
    "output_router_logits": False,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LLAMA = DENSE | {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True,
    "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16,
    "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "rms_norm_eps": 1e-2,
    "rope_theta": 500000.0, "max_position_embeddings": 512, "rope_scaling": LLAMA3_ROPE,
    "vocab_size": 96,
}  # fmt: skip
LLAMA_NATIVE = {k: v for k, v in LLAMA.items() if not k.startswith(("rope", "torch"))} | {
    "rope_parameters": LLAMA3_ROPE | {"rope_theta": 500000.0}, "dtype": "float32",
}  # fmt: skip


@dataclass
class Case:
    """One folder. `seed` was searched where an assertion of make.py needs a lucky draw."""

    seed: int
    config: dict
    lengths: list = field(default_factory=lambda: [13, 7, 20])
    bias_mean: float = 0.0  # of e_score_correction_bias
    storage: str = "f32"  # or "bf16-shards", "fp8" (F32 scales), "fp8-ue8m0" (F8_E8M0 scales)
    bf16: bool = True  # write the runs with operands rounded to bf16
    ten_steps: bool = False  # write ten AdamW steps
    balance: bool = False  # write the balance loss

    @property
    def native(self):
        """Does transformers write config.json, in its own spelling?"""
        return "rope_parameters" in self.config


V3_NATIVE = DEEPSEEK_V3 | TRANSFORMERS_SPELLING
# Most seeds were searched for one property: no expert choice so near a tie that bf16 rounding
# changes it, so that the bf16 logits measure rounding and not routing.
CASES = {
    "deepseek_v3_q_lora": Case(
        38, V3_NATIVE | {"num_hidden_layers": 3, "q_lora_rank": 12, "rope_interleave": True},
        ten_steps=True, balance=True,
    ),
    "deepseek_v3_no_q_lora": Case(
        11, V3_NATIVE | {"num_hidden_layers": 2, "q_lora_rank": None, "rope_interleave": True},
        ten_steps=True,
    ),
    "deepseek_v3_half_split": Case(
        27, V3_NATIVE | {"num_hidden_layers": 2, "q_lora_rank": 12, "rope_interleave": False},
        ten_steps=True,
    ),
    "v3-groups-yarn": Case(27, V3_GROUPS_YARN, [40, 13, 1], bias_mean=-0.7, bf16=False),
    "v3-mtp": Case(15, V3_MTP, [21, 2, 9], bf16=False),
    "v3-fp8": Case(2, V3_FP8, [17, 9], storage="fp8", bf16=False),
    "v3-fp8-ue8m0": Case(
        1, V3_FP8 | {"quantization_config": FP8 | {"scale_fmt": "ue8m0"}}, [17, 9],
        storage="fp8-ue8m0", bf16=False,
    ),
    "v2-lite": Case(1, V2_LITE, [26, 7, 1]),
    "v2-groups": Case(1, V2_GROUPS, [40, 9, 2], bf16=False),
    "qwen2": Case(1, QWEN2, [25, 1, 8], storage="bf16-shards"),
    "qwen2-untied": Case(1, QWEN2_UNTIED, [30, 5]),
    "qwen3": Case(1, QWEN3, [22, 11]),
    "qwen3-yarn": Case(1, QWEN3_YARN, [40, 6]),
    "qwen3-moe": Case(15, QWEN3_MOE, [18, 9]),
    "llama": Case(1, LLAMA, [40, 3]),
    "llama-rope-parameters": Case(1, LLAMA_NATIVE, [40, 3]),
}  # fmt: skip


# The same weights; only config.json differs.
TWO_SPELLINGS = ("llama", "llama-rope-parameters")


def no_yarn(cfg, params):
    return cfg | {"rope_scaling": None}, params


def rope_with(**changes):
    return lambda cfg, params: (cfg | {"rope_scaling": cfg["rope_scaling"] | changes}, params)


def config_with(**changes):
    return lambda cfg, params: (cfg | changes, params)


def without(*endings):
    """The model as a reader sees it that overlooks these tensors."""
    return lambda cfg, params: (cfg, {n: t for n, t in params.items() if not n.endswith(endings)})


# For each case the mistakes that a reader could make and must not make unseen: make.py asserts that
# each moves some logit by more than a hundredth of the logits' spread, and facts.json says how far.
YARN_MISTAKES = {
    "no_yarn": no_yarn,
    "no_softmax_mscale": rope_with(mscale=0.0, mscale_all_dim=0.0),
    "half_split_rope": config_with(rope_interleave=False),
}
QWEN3_MISTAKES = {
    "no_qk_norm": without("q_norm.weight", "k_norm.weight"),
    "rope_theta_10000": config_with(rope_theta=10000.0),
}
LLAMA_MISTAKES = {
    "rope_scaling_ignored": config_with(rope_scaling=None),
    "every_frequency_divided": rope_with(low_freq_factor=1e9, high_freq_factor=2e9),
    "no_band_between": rope_with(low_freq_factor=3.99),
    "rms_norm_eps_1e-6": config_with(rms_norm_eps=1e-6),
}
MISTAKES = {
    "v3-groups-yarn": YARN_MISTAKES | {
        "no_groups": config_with(n_group=1),
        "masked_with_zero": config_with(masked_with=0.0),
        "group_score_is_max": config_with(topk_method="group_limited_greedy"),
        "no_bias": without("e_score_correction_bias"),
    },
    "v2-lite": YARN_MISTAKES | {
        "normalised": config_with(model_type="", norm_topk_prob=True),
        "sigmoid": config_with(scoring_func="sigmoid"),
    },
    "v2-groups": YARN_MISTAKES | {
        "no_cos_sin_mscale": rope_with(mscale=0.707),
        "no_groups": config_with(n_group=1),
        "group_score_is_sum_of_two": config_with(topk_method="noaux_tc"),
        "not_scaled": config_with(routed_scaling_factor=1.0),
        "latent_norms_with_rms_norm_eps": config_with(latent_norm_eps=1e-2),
        "betas_by_default": rope_with(beta_fast=32),
    },
    "qwen2": {"no_bias": without("_proj.bias")},
    "qwen2-untied": {
        "no_bias": without("_proj.bias"), "tied": config_with(tie_word_embeddings=True),
        "rope_theta_10000": config_with(rope_theta=10000.0),
    },
    "qwen3": QWEN3_MISTAKES,
    "qwen3-yarn": {"no_yarn": no_yarn, "attn_factor_ignored": rope_with(attn_factor=1.0)},
    "qwen3-moe": QWEN3_MISTAKES | {"not_normalised": config_with(norm_topk_prob=False)},
    "llama": LLAMA_MISTAKES,
}  # fmt: skip


def parameter_shapes(cfg):
    """Every tensor that is drawn, under Hugging Face's names, in a fixed order."""
    hidden = cfg["hidden_size"]
    main = cfg["num_hidden_layers"]
    shapes = {"model.embed_tokens.weight": (cfg["vocab_size"], hidden)}
    for layer in range(main + cfg.get("num_nextn_predict_layers", 0)):
        at = f"model.layers.{layer}."
        if layer >= main:
            shapes[at + "enorm.weight"] = shapes[at + "hnorm.weight"] = (hidden,)
            shapes[at + "eh_proj.weight"] = (hidden, 2 * hidden)
            shapes[at + "shared_head.norm.weight"] = (hidden,)
        of_attention = mla_shapes(cfg) if "kv_lora_rank" in cfg else gqa_shapes(cfg)
        shapes |= {f"{at}self_attn.{name}": shape for name, shape in of_attention.items()}
        shapes[at + "input_layernorm.weight"] = (hidden,)
        shapes[at + "post_attention_layernorm.weight"] = (hidden,)
        shapes |= {at + name: shape for name, shape in feed_forward_shapes(cfg, layer).items()}
    shapes["model.norm.weight"] = (hidden,)
    if not cfg["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (cfg["vocab_size"], hidden)
    return shapes


def mla_shapes(cfg):
    hidden, heads, rank = cfg["hidden_size"], cfg["num_attention_heads"], cfg["kv_lora_rank"]
    nope, rot, v_dim = cfg["qk_nope_head_dim"], cfg["qk_rope_head_dim"], cfg["v_head_dim"]
    q_out = heads * (nope + rot)
    if cfg["q_lora_rank"] is None:
        shapes = {"q_proj.weight": (q_out, hidden)}
    else:
        shapes = {
            "q_a_proj.weight": (cfg["q_lora_rank"], hidden),
            "q_a_layernorm.weight": (cfg["q_lora_rank"],),
            "q_b_proj.weight": (q_out, cfg["q_lora_rank"]),
        }
    return shapes | {
        "kv_a_proj_with_mqa.weight": (rank + rot, hidden), "kv_a_layernorm.weight": (rank,),
        "kv_b_proj.weight": (heads * (nope + v_dim), rank),
        "o_proj.weight": (hidden, heads * v_dim),
    }  # fmt: skip


def gqa_shapes(cfg):
    hidden, heads = cfg["hidden_size"], cfg["num_attention_heads"]
    dim = cfg.get("head_dim") or hidden // heads
    rows = {"q": heads * dim, "k": cfg["num_key_value_heads"] * dim}
    rows["v"] = rows["k"]
    shapes = {f"{name}_proj.weight": (n, hidden) for name, n in rows.items()}
    if cfg["model_type"] == "qwen2":
        shapes |= {f"{name}_proj.bias": (n,) for name, n in rows.items()}
    if cfg["model_type"].startswith("qwen3"):
        shapes |= {"q_norm.weight": (dim,), "k_norm.weight": (dim,)}
    return shapes | {"o_proj.weight": (hidden, heads * dim)}


def feed_forward_shapes(cfg, layer):
    hidden, inner = cfg["hidden_size"], cfg["intermediate_size"]
    prefixes, of_router = [("mlp.", inner)], {}
    if reference.is_moe(cfg, layer):
        inner = cfg["moe_intermediate_size"]
        experts = cfg.get("n_routed_experts") or cfg["num_experts"]
        prefixes = [(f"mlp.experts.{e}.", inner) for e in range(experts)]
        if cfg.get("n_shared_experts"):
            prefixes.append(("mlp.shared_experts.", inner * cfg["n_shared_experts"]))
        of_router = {"mlp.gate.weight": (experts, hidden)}
        if cfg.get("topk_method") == "noaux_tc":
            of_router["mlp.gate.e_score_correction_bias"] = (experts,)
    shapes = {}
    for prefix, width in prefixes:
        shapes[prefix + "gate_proj.weight"] = (width, hidden)
        shapes[prefix + "up_proj.weight"] = (width, hidden)
        shapes[prefix + "down_proj.weight"] = (hidden, width)
    return shapes | of_router


def random_weights(case):
    """f32 weights large enough that attention, routing and logits are far from uniform."""
    cfg, rng = case.config, torch.Generator().manual_seed(case.seed)
    # The scales below are for a width of 32; wider sums are drawn smaller, to come out as large.
    scale = (32 / cfg["hidden_size"]) ** 0.5
    weights = {}
    for name, shape in parameter_shapes(cfg).items():
        noise = torch.randn(shape, generator=rng)
        if name.endswith("e_score_correction_bias"):
            weights[name] = case.bias_mean + 0.2 * noise
        elif name.endswith("norm.weight"):
            weights[name] = 1.0 + 0.2 * noise
        elif name.endswith("embed_tokens.weight"):
            weights[name] = 0.5 * noise
        elif "experts" in name or ".mlp." in name and "gate.weight" not in name:
            weights[name] = 0.15 * scale * noise
        else:
            weights[name] = 0.3 * scale * noise
    if case.storage.startswith("fp8"):
        weights = {n: storage.uneven(w) if storage.is_fp8(n, w) else w for n, w in weights.items()}
    documents = [
        torch.randint(0, cfg["vocab_size"], (length,), generator=rng) for length in case.lengths
    ]
    return weights, documents


def is_trained(name):
    return not name.endswith("e_score_correction_bias")
