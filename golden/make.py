"""Writes the golden files: what PyTorch says that this project's kernels and model must reproduce.

How to run (any folder; CPU only; some ten seconds):

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install -r golden/requirements.txt
    /tmp/golden/bin/python golden/make.py            # rewrites golden/*/ and golden/SHA256SUMS
    /tmp/golden/bin/python golden/make.py --check    # makes them again elsewhere and compares

The files are seeded: with the versions of requirements.txt the same CPU gives the same bytes.
Another CPU may take another BLAS path and differ in the last bit of an f32, so `--check` compares
bytes first and, where they differ, the values (relative 1e-6 of each tensor's norm).

Two sources, and what was checked between them (every run asserts it again):
  1. transformers' DeepseekV3ForCausalLM, eager attention, float32, loaded from the written folder
     by AutoModelForCausalLM; its autograd for the gradients, torch.optim.AdamW for the steps.
  2. `deepseek.py`: the paper's formulas in float64, sharing no code with it.
  Logits and loss agree within 1e-5 of the logits' spread, every gradient within 1e-4 relative
  (norm), the ten losses within 1e-4 and the gradients' norms within 1e-3. What is written is source
  2, computed in float64 and rounded to f32 at the end: transformers cannot supply float64, because
  its RMSNorm, router, softmax and rotary angles are float32 whatever the model's dtype is.

What was read in transformers 5.23 (models/deepseek_v3/modeling_deepseek_v3.py):
  - `rope_interleave` (default true) is DeepSeek's own pairing; false is half-split. Both are here.
  - the latent norms q_a_layernorm and kv_a_layernorm have eps 1e-6 whatever `rms_norm_eps` says;
  - the router runs in f32, the bias enters the choice only, weights are normalised with + 1e-20,
    and gradients do reach the router through the weights (it is not under no_grad);
  - `e_score_correction_bias` is a buffer: no gradient, no optimizer step;
  - experts are held fused (`gate_up_proj` 3-D) but read and written under DeepSeek's names;
  - `rope_theta` is written inside `rope_parameters`; `config.deepseek.json` holds the same model
    in DeepSeek's own spelling, and transformers is asserted to read it to the same configuration.

Each folder golden/<case>/ holds
  config.json, model.safetensors   the model, f32, as Hugging Face would store it
  golden.safetensors
    input_ids.N      i32 [tokens]                three documents, each run alone (no padding)
    logits.N         f32 [tokens, vocab_size]
    hidden.L.N       f32 [tokens, hidden_size]   residual stream after layer L, all but the last
    topk_indices.L.N i32 [tokens, top_k]         experts chosen in MoE layer L, ascending
    topk_weights.L.N f32 [tokens, top_k]         their weights, times routed_scaling_factor
    loss             f32 [1]   sum of next-token cross-entropies / number of targets, over all three
    grad.<tensor>    f32       of that loss, one for every parameter
    losses           f32 [10]  before each of ten AdamW steps (see `STEP`)
    grad_norms       f32 [10]  global norm before clipping, each of those steps
    bf16_logits.N                    inputs of every linear layer rounded to bf16, expanded MLA
    bf16_f32head_logits.N            the same, lm_head exact
    bf16_absorbed_f32head_logits.N   the same, absorbed MLA: q_nope W_UK and (p c) W_UV rounded too
                     (the router, attention scores, softmax and norms are exact in all three, and
                     all sums are float64; experts chosen are asserted equal to the exact run's)
  and in one case (alpha = 0.01, mean over documents, summed over MoE layers)
    balance_loss        f32 [1]   f_i counts the experts really used (top-k with the bias)
    balance_grad.<t>    f32       its gradient alone; absent = exactly zero
    balance_loss_paper, balance_paper_grad.<t of a router>   f_i by eq. 18 as printed: no bias in it
  facts.json         what the numbers look like: margins, spread, how far bf16 is from exact
golden/grpo/grpo.json is described in `grpo.py`.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, DeepseekV3Config
from transformers.utils import logging

import deepseek
import grpo

HERE = Path(__file__).resolve().parent
LENGTHS = [13, 7, 20]
BALANCE_ALPHA = 0.01
STEP = {
    "lr": 1e-2,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
    "n": 10,
}
SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "kv_lora_rank": 16,
    "intermediate_size": 48, "moe_intermediate_size": 24, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256, "rope_theta": 10000.0,
}  # fmt: skip
# What transformers does not use but other readers of a DeepSeek folder ask for.
EXTRA = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
# The seeds were searched for one property, asserted below: no expert choice so near a tie that bf16
# rounding changes it, so that the bf16 logits measure rounding and not routing.
CASES = {
    "deepseek_v3_q_lora": {
        "seed": 38, "num_hidden_layers": 3, "q_lora_rank": 12, "rope_interleave": True,
    },
    "deepseek_v3_no_q_lora": {
        "seed": 11, "num_hidden_layers": 2, "q_lora_rank": None, "rope_interleave": True,
    },
    "deepseek_v3_half_split": {
        "seed": 27, "num_hidden_layers": 2, "q_lora_rank": 12, "rope_interleave": False,
    },
}  # fmt: skip
BALANCE_CASE = "deepseek_v3_q_lora"
BF16_RUNS = {
    "bf16_logits": deepseek.Precision(deepseek.bf16_inputs, deepseek.bf16_inputs, absorbed=False),
    "bf16_f32head_logits": deepseek.Precision(deepseek.bf16_inputs, absorbed=False),
    "bf16_absorbed_f32head_logits": deepseek.Precision(deepseek.bf16_inputs, absorbed=True),
}


def parameter_shapes(cfg):
    """Every tensor of the checkpoint, under DeepSeek's names, in a fixed order."""
    hidden, heads = cfg["hidden_size"], cfg["num_attention_heads"]
    q_out = heads * (cfg["qk_nope_head_dim"] + cfg["qk_rope_head_dim"])
    shapes = {"model.embed_tokens.weight": (cfg["vocab_size"], hidden)}
    for layer in range(cfg["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        if cfg["q_lora_rank"] is None:
            shapes[at + "self_attn.q_proj.weight"] = (q_out, hidden)
        else:
            shapes[at + "self_attn.q_a_proj.weight"] = (cfg["q_lora_rank"], hidden)
            shapes[at + "self_attn.q_a_layernorm.weight"] = (cfg["q_lora_rank"],)
            shapes[at + "self_attn.q_b_proj.weight"] = (q_out, cfg["q_lora_rank"])
        rank, v_dim = cfg["kv_lora_rank"], cfg["v_head_dim"]
        kv_out = heads * (cfg["qk_nope_head_dim"] + v_dim)
        shapes[at + "self_attn.kv_a_proj_with_mqa.weight"] = (
            rank + cfg["qk_rope_head_dim"],
            hidden,
        )
        shapes[at + "self_attn.kv_a_layernorm.weight"] = (rank,)
        shapes[at + "self_attn.kv_b_proj.weight"] = (kv_out, rank)
        shapes[at + "self_attn.o_proj.weight"] = (hidden, heads * v_dim)
        shapes[at + "input_layernorm.weight"] = (hidden,)
        shapes[at + "post_attention_layernorm.weight"] = (hidden,)
        for prefix, inner in mlp_prefixes(cfg, layer):
            shapes[at + prefix + "gate_proj.weight"] = (inner, hidden)
            shapes[at + prefix + "up_proj.weight"] = (inner, hidden)
            shapes[at + prefix + "down_proj.weight"] = (hidden, inner)
        if layer >= cfg["first_k_dense_replace"]:
            experts = cfg["n_routed_experts"]
            shapes[at + "mlp.gate.weight"] = (experts, hidden)
            shapes[at + "mlp.gate.e_score_correction_bias"] = (experts,)
    shapes["model.norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (cfg["vocab_size"], hidden)
    return shapes


def mlp_prefixes(cfg, layer):
    if layer < cfg["first_k_dense_replace"]:
        return [("mlp.", cfg["intermediate_size"])]
    inner = cfg["moe_intermediate_size"]
    routed = [(f"mlp.experts.{e}.", inner) for e in range(cfg["n_routed_experts"])]
    return routed + [("mlp.shared_experts.", inner * cfg["n_shared_experts"])]


def random_weights(cfg, seed):
    """f32 weights large enough that attention, routing and logits are far from uniform."""
    rng = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in parameter_shapes(cfg).items():
        noise = torch.randn(shape, generator=rng)
        if name.endswith("e_score_correction_bias"):
            weights[name] = 0.2 * noise
        elif name.endswith("norm.weight"):
            weights[name] = 1.0 + 0.2 * noise
        elif name.endswith("embed_tokens.weight"):
            weights[name] = 0.5 * noise
        elif "experts" in name or ".mlp." in name and "gate.weight" not in name:
            weights[name] = 0.15 * noise
        else:
            weights[name] = 0.3 * noise
    documents = [
        torch.randint(0, cfg["vocab_size"], (length,), generator=rng) for length in LENGTHS
    ]
    return weights, documents


def is_trained(name):
    return not name.endswith("e_score_correction_bias")


def wide(weights):
    """A float64 copy; parameters require gradients, the router's bias does not."""
    return {n: w.double().requires_grad_(is_trained(n)) for n, w in weights.items()}


def run_all(params, cfg, documents, how=deepseek.Precision()):
    return zip(*[deepseek.forward(params, cfg, ids, how) for ids in documents])


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def furthest(some, others):
    return max(float((a - b).detach().abs().max()) for a, b in zip(some, others, strict=True))


def transformers_model(folder):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    assert type(model).__name__ == "DeepseekV3ForCausalLM", type(model)
    return model.train()  # no dropout in this model: train() changes nothing but says what is meant


def transformers_loss(model, documents):
    logits = [model(ids[None], use_cache=False).logits[0] for ids in documents]
    return deepseek.next_token_loss(logits, documents), logits


def transformers_grads(model, cfg):
    """Gradients under DeepSeek's names: fused experts are taken apart."""
    grads = {}
    for name, parameter in model.named_parameters():
        if name.endswith("experts.gate_up_proj"):
            gate, up = parameter.grad.chunk(2, dim=1)
            parts = {"gate_proj": gate, "up_proj": up}
        elif name.endswith("experts.down_proj"):
            parts = {"down_proj": parameter.grad}
        else:
            grads[name] = parameter.grad
            continue
        at = name[: name.rindex(".")]
        for expert in range(cfg["n_routed_experts"]):
            for part, fused in parts.items():
                grads[f"{at}.{expert}.{part}.weight"] = fused[expert]
    return grads


def ten_steps(parameters, loss_of):
    """Losses before, and gradient norms at, each of ten AdamW steps."""
    decayed = [p for p in parameters if p.ndim >= 2]
    plain = [p for p in parameters if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain, "weight_decay": 0.0}],
        lr=STEP["lr"], betas=STEP["betas"], eps=STEP["eps"], weight_decay=STEP["weight_decay"],
    )  # fmt: skip
    losses, norms = [], []
    for _ in range(STEP["n"]):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, STEP["clip_norm"])))
        losses.append(loss.item())
        optimizer.step()
    return losses, norms


def own_ten_steps(weights, cfg, documents):
    params = wide(weights)
    trained = [p for name, p in params.items() if is_trained(name)]

    def loss_of():
        logits, _ = run_all(params, cfg, documents)
        return deepseek.next_token_loss(logits, documents)

    return ten_steps(trained, loss_of)


def check_against_transformers(folder, cfg, documents, logits, loss, grads, steps):
    model = transformers_model(folder)
    their_loss, their_logits = transformers_loss(model, documents)
    spread = float(torch.cat(logits).std())
    worst = furthest(their_logits, logits)
    assert worst < 1e-5 * spread, f"{folder.name}: logits differ by {worst}, spread {spread}"
    assert abs(their_loss.item() - loss.item()) < 1e-5 * spread
    their_loss.backward()
    theirs = transformers_grads(model, cfg)
    assert theirs.keys() == grads.keys(), theirs.keys() ^ grads.keys()
    worst_grad = max(relative(theirs[name], grads[name]) for name in grads)
    assert worst_grad < 1e-4, f"{folder.name}: gradients differ by {worst_grad}"
    again = transformers_model(folder)
    losses, norms = ten_steps(
        list(again.parameters()), lambda: transformers_loss(again, documents)[0]
    )
    worst_step = max(abs(a - b) for a, b in zip(losses, steps[0]))
    worst_norm = max(abs(a / b - 1) for a, b in zip(norms, steps[1]))
    assert worst_step < 1e-4 and worst_norm < 1e-3, (worst_step, worst_norm)
    return {
        "logits_max_abs": worst, "grad_max_relative": worst_grad, "ten_losses_max_abs": worst_step,
    }  # fmt: skip


def write_config(folder, cfg):
    known = {k: v for k, v in cfg.items() if k not in ("rope_theta", "seed")}
    config = DeepseekV3Config(
        **known, **EXTRA, rope_parameters={"rope_type": "default", "rope_theta": cfg["rope_theta"]},
        num_nextn_predict_layers=0, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
        architectures=["DeepseekV3ForCausalLM"], dtype="float32",
    )  # fmt: skip
    config.save_pretrained(folder)


def write_deepseek_config(folder, cfg):
    """The same model as DeepSeek's own config.json spells it; must read back to the same thing."""
    original = {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1,
        "ep_size": 1, "hidden_act": "silu", "initializer_range": 0.02, "rope_scaling": None,
        "num_nextn_predict_layers": 0, "tie_word_embeddings": False, "torch_dtype": "float32",
        "use_cache": True, **EXTRA,
    }  # fmt: skip
    original |= {k: v for k, v in cfg.items() if k not in ("seed", "rope_interleave")}
    path = folder / "config.deepseek.json"
    path.write_text(json.dumps(original, indent=2, sort_keys=True) + "\n")
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(path.read_text())
        read, native = AutoConfig.from_pretrained(scratch), AutoConfig.from_pretrained(folder)
    for key in cfg.keys() - {"seed", "rope_theta"}:
        assert getattr(read, key) == getattr(native, key), key
    assert read.rope_parameters["rope_theta"] == native.rope_parameters["rope_theta"]
    assert read.rope_parameters["rope_type"] == native.rope_parameters["rope_type"] == "default"


def routing_tensors(cfg, traces):
    out = {}
    for n, trace in enumerate(traces):
        for layer, hidden in enumerate(trace.hidden[:-1]):
            out[f"hidden.{layer}.{n}"] = hidden.float()
        for i, (indices, gates) in enumerate(zip(trace.topk_indices, trace.gates)):
            layer = cfg["first_k_dense_replace"] + i
            out[f"topk_indices.{layer}.{n}"] = indices.int()
            out[f"topk_weights.{layer}.{n}"] = gates.gather(1, indices).float()
    return out


@torch.no_grad()
def bf16_tensors(weights, cfg, documents, exact_logits, exact_traces, facts):
    out, params = {}, wide(weights)
    for name, how in BF16_RUNS.items():
        logits, traces = run_all(params, cfg, documents, how)
        for mine, exact in zip(traces, exact_traces):
            same = all(torch.equal(a, b) for a, b in zip(mine.topk_indices, exact.topk_indices))
            assert same, f"{name}: bf16 rounding changed an expert choice; take another seed"
        facts[f"{name}_max_abs_from_exact"] = furthest(logits, exact_logits)
        out |= {f"{name}.{n}": t.float() for n, t in enumerate(logits)}
    return out


def balance_tensors(weights, cfg, documents):
    out = {}
    for label, biased in [("balance", True), ("balance_paper", False)]:
        params = wide(weights)
        _, traces = run_all(params, cfg, documents)
        loss = deepseek.balance_loss(traces, cfg, BALANCE_ALPHA, count_biased=biased)
        loss.backward()
        out["balance_loss" if biased else "balance_loss_paper"] = loss.detach().float()[None]
        for name, p in params.items():
            reached = p.grad is not None and bool(p.grad.any())
            if reached and (biased or name.endswith("mlp.gate.weight")):
                out[f"{label}_grad.{name}"] = p.grad.float()
    assert out["balance_loss"] != out["balance_loss_paper"], "the bias changes no choice"
    return out


def routing_facts(cfg, traces):
    chosen = torch.cat([i for t in traces for i in t.topk_indices])
    plain = torch.cat([s.topk(cfg["num_experts_per_tok"]).indices.sort().values
                       for t in traces for s in t.scores])  # fmt: skip
    used = min(len(i.unique()) for i in zip_layers(traces))
    assert used == cfg["n_routed_experts"], "an expert is never used: its gradient would be zero"
    changed = float((chosen != plain).any(-1).double().mean())
    assert changed > 0.1, "the bias must change some choices, or a wrong use of it goes unseen"
    margin = min(float(m.min()) for t in traces for m in t.margins)
    return {"choices_changed_by_bias": changed, "smallest_topk_margin": margin}


def zip_layers(traces):
    return [torch.cat(per_layer) for per_layer in zip(*[t.topk_indices for t in traces])]


def make_case(folder, name):
    folder.mkdir(parents=True)
    cfg = SHAPE | CASES[name]
    weights, documents = random_weights(cfg, cfg["seed"])
    write_config(folder, cfg)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    params = wide(weights)
    logits, traces = run_all(params, cfg, documents)
    expanded, _ = run_all(params, cfg, documents, deepseek.Precision(absorbed=False))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in zip(logits, expanded))
    loss = deepseek.next_token_loss(logits, documents)
    loss.backward()
    grads = {n: p.grad for n, p in params.items() if is_trained(n)}
    steps = own_ten_steps(weights, cfg, documents)

    logits = [t.detach() for t in logits]
    facts = {"seed": cfg["seed"], "loss": loss.item(), "logits_std": float(torch.cat(logits).std())}
    facts |= routing_facts(cfg, traces)
    tensors = {f"input_ids.{n}": ids.int() for n, ids in enumerate(documents)}
    tensors |= {f"logits.{n}": t.float() for n, t in enumerate(logits)}
    tensors |= {"loss": loss.float()[None]} | routing_tensors(cfg, traces)
    tensors |= {f"grad.{n}": g.float() for n, g in grads.items()}
    tensors |= {
        "losses": torch.tensor(steps[0]).float(),
        "grad_norms": torch.tensor(steps[1]).float(),
    }
    tensors |= bf16_tensors(weights, cfg, documents, logits, traces, facts)
    if name == BALANCE_CASE:
        write_deepseek_config(folder, cfg)
        tensors |= balance_tensors(weights, cfg, documents)
    tensors = {n: t.detach().contiguous() for n, t in tensors.items()}
    save_file(tensors, folder / "golden.safetensors")
    found = check_against_transformers(folder, cfg, documents, logits, loss, grads, steps)
    print(name, json.dumps(found | facts))
    (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")


def make_all(root):
    torch.set_num_threads(1)  # sums in one order
    logging.disable_progress_bar()
    for name in CASES:
        make_case(root / name, name)
    (root / "grpo").mkdir()
    (root / "grpo" / "grpo.json").write_text(json.dumps(grpo.fixture()) + "\n")
    files = sorted(p for p in root.rglob("*") if p.is_file())
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(root)}\n" for p in files]
    (root / "SHA256SUMS").write_text("".join(sums))
    print(f"{sum(p.stat().st_size for p in files)} bytes in {len(files)} files")


def install(made):
    for path in made.rglob("*"):
        if path.is_file():
            target = HERE / path.relative_to(made)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())


def compare(made):
    """Equal bytes, or else equal values: the second is what another CPU can promise."""
    failures = 0
    for line in (HERE / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        kept, new = HERE / name, made / name
        assert hashlib.sha256(kept.read_bytes()).hexdigest() == digest, (
            f"{name} was changed by hand"
        )
        if new.read_bytes() == kept.read_bytes():
            print(f"same bytes   {name}")
            continue
        close = same_values(numbers(kept), numbers(new))
        failures += not close
        print(f"{'same values ' if close else 'DIFFERENT   '} {name}")
    return failures


def numbers(path):
    """Every number in a file, by name; a JSON file's leaves are named by their path."""
    if path.suffix == ".safetensors":
        return load_file(path)
    leaves = {}

    def walk(at, value):
        children = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in children:
            if isinstance(child, (dict, list)):
                walk(f"{at}/{key}", child)
            elif isinstance(child, (int, float)):
                leaves[f"{at}/{key}"] = torch.tensor([float(child)])
            else:
                leaves[f"{at}/{key}={child}"] = torch.zeros(1)

    walk("", json.loads(path.read_text()))
    return leaves


def same_values(kept, new):
    return kept.keys() == new.keys() and all(
        bool((kept[n] == new[n]).all()) or relative(new[n], kept[n]) < 1e-6 for n in kept
    )


def main():
    parser = argparse.ArgumentParser(description="Write the golden files, or check them.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "golden"
        made.mkdir()
        make_all(made)
        if arguments.check:
            sys.exit(1 if compare(made) else 0)
        install(made)


if __name__ == "__main__":
    main()
