"""Writes golden/gguf/: what llama.cpp's own Python package makes of GGUF, for the tests of `model`.

`make.py` runs it with the rest, and sums the files up in SHA256SUMS. Alone it takes a second and
needs gguf and numpy of requirements.txt only:

    python3 -m venv /tmp/gguf && /tmp/gguf/bin/pip install gguf==0.19.0 numpy==2.4.6
    /tmp/gguf/bin/python golden/gguf_blocks.py --check    # makes them again and compares bytes
    /tmp/gguf/bin/python golden/gguf_blocks.py            # rewrites them, and not SHA256SUMS

blocks.gguf, written by gguf.GGUFWriter:
  stored.<type>     random blocks of that type, scales over all finite binary16 values
  want.<type>       f32, what gguf.quants.dequantize makes of them
  values            f32 [rows, 256], what is narrowed: normal values of many scales, zeros, ties
  narrowed.<type>   what gguf.quants.quantize makes of `values`
  values of metadata under test.*, one of every type
names.json: for each architecture, pairs of names by gguf.get_tensor_name_map, Hugging Face's first.
"""

import json
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

BLOCKS = 4
READ = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K]
WRITTEN = [T.F16, T.BF16, T.Q8_0, T.Q4_0]
# Where the scales (binary16) of a block stand.
SCALES = {
    T.Q4_0: [0],
    T.Q4_1: [0, 2],
    T.Q5_0: [0],
    T.Q5_1: [0, 2],
    T.Q8_0: [0],
    T.Q2_K: [80, 82],
    T.Q3_K: [108],
    T.Q4_K: [0, 2],
    T.Q5_K: [0, 2],
    T.Q6_K: [208],
}
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3moe": gguf.MODEL_ARCH.QWEN3MOE,
    "deepseek2": gguf.MODEL_ARCH.DEEPSEEK2,
}


def random_blocks(rng, kind):
    """Random bytes; the scales any finite binary16, from subnormal to the largest."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scale = rng.integers(0, 0x7C00, BLOCKS).astype(np.uint16)
        scale |= rng.integers(0, 2, BLOCKS).astype(np.uint16) << np.uint16(15)
        scale[0] = 0x0001
        scale[1] = 0xFBFF
        blocks[:, at : at + 2] = scale.view(np.uint8).reshape(BLOCKS, 2)
    return blocks


def values_to_narrow(rng):
    rows = rng.standard_normal((8, 256)).astype(np.float32)
    rows *= (2.0 ** rng.integers(-20, 12, (8, 1))).astype(np.float32)
    rows[1, :32] = 0.0
    rows[2, :64] = np.round(rows[2, :64] * 8) / 8
    rows[3, 5] = rows[3, 9] = 3.0 * np.abs(rows[3]).max()  # two largest, of which the first counts
    rows[4, 40] = -2.0 * np.abs(rows[4]).max()
    rows[5, :32] = np.float32(1e-12)
    rows[6, :32] = np.linspace(-127, 127, 32, dtype=np.float32) / np.float32(2)
    return rows


def write_blocks(path):
    rng = np.random.default_rng(2025)
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in [("uint8", 200), ("int8", -100), ("uint16", 60000), ("int16", -30000)]:
        getattr(writer, f"add_{name}")(f"test.{name}", value)
    for name, value in [("uint32", 4000000000), ("int32", -2000000000), ("float32", 0.1)]:
        getattr(writer, f"add_{name}")(f"test.{name}", value)
    for name, value in [("uint64", 2**63 + 1), ("int64", -(2**62)), ("float64", 0.1)]:
        getattr(writer, f"add_{name}")(f"test.{name}", value)
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "Bruchteil ½")
    writer.add_array("test.strings", ["a", "", "<｜User｜>"])
    writer.add_array("test.integers", [1, -2, 3])
    writer.add_array("test.floats", [0.5, -0.25])
    writer.add_array("test.bools", [True, False])
    for kind in READ:
        blocks = random_blocks(rng, kind)
        writer.add_tensor(f"stored.{kind.name}", blocks, raw_dtype=kind)
        writer.add_tensor(f"want.{kind.name}", quants.dequantize(blocks, kind))
    values = values_to_narrow(rng)
    writer.add_tensor("values", values)
    for kind in WRITTEN:
        narrowed = quants.quantize(values, kind)
        raw = None if kind == T.F16 else kind
        writer.add_tensor(f"narrowed.{kind.name}", narrowed, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_names(path):
    modules = "input_layernorm post_attention_layernorm mlp.gate mlp.gate_proj mlp.up_proj"
    modules += " mlp.down_proj mlp.experts.gate_proj mlp.experts.up_proj mlp.experts.down_proj"
    for name in "gate_proj up_proj down_proj".split():
        modules += f" mlp.shared_experts.{name}"
    for name in "q_proj k_proj v_proj o_proj q_norm k_norm q_a_proj q_a_layernorm q_b_proj".split():
        modules += f" self_attn.{name}"
    for name in "kv_a_proj_with_mqa kv_a_layernorm kv_b_proj k_b_proj v_b_proj".split():
        modules += f" self_attn.{name}"
    names = [f"model.layers.3.{module}" for module in modules.split()]
    names += ["model.embed_tokens", "model.norm", "lm_head"]
    pairs = {}
    for arch, number in ARCHITECTURES.items():
        table = gguf.get_tensor_name_map(number, 5)
        found = [(name + ".weight", table.get_name(name)) for name in names]
        pairs[arch] = [[name, place + ".weight"] for name, place in found if place is not None]
        correction = table.get_name("model.layers.3.mlp.gate.e_score_correction")
        if correction is not None:
            name = "model.layers.3.mlp.gate.e_score_correction_bias"
            pairs[arch].append([name, correction + ".bias"])
    path.write_text(json.dumps(pairs, indent=1) + "\n")


def write_all(folder):
    write_blocks(folder / "blocks.gguf")
    write_names(folder / "names.json")


def main():
    folder = Path(__file__).parent / "gguf"
    check = sys.argv[1:] == ["--check"]
    with tempfile.TemporaryDirectory() as scratch:
        to = Path(scratch) if check else folder
        write_all(to)
        if not check:
            return 0
        files = ["blocks.gguf", "names.json"]
        differ = [f for f in files if (to / f).read_bytes() != (folder / f).read_bytes()]
    print(f"different: {differ}" if differ else "the same bytes")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
