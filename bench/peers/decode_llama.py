"""Batch-1 decoding of a GGUF file by llama.cpp, through its Python package, by token ids.

    pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36
    python bench/peers/decode_llama.py MODEL.gguf [--tokens 64] [--threads N]

Prints the time to load and the rate, as `cargo run --release -p model --example decode` does.
"""

import argparse
import os
import time

import llama_cpp
import numpy as np


def decode(context, token, position):
    """One token at a position; returns the likeliest next one."""
    batch = llama_cpp.llama_batch_get_one((llama_cpp.llama_token * 1)(token), 1)
    status = llama_cpp.llama_decode(context, batch)
    assert status == 0, f"llama_decode gave {status} at position {position}"
    model = llama_cpp.llama_get_model(context)
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    logits = llama_cpp.llama_get_logits_ith(context, -1)
    return int(np.ctypeslib.as_array(logits, shape=(vocab,)).argmax())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    llama_cpp.llama_backend_init()
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, None)
    start = time.perf_counter()
    params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(arguments.model.encode(), params)
    assert model, f"{arguments.model} does not open"
    load = time.perf_counter() - start
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = arguments.tokens + 16
    options.n_threads = options.n_threads_batch = arguments.threads
    context = llama_cpp.llama_init_from_model(model, options)
    token, warm = 1, 8
    for position in range(arguments.tokens + warm):
        if position == warm:
            start = time.perf_counter()
        token = decode(context, token, position)
    rate = arguments.tokens / (time.perf_counter() - start)
    size = llama_cpp.llama_model_size(model)
    print(
        f"load {load:.3f} s  weights {size / 1e6:.1f} MB  decode {rate:.2f} tokens/s  "
        f"{size * rate / 1e9:.2f} GB/s of weights"
    )


if __name__ == "__main__":
    main()
