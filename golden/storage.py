"""How a checkpoint is stored: one f32 file, bf16 in two shards, or DeepSeek's FP8 blocks.

FP8 (README_WEIGHTS.md of DeepSeek-V3): every linear weight but the router's, the embedding and the
head is float8_e4m3fn, and beside NAME.weight stands NAME.weight_scale_inv, one number for each
block of 128 x 128, the last of a row or column narrower. weight = code * scale, in spite of the
name. With `scale_fmt` "ue8m0" every scale is a power of two.
"""

import json

import torch
from safetensors.torch import save_file

E4M3_MAX = 448.0
BLOCK = 128


def stored(weights, storage):
    """The tensors of the checkpoint: what `weights` become on disk."""
    if storage == "f32":
        return weights
    if storage == "bf16-shards":
        return {name: w.bfloat16() for name, w in weights.items()}
    tensors = {}
    for name, w in weights.items():
        if is_fp8(name, w):
            codes, scales = quantised(w, powers_of_two=storage == "fp8-ue8m0")
            tensors[name], tensors[name + "_scale_inv"] = codes, scales
        else:
            wide = name.endswith("e_score_correction_bias")
            tensors[name] = w if wide else w.bfloat16()
    return tensors


def read_back(tensors):
    """The f32 weights that the stored tensors mean."""
    weights = {}
    for name, t in tensors.items():
        if name.endswith("_scale_inv"):
            continue
        weights[name] = t.float()
        if t.dtype == torch.float8_e4m3fn:
            weights[name] = t.float() * spread(tensors[name + "_scale_inv"].float(), t.shape)
    return weights


def is_fp8(name, w):
    kept = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight", "eh_proj.weight")
    return w.ndim == 2 and not name.endswith(kept)


def quantised(w, powers_of_two):
    rows, columns = ((n + BLOCK - 1) // BLOCK for n in w.shape)
    scales = torch.empty(rows, columns)
    for r in range(rows):
        for c in range(columns):
            block = w[r * BLOCK : (r + 1) * BLOCK, c * BLOCK : (c + 1) * BLOCK]
            scales[r, c] = block.abs().max() / E4M3_MAX
    if powers_of_two:
        scales = torch.exp2(torch.ceil(torch.log2(scales)))
    codes = (w / spread(scales, w.shape)).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return codes, scales.to(torch.float8_e8m0fnu) if powers_of_two else scales


def uneven(w):
    """Blocks of sizes so different that even scales that are powers of two all differ."""
    rows, columns = ((n + BLOCK - 1) // BLOCK for n in w.shape)
    powers = 2.0 * torch.arange(rows)[:, None] - 4.0 * torch.arange(columns)
    return w * spread(torch.exp2(powers), w.shape)


def spread(scales, shape):
    """The scale of every element."""
    tall = scales.repeat_interleave(BLOCK, 0)[: shape[0]]
    return tall.repeat_interleave(BLOCK, 1)[:, : shape[1]]


def write(folder, tensors, storage):
    metadata = {"format": "pt"}
    tensors = {name: t.contiguous() for name, t in tensors.items()}
    if storage != "bf16-shards":
        save_file(tensors, folder / "model.safetensors", metadata=metadata)
        return
    names = sorted(tensors)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    weight_map = {}
    for i, half in enumerate(halves, start=1):
        shard = f"model-{i:05}-of-{len(halves):05}.safetensors"
        save_file({n: tensors[n] for n in half}, folder / shard, metadata=metadata)
        weight_map |= {name: shard for name in half}
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text)
