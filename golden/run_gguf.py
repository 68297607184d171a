"""Does llama.cpp run a GGUF file of ours, and say what we say?

    bruchteil score FILE.gguf --input INPUT.jsonl --logits LOGITS.safetensors
    python golden/run_gguf.py FILE.gguf INPUT.jsonl LOGITS.safetensors

INPUT.jsonl: one object a line, with `token_ids`. LOGITS.safetensors: `logits.N`, f32 [tokens,
vocab_size], for line N (from 0). For each line the largest difference is printed as a share of the
spread (the standard deviation of llama.cpp's logits over that line): about 1e-6 in a file of F32.
In others llama.cpp rounds the inputs of products as the weights are rounded, which costs more than
the weights do. The exit code is 0 if all lines are within SHARE (a fourth argument, 1e-4).

llama.cpp opens `deepseek2` without `q_lora_rank` only with as many layers as published models of
that kind have (V2-Lite's 27 among them). Packages: llama-cpp-python==0.3.36 (built from source),
numpy and safetensors as in requirements.txt.
"""

import json
import sys
from pathlib import Path

import llama_cpp as llama
import numpy as np
from safetensors.numpy import load_file


def context(model, tokens):
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = max(256, tokens)
    parameters.type_k = parameters.type_v = 0  # a cache in F32
    parameters.flash_attn_type = 0
    return llama.llama_init_from_model(model, parameters)


def logits(model, ids):
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    ctx = context(model, len(ids))
    batch = llama.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for place, token in enumerate(ids):
        batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
    assert llama.llama_decode(ctx, batch) == 0
    rows = [llama.llama_get_logits_ith(ctx, place) for place in range(len(ids))]
    rows = [np.ctypeslib.as_array(row, shape=(vocabulary,)).copy() for row in rows]
    llama.llama_batch_free(batch)
    llama.llama_free(ctx)
    return np.stack(rows)


def main():
    if len(sys.argv) not in (4, 5):
        print(__doc__.split("\n\n")[1], file=sys.stderr)
        return 2
    share = float(sys.argv[4]) if len(sys.argv) == 5 else 1e-4
    rows = [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines() if line]
    ours = load_file(sys.argv[3])
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(
        sys.argv[1].encode(), llama.llama_model_default_params()
    )
    if not model:
        print(f"FAIL {sys.argv[1]} does not open in llama.cpp")
        return 1
    passed = True
    for number, row in enumerate(rows):
        theirs = logits(model, row["token_ids"])
        found = float(np.abs(ours[f"logits.{number}"] - theirs).max() / theirs.std())
        passed &= found <= share  # NaN fails
        print(f"{'ok  ' if found <= share else 'FAIL'} logits {number}: {found:.3g} of the spread")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
