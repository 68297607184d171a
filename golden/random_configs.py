"""Random small models of every family, by transformers and by ours: do they say the same?

    python golden/random_configs.py BINARY [--seed 0] [--models 200]

BINARY is a built `bruchteil`. Each model is drawn from its seed alone: sizes, heads, experts and
groups, RoPE and its scaling, biases, tied heads, type and number of weight files, and how
config.json is spelled (as transformers 5 writes it, as the original files do, or with fields left
out). Its logits by `bruchteil score --precision f32` must be within 1e-4 of transformers' spread.
A configuration may also be refused by name on either side; those are counted and printed. The exit
code is 1 if any logit differs. Run by hand: it takes about a second a model.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

TOLERANCE = 1e-4
FAMILIES = ["deepseek_v2", "deepseek_v3", "qwen2", "qwen3", "qwen3_moe", "llama"]


def rope_scaling(draw, family):
    kind = draw.choice(["none", "default", "linear", "yarn", "yarn", "llama3"])
    if kind == "none":
        return None
    scaling = {"rope_type": kind}
    if kind != "default":
        scaling["factor"] = draw.choice([2.0, 4.0, 8.0, 40.0])
    if kind == "yarn":
        if draw.random() < 0.8:
            scaling["original_max_position_embeddings"] = draw.choice([16, 64, 4096])
        if draw.random() < 0.5:
            scaling |= {"beta_fast": draw.choice([16, 32]), "beta_slow": draw.choice([1, 2])}
        both = draw.choice([None, (0.707, 0.707), (1.0, 1.0), (1.0, 0.5)])
        if both:
            scaling["mscale"], scaling["mscale_all_dim"] = both
        if draw.random() < 0.2:
            scaling["truncate"] = draw.choice([False, True])
        if draw.random() < 0.2 and not family.startswith("deepseek"):
            scaling["attention_factor"] = draw.choice([1.0, 1.3])
    if kind == "llama3":
        scaling |= {
            "low_freq_factor": draw.choice([1.0, 2.0]),
            "high_freq_factor": draw.choice([4.0, 8.0]),
            "original_max_position_embeddings": draw.choice([32, 128]),
        }
    return scaling


def deepseek_fields(draw, family, heads):
    groups, per_group = draw.choice([1, 2, 4]), draw.choice([2, 3, 4])
    kept = draw.randint(1, groups)
    fields = {
        "q_lora_rank": draw.choice([None, 12, 24]), "kv_lora_rank": draw.choice([8, 16, 20]),
        "qk_nope_head_dim": draw.choice([4, 5, 8]), "qk_rope_head_dim": draw.choice([2, 4, 8, 16]),
        "v_head_dim": draw.choice([4, 8, 12]), "num_key_value_heads": heads,
        "first_k_dense_replace": draw.choice([0, 1, 2]), "n_shared_experts": draw.choice([1, 2]),
        "moe_intermediate_size": draw.choice([8, 13, 16]), "n_group": groups, "topk_group": kept,
        "routed_scaling_factor": draw.choice([1.0, 2.5, 16.0]),
        "n_routed_experts": groups * per_group,
        "num_experts_per_tok": draw.randint(1, kept * per_group),
    }  # fmt: skip
    if family == "deepseek_v3":
        return fields | {
            "norm_topk_prob": draw.choice([True, False]),
            "rope_interleave": draw.choice([True, True, False]),
            "num_nextn_predict_layers": draw.choice([0, 1]),
        }
    method = draw.choice(["greedy", "group_limited_greedy"])
    return fields | {"topk_method": method, "norm_topk_prob": False}


def grouped_fields(draw, family, heads):
    divisors = [n for n in range(1, heads + 1) if heads % n == 0]
    fields = {"num_key_value_heads": draw.choice(divisors)}
    if family != "qwen2":
        fields["attention_bias"] = draw.choice([True, False])
        fields["head_dim"] = draw.choice([8, 10, 16])
    if family.startswith("qwen"):
        fields |= {"use_sliding_window": False, "sliding_window": draw.choice([None, 8])}
    if family == "qwen3_moe":
        experts = draw.choice([2, 4, 6])
        fields |= {
            "num_experts": experts, "num_experts_per_tok": draw.randint(1, experts),
            "moe_intermediate_size": draw.choice([8, 13]),
            "norm_topk_prob": draw.choice([True, False]),
            "decoder_sparse_step": draw.choice([1, 1, 2, 3]),
            "mlp_only_layers": draw.choice([[], [0], [1]]),
        }  # fmt: skip
    return fields


def random_config(draw, family):
    heads = draw.choice([1, 2, 4, 6])
    config = {
        "vocab_size": draw.choice([50, 97, 256]), "hidden_size": heads * draw.choice([8, 16, 20]),
        "intermediate_size": draw.choice([24, 33, 40]), "num_attention_heads": heads,
        "num_hidden_layers": draw.choice([1, 2, 3]), "rms_norm_eps": draw.choice([1e-6, 1e-3]),
        "max_position_embeddings": draw.choice([64, 128, 4096]),
        "tie_word_embeddings": draw.choice([True, False]),
        "rope_theta": draw.choice([10000.0, 50000.0, 500000.0, 1e6]),
    }  # fmt: skip
    own = deepseek_fields if family.startswith("deepseek") else grouped_fields
    config |= own(draw, family, heads)
    scaling = rope_scaling(draw, family)
    return config | ({"rope_scaling": scaling} if scaling else {})


@torch.no_grad()
def draw_weights(model):
    biases = [(n, b) for n, b in model.named_buffers() if "e_score" in n]
    for name, values in [*model.named_parameters(), *biases]:
        noise = torch.randn_like(values)
        if name.endswith("norm.weight"):
            values.copy_(1 + 0.2 * noise)
        else:
            size = 1.5 / values.shape[-1] ** 0.5 if values.ndim > 1 else 0.3
            values.copy_(size * noise)


def respell(draw, folder, family, config):
    """config.json in one of three spellings."""
    path = folder / "config.json"
    written = json.loads(path.read_text())
    style = draw.choice(["transformers 5", "original", "fields left out"])
    if style == "original":
        spelled = {**config, "model_type": family, "torch_dtype": written.get("dtype")}
        if "rope_scaling" in config and draw.random() < 0.5:
            scaling = dict(config["rope_scaling"])
            spelled["rope_scaling"] = {"type": scaling.pop("rope_type"), **scaling}
        written = spelled
    if style == "fields left out":
        keep = [key for key in written if key == "model_type" or draw.random() > 0.12]
        written = {key: written[key] for key in keep}
    path.write_text(json.dumps(written))
    return style


def make_model(draw, folder, family, config):
    loaded = AutoConfig.for_model(family, **json.loads(json.dumps(config)))
    model = AutoModelForCausalLM.from_config(loaded, dtype=torch.float32)
    draw_weights(model)
    model.to(draw.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    model.save_pretrained(folder, max_shard_size=draw.choice(["5GB", "20KB"]))


def peer_logits(folder, rows):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager",
        output_loading_info=True,
    )  # fmt: skip
    # What it does not find, it draws at random.
    assert not info["missing_keys"], f"not found: {sorted(info['missing_keys'])[:3]}"
    model.eval()
    with torch.no_grad():
        return [model(torch.tensor([row])).logits[0] for row in rows]


def our_logits(binary, folder, rows, how):
    lines = [json.dumps({"token_ids": row}) + "\n" for row in rows]
    (folder / "rows.jsonl").write_text("".join(lines))
    ran = subprocess.run(
        [binary, "score", folder, "--input", folder / "rows.jsonl", "--precision", "f32",
         "--logits", folder / "logits.safetensors", "--output", folder / "scores.jsonl", *how],
        capture_output=True, text=True,
    )  # fmt: skip
    if ran.returncode != 0:
        return None, " ".join(ran.stderr.split())[:200]
    logits = load_file(folder / "logits.safetensors")
    return [logits[f"logits.{n}"] for n in range(len(rows))], ""


def one_model(binary, seed):
    """(what came of it, the family, a remark)"""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    family = draw.choice(FAMILIES)
    config = random_config(draw, family)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            make_model(draw, folder, family, config)
            style = respell(draw, folder, family, config)
            vocab = json.loads((folder / "config.json").read_text()).get("vocab_size", 50)
            rows = [[draw.randrange(vocab) for _ in range(n)] for n in (1, 7, 40)]
            theirs = peer_logits(folder, rows)
        except Exception as error:  # transformers refuses in as many ways as it has lines
            return "refused by transformers", family, repr(error)[:100]
        how = ["--load", draw.choice(["read", "map"]), "--threads", "1"]
        ours, refusal = our_logits(binary, folder, rows, how)
        if ours is None:
            return "refused here", family, f"{style}: {refusal}"
        spread = float(torch.cat(theirs).std())
        worst = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) / spread
        same = worst < TOLERANCE
        return ("same" if same else "DIFFERENT"), family, f"{style}: {worst:.1e}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    found = Counter()
    for seed in range(arguments.seed, arguments.seed + arguments.models):
        outcome, family, remark = one_model(arguments.binary, seed)
        found[outcome] += 1
        if outcome != "same":
            print(f"seed {seed}: {family}: {outcome}: {remark}", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(found.items())))
    sys.exit(1 if found["DIFFERENT"] else 0)


if __name__ == "__main__":
    main()
