"""Writes the golden files: what PyTorch says that this project's kernels and model must reproduce.

How to run (any folder; CPU only; under a minute):

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install -r golden/requirements.txt
    /tmp/golden/bin/python golden/make.py            # rewrites golden/*/ and golden/SHA256SUMS
    /tmp/golden/bin/python golden/make.py --check    # makes them again elsewhere and compares

The files are seeded: with the versions of requirements.txt the same CPU gives the same bytes.
Another CPU may take another BLAS path and differ in the last bit of an f32, so `--check` compares
bytes first and, where they differ, the values (relative 1e-6 of each tensor's norm).

Two sources, and what was checked between them (every run asserts it again):
  1. transformers' models, eager attention, float32, loaded from the written folder by
     AutoModelForCausalLM (`peer.py`); its autograd for the gradients, torch.optim.AdamW for steps.
  2. `reference.py`: the papers' formulas in float64, sharing no code with it (`ops.py`: products,
     norms, rotary positions; `deepseek.py`: MLA and experts; `gqa.py`: the dense families).
  Logits and loss agree within 1e-5 of the logits' spread, every gradient within 1e-4 relative
  (norm), the ten losses within 1e-4 and the gradients' norms within 1e-3. What is written is source
  2, computed in float64 and rounded to f32 at the end: transformers cannot supply float64, because
  its RMSNorm, router, softmax and rotary angles are float32 whatever the model's dtype is.
  Which models there are, and which mistakes of a reader each must show: `cases.py`. How they are
  stored (bf16 in shards, FP8 blocks): `storage.py`.

What was read in transformers 5.23 (models/deepseek_v3, deepseek_v2; modeling_layers.py for MTP):
  - `rope_interleave` (default true) is DeepSeek's own pairing; false is half-split. Both are here.
  - the latent norms q_a_layernorm and kv_a_layernorm have eps 1e-6 whatever `rms_norm_eps` says;
  - the router runs in f32, the bias enters the choice only, weights are normalised with + 1e-20,
    and gradients do reach the router through the weights (it is not under no_grad);
  - `e_score_correction_bias` is a buffer: no gradient, no optimizer step;
  - experts are held fused (`gate_up_proj` 3-D) but read and written under DeepSeek's names;
  - `rope_theta` is written inside `rope_parameters`; `config.deepseek.json` holds the same model
    in DeepSeek's own spelling, and transformers is asserted to read it to the same configuration.
  - DeepSeek-V3's groups are masked with minus infinity, as in DeepSeek's `inference/model.py`;
    DeepSeek-V2's with zero, which is the same, for softmax leaves every score positive;
  - MTP's position of pair (i, i + 1) is i + 1, here i: the same, because rotations are relative.
Where it differs from DeepSeek's formulas:
  - with one of YaRN's `mscale` and `mscale_all_dim` absent it takes m(1) for the factor on cos and
    sin; DeepSeek takes m(mscale) / m(mscale_all_dim) with 1 and 0 for the absent one
    (v2-groups/facts.json: `yarn_length_with_one_mscale`, ours and transformers');
  - it ignores `attn_factor` (DeepSeek-R1-0528-Qwen3-8B); case qwen3-yarn is compared with the
    product written as `attention_factor`, and facts.json says what ignoring it costs;
  - it expands FP8 (`Fp8Dequantize`) with blocks of rows / rows of scales instead of 128, and
    refuses where that is no integer (facts.json of the FP8 cases: `transformers_blocks`); those
    cases are compared with the weights written expanded;
  - DeepseekV2 never reads `norm_topk_prob`; DeepSeek-V2's own code normalises, and then leaves
    `routed_scaling_factor` out. No release sets it; `deepseek.py` refuses it.

Each folder golden/<case>/ holds
  config.json                      the hub's spelling; transformers' where `rope_parameters` stands
  model.safetensors                f32, as Hugging Face would store it; or
  model-0000N-of-00002.safetensors bf16 (qwen2), with model.safetensors.index.json; or
  model.safetensors                FP8 blocks (v3-fp8), scales F32 or F8_E8M0; else bf16, bias f32
  golden.safetensors
    input_ids.N      i32 [tokens]                the documents, each run alone (no padding)
    logits.N         f32 [tokens, vocab_size]
    hidden.L.N       f32 [tokens, hidden_size]   residual stream after layer L, all but the last
    topk_indices.L.N i32 [tokens, top_k]         experts chosen in MoE layer L, ascending
    topk_weights.L.N f32 [tokens, top_k]         their weights, times routed_scaling_factor
    loss             f32 [1]   sum of next-token cross-entropies / number of targets, over all
    grad.<tensor>    f32       of that loss, one for every parameter (tied: the embedding's alone;
                               FP8: for what is not FP8, so that it flows through all that is)
  with `bf16` in cases.py
    bf16_logits.N                    inputs of every linear layer rounded to bf16, expanded MLA
    bf16_f32head_logits.N            the same, lm_head exact
    bf16_absorbed_f32head_logits.N   the same, absorbed MLA: q_nope W_UK and (p c) W_UV rounded too
                     (the router, attention scores, softmax, norms and biases are exact in all
                     three, all sums float64; experts chosen are asserted equal to the exact run's)
  with `ten_steps`
    losses           f32 [10]  before each of ten AdamW steps (see `STEP`)
    grad_norms       f32 [10]  global norm before clipping, each of those steps
  with MTP (v3-mtp: `model.layers.<num_hidden_layers>.*`)
    mtp_logits.N     f32 [tokens - 1, vocab_size]   row i: the token after next, i + 2
    mtp_loss         f32 [1]   mean cross-entropy of the rows that have such a token
    grad.<tensor>    of loss + 0.3 mtp_loss; embedding and head, which both use, under main names;
    topk_*.L.N       rows of MTP's layer too, [tokens - 1, top_k]
  and in one case (alpha = 0.01, mean over documents, summed over MoE layers)
    balance_loss        f32 [1]   f_i counts the experts really used (top-k with the bias)
    balance_grad.<t>    f32       its gradient alone; absent = exactly zero
    balance_loss_paper, balance_paper_grad.<t of a router>   f_i by eq. 18 as printed: no bias in it
  facts.json         what the numbers look like: margins, spread, how far bf16 is from exact, how
                     far each mistake of `cases.MISTAKES` would move the logits
golden/grpo/grpo.json is described in `grpo.py`, golden/gguf/ in `gguf_blocks.py`.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from transformers.utils import logging

import cases
import deepseek
import gguf_blocks
import grpo
import ops
import peer
import reference
import storage

HERE = Path(__file__).resolve().parent
BALANCE_ALPHA = 0.01
STEP = {
    "lr": 1e-2,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
    "n": 10,
}
BF16_RUNS = {
    "bf16_logits": ops.Precision(ops.bf16_inputs, ops.bf16_inputs, absorbed=False),
    "bf16_f32head_logits": ops.Precision(ops.bf16_inputs, absorbed=False),
    "bf16_absorbed_f32head_logits": ops.Precision(ops.bf16_inputs, absorbed=True),
}


def wide(weights):
    """A float64 copy; parameters require gradients, the router's bias does not."""
    return {n: w.double().requires_grad_(cases.is_trained(n)) for n, w in weights.items()}


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


def step_tensors(weights, cfg, documents):
    params = wide(weights)
    trained = [p for name, p in params.items() if cases.is_trained(name)]

    def loss_of():
        logits, _ = reference.run_all(params, cfg, documents)
        return ops.next_token_loss(logits, documents)

    losses, norms = ten_steps(trained, loss_of)
    return {"losses": torch.tensor(losses), "grad_norms": torch.tensor(norms)}


def check_steps(folder, cfg, documents, steps):
    opened = peer.model(folder, cfg["architectures"][0])
    losses, norms = ten_steps(list(opened.parameters()), lambda: peer.loss(opened, documents)[0])
    worst_step = max(abs(a - float(b)) for a, b in zip(losses, steps["losses"]))
    worst_norm = max(abs(a / float(b) - 1) for a, b in zip(norms, steps["grad_norms"]))
    assert worst_step < 1e-4 and worst_norm < 1e-3, (worst_step, worst_norm)
    return {"ten_losses_max_abs": worst_step}


def write_config(folder, case):
    if case.native:
        config = dict(case.config)
        AutoConfig.for_model(config.pop("model_type"), **config).save_pretrained(folder)
        return
    text = json.dumps(case.config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text)


def write_deepseek_config(folder, cfg):
    """The same model as DeepSeek's own config.json spells it; must read back to the same thing."""
    native_only = {*cases.TRANSFORMERS_SPELLING, "rope_interleave"}
    original = {k: v for k, v in cfg.items() if k not in native_only} | cases.DEEPSEEK_SPELLING
    path = folder / "config.deepseek.json"
    path.write_text(json.dumps(original, indent=2, sort_keys=True) + "\n")
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(path.read_text())
        read, native = AutoConfig.from_pretrained(scratch), AutoConfig.from_pretrained(folder)
    for key in cfg.keys() - {"dtype", "rope_parameters"}:
        assert getattr(read, key) == getattr(native, key), key
    assert read.rope_parameters["rope_theta"] == native.rope_parameters["rope_theta"]
    assert read.rope_parameters["rope_type"] == native.rope_parameters["rope_type"] == "default"


def routing_tensors(layers, traces):
    out = {}
    for n, trace in enumerate(traces):
        for layer, indices, gates in zip(layers, trace.topk_indices, trace.gates, strict=True):
            out[f"topk_indices.{layer}.{n}"] = indices.int()
            out[f"topk_weights.{layer}.{n}"] = gates.gather(1, indices)
    return out


def hidden_tensors(traces):
    return {
        f"hidden.{layer}.{n}": hidden
        for n, trace in enumerate(traces)
        for layer, hidden in enumerate(trace.hidden[:-1])
    }


@torch.no_grad()
def bf16_tensors(weights, cfg, documents, exact_logits, exact_traces, facts):
    out, params = {}, wide(weights)
    for name, how in BF16_RUNS.items():
        if how.absorbed and "kv_lora_rank" not in cfg:
            continue
        logits, traces = reference.run_all(params, cfg, documents, how)
        for mine, exact in zip(traces, exact_traces):
            same = all(torch.equal(a, b) for a, b in zip(mine.topk_indices, exact.topk_indices))
            assert same, f"{name}: bf16 rounding changed an expert choice; take another seed"
        facts[f"{name}_max_abs_from_exact"] = peer.furthest(logits, exact_logits)
        out |= {f"{name}.{n}": t for n, t in enumerate(logits)}
    return out


def balance_tensors(weights, cfg, documents):
    out = {}
    for label, biased in [("balance", True), ("balance_paper", False)]:
        params = wide(weights)
        _, traces = reference.run_all(params, cfg, documents)
        loss = deepseek.balance_loss(traces, cfg, BALANCE_ALPHA, count_biased=biased)
        loss.backward()
        out["balance_loss" if biased else "balance_loss_paper"] = loss.detach().float()[None]
        for name, p in params.items():
            reached = p.grad is not None and bool(p.grad.any())
            if reached and (biased or name.endswith("mlp.gate.weight")):
                out[f"{label}_grad.{name}"] = p.grad
    assert out["balance_loss"] != out["balance_loss_paper"], "the bias changes no choice"
    return out


def routing_facts(cfg, traces):
    chosen = torch.cat([i for t in traces for i in t.topk_indices])
    used = min(len(torch.cat(i).unique()) for i in zip(*[t.topk_indices for t in traces]))
    assert used == traces[0].scores[0].shape[1], "an expert is never used: its gradient is zero"
    margin = min(float(m.min()) for t in traces for m in t.margins)
    assert margin > 1e-5, f"a choice within {margin} of a tie: rounding in f32 could change it"
    if cfg.get("topk_method") != "noaux_tc":
        return {"smallest_topk_margin": margin}
    plain = torch.cat([s.topk(cfg["num_experts_per_tok"]).indices.sort().values
                       for t in traces for s in t.scores])  # fmt: skip
    changed = float((chosen != plain).any(-1).double().mean())
    assert changed > 0.1, "the bias must change some choices, or a wrong use of it goes unseen"
    return {"choices_changed_by_bias": changed, "smallest_topk_margin": margin}


@torch.no_grad()
def mistake_facts(name, weights, cfg, documents, logits, traces):
    """How far each mistake of cases.MISTAKES would move the logits; none may go unseen."""
    facts, spread = {}, float(torch.cat(logits).std())
    for mistake, changed in cases.MISTAKES.get(name, {}).items():
        wrong_cfg, wrong_weights = changed(cfg, weights)
        wrong, wrong_traces = reference.run_all(wide(wrong_weights), wrong_cfg, documents)
        moved = peer.furthest(wrong, logits) / spread
        assert moved > 0.01, f"{name}: {mistake} moves the logits by {moved} of the spread only"
        facts[mistake] = {"logits_move_by_share_of_spread": moved}
        if cfg.get("n_group", 1) > 1:
            rows = [(a != b).any(-1) for t, w in zip(traces, wrong_traces)
                    for a, b in zip(t.topk_indices, w.topk_indices)]  # fmt: skip
            facts[mistake]["choices_changed"] = float(torch.cat(rows).double().mean())
    return {"mistakes": facts} if facts else {}


def rope_facts(case):
    """The share of each frequency that YaRN or Llama 3 keeps: all, none, and something between."""
    cfg, rope = case.config, ops.rope_settings(case.config)
    if rope["rope_type"] == "yarn":
        assert max(case.lengths) > rope["original_max_position_embeddings"]
        rotated = cfg.get("qk_rope_head_dim") or cfg["head_dim"]
        kept = ops.yarn_keep(rope, rotated, torch.float64)
    elif rope["rope_type"] == "llama3":
        halves = torch.arange(0, cfg["head_dim"], 2, dtype=torch.float64) / cfg["head_dim"]
        kept = ops.llama3_keep(rope, rope["rope_theta"] ** -halves)
    else:
        return {}
    assert kept.max() == 1 and kept.min() == 0 and ((kept > 0) & (kept < 1)).any(), kept
    return {"rope_share_kept": kept.tolist()}


@torch.no_grad()
def mtp_mistake_facts(weights, cfg, exact):
    params, hidden = wide(weights), cfg["hidden_size"]
    name = f"model.layers.{cfg['num_hidden_layers']}.eh_proj.weight"
    swapped = params | {name: params[name].roll(hidden, dims=1)}
    spread, facts = float(torch.cat(exact.mtp_logits).std()), {}
    for mistake, run in {
        "hidden_before_embedding": lambda i, t: (swapped, i, t.last),
        "hidden_before_model_norm": lambda i, t: (params, i, t.hidden[-1]),
        "embedding_of_the_same_token": lambda i, t: (params, i.roll(1), t.last),
    }.items():
        wrong = []
        for ids, trace in zip(exact.documents, exact.traces):
            given, ids, last = run(ids, trace)
            wrong.append(reference.forward_mtp(given, cfg, ids, last)[0])
        facts[mistake] = peer.furthest(wrong, exact.mtp_logits) / spread
        assert facts[mistake] > 0.01, (mistake, facts[mistake])
    return {"mtp_mistakes_move_logits_by_share_of_spread": facts}


def fp8_facts(drawn, tensors, weights, cfg, documents, logits):
    """What FP8 does here, and what a reader would get who reads the scales in another order."""
    spread = float(torch.cat(logits).std())
    scales = {n: t.float() for n, t in tensors.items() if n.endswith("_scale_inv")}
    turned = tensors | {n: t.flip(0, 1) for n, t in scales.items()}
    found = {}
    for what, other in {
        "rounding": drawn,
        "transformers_blocks": peer.dequantised(tensors),
        "scales_in_another_order": storage.read_back(turned),
        "scales_ignored": {n: t.float() for n, t in tensors.items() if n not in scales},
    }.items():
        with torch.no_grad():
            wrong, _ = reference.run_all(wide(other), cfg, documents)
        found[what] = peer.furthest(wrong, logits) / spread
        assert found[what] > 0.01, f"{what} moves the logits by {found[what]} of the spread only"
    codes = [t for t in tensors.values() if t.dtype == torch.float8_e4m3fn]
    codes = torch.cat([t.float().abs().flatten() for t in codes])
    assert (codes == storage.E4M3_MAX).any() or cfg["quantization_config"].get("scale_fmt")
    assert ((codes > 0) & (codes < 2**-6)).any(), "no subnormal code"
    grids = [s for s in scales.values() if s.numel() > 1]
    assert all(len(s.unique()) == s.numel() for s in grids) and any(len(s) > 1 for s in grids)
    return {"fp8_moves_logits_by_share_of_spread": found}


def with_mtp_copies(weights, cfg):
    """The checkpoint holds embedding and head twice: under the main names and in the MTP layer."""
    if not cfg.get("num_nextn_predict_layers"):
        return weights
    at = f"model.layers.{cfg['num_hidden_layers']}."
    return weights | {
        at + "embed_tokens.weight": weights["model.embed_tokens.weight"].clone(),
        at + "shared_head.head.weight": weights["lm_head.weight"].clone(),
    }


@dataclass
class Exact:
    """The float64 run of a case, and what is to be written of it."""

    weights: dict  # f32, as the checkpoint means them
    documents: list
    logits: list
    traces: list
    loss: float = 0.0
    grads: dict = field(default_factory=dict)
    mtp_logits: list = field(default_factory=list)
    tensors: dict = field(default_factory=dict)
    facts: dict = field(default_factory=dict)


def run_exactly(case, weights, documents):
    cfg, params = case.config, wide(weights)
    logits, traces = reference.run_all(params, cfg, documents)
    expanded, _ = reference.run_all(params, cfg, documents, ops.Precision(absorbed=False))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in zip(logits, expanded))
    loss = ops.next_token_loss(logits, documents)
    exact = Exact(weights, documents, [t.detach() for t in logits], traces, loss.item())
    exact.facts = {"seed": case.seed, "loss": loss.item()}
    exact.facts |= {"logits_std": float(torch.cat(exact.logits).std())} | rope_facts(case)
    exact.tensors = {f"input_ids.{n}": ids.int() for n, ids in enumerate(documents)}
    exact.tensors |= {f"logits.{n}": t for n, t in enumerate(logits)}
    exact.tensors |= {"loss": loss[None]} | hidden_tensors(traces)
    layers = [n for n in range(cfg["num_hidden_layers"]) if reference.is_moe(cfg, n)]
    if layers:
        exact.facts |= routing_facts(cfg, traces)
        exact.tensors |= routing_tensors(layers, traces)
    if cfg.get("num_nextn_predict_layers"):
        loss = loss + reference.MTP_WEIGHT * mtp_loss(exact, params, cfg)
    loss.backward()
    exact.grads = {n: p.grad for n, p in params.items() if cases.is_trained(n)}
    if case.storage.startswith("fp8"):
        exact.grads = {n: g for n, g in exact.grads.items() if not storage.is_fp8(n, g)}
    exact.tensors |= {f"grad.{n}": g for n, g in exact.grads.items()}
    return exact


def mtp_loss(exact, params, cfg):
    logits, traces = reference.run_mtp(params, cfg, exact.documents, exact.traces)
    loss = ops.next_token_loss(logits, exact.documents, ahead=2)
    exact.mtp_logits = logits
    exact.facts |= {"mtp_loss": loss.item(), "mtp": routing_facts(cfg, traces)}
    exact.tensors |= {f"mtp_logits.{n}": t for n, t in enumerate(logits)} | {"mtp_loss": loss[None]}
    exact.tensors |= routing_tensors([cfg["num_hidden_layers"]], traces)
    return loss


def compare_with_peer(folder, cfg, exact):
    """Asserts that transformers says the same; returns by how much it does not."""
    rest = (exact.documents, exact.logits, exact.loss)
    if "attn_factor" in ops.rope_settings(cfg):
        apart = peer.distance(folder, cfg, exact.documents, exact.logits)
        assert apart > 0.01, "transformers reads attn_factor now: compare the folder as it stands"
        exact.facts["transformers_ignores_attn_factor_logits_differ_by_share_of_spread"] = apart
    if peer.misread(cfg):
        with tempfile.TemporaryDirectory() as plain:
            peer.write_plainly(Path(plain), cfg, exact.weights)
            return peer.check(Path(plain), cfg, *rest, exact.grads)
    if exact.mtp_logits:
        found = peer.check(folder, cfg, *rest, None)
        return found | peer.check_mtp(folder, cfg, exact.documents, exact.mtp_logits, exact.grads)
    return peer.check(folder, cfg, *rest, exact.grads)


def make_case(folder, name):
    folder.mkdir(parents=True)
    case = cases.CASES[name]
    cfg = case.config
    drawn, documents = cases.random_weights(case)
    on_disk = storage.stored(with_mtp_copies(drawn, cfg), case.storage)
    write_config(folder, case)
    storage.write(folder, on_disk, case.storage)
    read = storage.read_back(on_disk)
    exact = run_exactly(case, {n: read[n] for n in drawn}, documents)
    weights, facts = exact.weights, exact.facts
    if case.bf16:
        bf16 = bf16_tensors(weights, cfg, documents, exact.logits, exact.traces, facts)
        exact.tensors |= bf16
    if case.balance:
        write_deepseek_config(folder, cfg)
        exact.tensors |= balance_tensors(weights, cfg, documents)
    found = compare_with_peer(folder, cfg, exact)
    if case.ten_steps:
        steps = step_tensors(weights, cfg, documents)
        exact.tensors |= steps
        found |= check_steps(folder, cfg, documents, steps)
    facts |= mistake_facts(name, weights, cfg, documents, exact.logits, exact.traces)
    if exact.mtp_logits:
        facts |= mtp_mistake_facts(weights, cfg, exact)
    if case.storage.startswith("fp8"):
        facts |= fp8_facts(drawn, on_disk, weights, cfg, documents, exact.logits)
    if name == "v2-groups":
        facts |= {"yarn_length_with_one_mscale": peer.yarn_lengths(folder)}
    save_file({n: finished(t) for n, t in exact.tensors.items()}, folder / "golden.safetensors")
    (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(name, json.dumps(found | facts))


def finished(t):
    t = t.detach().contiguous()
    return t.float() if t.is_floating_point() else t


def make_all(root):
    torch.set_num_threads(1)  # sums in one order
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # transformers reports MTP's tensors as unexpected: they are not
    for name in cases.CASES:
        make_case(root / name, name)
    for file in ("model.safetensors", "golden.safetensors"):
        spellings = [(root / name / file).read_bytes() for name in cases.TWO_SPELLINGS]
        assert spellings[0] == spellings[1], "the same model under two spellings is the same model"
    (root / "grpo").mkdir()
    (root / "grpo" / "grpo.json").write_text(json.dumps(grpo.fixture()) + "\n")
    (root / "gguf").mkdir()
    gguf_blocks.write_all(root / "gguf")
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
    if path.suffix == ".gguf":
        tensors = gguf.GGUFReader(path).tensors
        return {t.name: torch.from_numpy(t.data.copy()).double() for t in tensors}
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
        bool((kept[n] == new[n]).all()) or peer.relative(new[n], kept[n]) < 1e-6 for n in kept
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
