"""Does llama.cpp's Python package open a GGUF file of ours, and find in it what is there?

    python golden/open_gguf.py FILE.gguf [LIKE.safetensors ...]

Prints the metadata and the tensors. With safetensors files (Hugging Face names), the tensors that
both have under the same module are compared: the largest difference relative to the tensor's
largest magnitude, which must be within what the stored type rounds away. Packages:
gguf==0.19.0, and for the comparison numpy, torch and safetensors as in requirements.txt.
"""

import sys

import gguf
import numpy as np
from gguf import quants

# Half a step of the type, and what rounding the scale adds, of the largest magnitude.
TOLERANCE = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 220, "Q4_0": 1 / 8}


def permuted(values, heads):
    """Rows of each head from half-split to interleaved, as conversion/llama.py has them."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def compare(reader, path, tensors):
    from safetensors.torch import load_file

    arch = str(bytes(reader.fields["general.architecture"].parts[-1]), "utf-8")
    number = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    table = gguf.get_tensor_name_map(number, 1000)
    key = f"{arch}.attention.head_count"
    heads = {"q_proj": reader.fields[key], "k_proj": reader.fields[f"{key}_kv"]}
    passed = True
    for name, values in load_file(path).items():
        place = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if place not in tensors:
            continue
        want = values.float().numpy()
        module = name.split(".")[-2]
        if arch == "llama" and module in heads:
            want = permuted(want, int(heads[module].parts[-1][0]))
        tensor = tensors[place]
        found = quants.dequantize(tensor.data, tensor.tensor_type).reshape(want.shape)
        share = float(np.abs(found - want).max() / max(np.abs(want).max(), 1e-30))
        good = share <= TOLERANCE.get(tensor.tensor_type.name, 1 / 8)
        passed &= good
        print(f"{'ok  ' if good else 'FAIL'} {name}: {tensor.tensor_type.name}, {share:.3g}")
    return passed


def main():
    if len(sys.argv) < 2:
        print(__doc__.split("\n\n")[1], file=sys.stderr)
        return 2
    reader = gguf.GGUFReader(sys.argv[1])
    for field in reader.fields.values():
        content = field.contents()
        print(field.name, content if not isinstance(content, list) else content[:4])
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for tensor in reader.tensors:
        print(tensor.name, tensor.tensor_type.name, list(reversed(tensor.shape.tolist())))
    return 0 if all([compare(reader, path, tensors) for path in sys.argv[2:]]) else 1


if __name__ == "__main__":
    sys.exit(main())
