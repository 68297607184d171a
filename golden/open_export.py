"""Does an exported folder open in transformers, and say there what it says here?

    bruchteil score DIR --input INPUT.jsonl --logits LOGITS.safetensors
    python golden/open_export.py DIR INPUT.jsonl LOGITS.safetensors

INPUT.jsonl: one object a line, with `token_ids`, `text`, or both. LOGITS.safetensors: `logits.N`,
f32 [tokens, vocab_size], for line N (from 0). One line is printed for each check:
  weights    every tensor of the folder has a place in transformers' model, and every place a tensor
  ids N      the folder's tokenizer gives line N's `token_ids` for its `text` (where both stand)
  logits N   no logit differs from transformers' by more than 1e-4 of the spread (the standard
             deviation of transformers' logits over that line)
What transformers is known to misread (`peer.py`) is written plainly before it sees it: FP8
expanded, `attn_factor` as `attention_factor`. The tensors of an MTP layer have no place in it and
need none.
The exit code is 0 if all passed, 1 if one did not, 2 if the files cannot be read together.
Packages: requirements.txt.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import peer
import storage

TOLERANCE = 1e-4


def report(passed, what, detail):
    print(f"{'ok  ' if passed else 'FAIL'} {what:<10} {detail}")
    return passed


def open_model(folder):
    """The model in f32 with eager attention, and whether every tensor found its place."""
    config = json.loads((folder / "config.json").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        if peer.misread(config):
            tensors = {}
            for shard in sorted(folder.glob("model*.safetensors")):
                tensors |= load_file(shard)
            folder = Path(scratch)
            peer.write_plainly(folder, config, storage.read_back(tensors))
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    info["unexpected_keys"] = [n for n in info["unexpected_keys"] if not is_mtp(n, config)]
    faults = {key: sorted(map(str, names)) for key, names in info.items() if names}
    detail = f"{type(model).__name__}, {model.num_parameters()} parameters"
    return model.eval(), report(not faults, "weights", f"{detail}; {faults}" if faults else detail)


def is_mtp(name, config):
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    extra = config.get("num_nextn_predict_layers") or 0
    first = config["num_hidden_layers"]
    return bool(layer) and first <= int(layer[1]) < first + extra


def check_ids(n, row, tokenizer):
    ids = tokenizer(row["text"])["input_ids"]
    if "token_ids" not in row:
        return ids, True
    same = ids == row["token_ids"]
    detail = f"{len(ids)} ids" if same else f"tokenizer {ids}, file {row['token_ids']}"
    return row["token_ids"], report(same, f"ids {n}", detail)


def check_logits(n, ids, model, written):
    name = f"logits.{n}"
    if name not in written:
        return report(False, f"logits {n}", f"no tensor {name} in the logits file")
    with torch.no_grad():
        theirs = model(torch.tensor([ids]), use_cache=False).logits[0]
    if written[name].shape != theirs.shape:
        shapes = f"{list(written[name].shape)}, transformers {list(theirs.shape)}"
        return report(False, f"logits {n}", f"shape {shapes}")
    spread = float(theirs.std())
    furthest = float((written[name].float() - theirs).abs().max())  # NaN fails the test below
    share = furthest / spread
    detail = f"max difference {furthest:.3g} = {share:.3g} of the spread {spread:.3g}"
    return report(share <= TOLERANCE, f"logits {n}", detail)


def main():
    if len(sys.argv) != 4:
        print(__doc__.split("\n\n")[1], file=sys.stderr)
        return 2
    folder, input_path, logits_path = map(Path, sys.argv[1:])
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what is amiss is reported here, line by line
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in input_path.read_text().splitlines() if line.strip()]
    written = load_file(logits_path)
    if not rows or len(rows) != sum(name.startswith("logits.") for name in written):
        print(f"{input_path} has {len(rows)} lines, {logits_path} {sorted(written)}")
        return 2
    try:
        model, passed = open_model(folder)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        report(False, "weights", f"{folder} does not open: {str(error).splitlines()[0]}")
        return 1
    texts = any("text" in row for row in rows)
    tokenizer = AutoTokenizer.from_pretrained(folder) if texts else None
    for n, row in enumerate(rows):
        ids, same = check_ids(n, row, tokenizer) if "text" in row else (row["token_ids"], True)
        passed &= same
        passed &= check_logits(n, ids, model, written)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
