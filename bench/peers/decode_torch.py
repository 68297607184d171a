"""The batched greedy decoding that ours is compared with: transformers' `generate` on the CPU.

    python bench/peers/decode_torch.py [--dtype f32|bf16] [--rounds 3] [--threads 2]

Model: LlamaForCausalLM of the size in train_step_torch.py (width 256, 6 layers, 4 heads, SwiGLU
1024, vocabulary 4096, untied), random weights. Each round: 64 sequences, a 16-token prompt, 128 new
tokens each, greedy, KV cache, no stop token. The last line on stdout is one JSON object;
`tokens_per_s` counts new tokens over the median round, prompt processing included. One process per
dtype, so that `peak_rss_bytes` belongs to it. Packages: ../../golden/requirements.txt.
"""

import argparse
import json
import resource
import statistics
import time

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def build(dtype):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=1024,
        vocab_size=4096,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).to(DTYPES[dtype]).eval()


def generate(model, prompt, new_tokens):
    began = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
        )
    assert out.shape == (prompt.shape[0], prompt.shape[1] + new_tokens), out.shape
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description="transformers generate, tokens per second.")
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=16, help="tokens of each prompt")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = parser.parse_args()
    if min(a.rounds, a.sequences, a.prompt, a.new_tokens, a.threads) < 1:
        parser.error("every number must be at least 1")
    torch.set_num_threads(a.threads)
    model = build(a.dtype)
    prompt = torch.randint(1, 4096, (a.sequences, a.prompt))
    generate(model, prompt, min(a.new_tokens, 8))  # warm-up
    seconds = [generate(model, prompt, a.new_tokens) for _ in range(a.rounds)]
    median = statistics.median(seconds)
    result = {
        "peer": "decode_torch",
        "dtype": a.dtype,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": a.threads,
        "parameters": model.num_parameters(),
        "sequences": a.sequences,
        "prompt_tokens": a.prompt,
        "new_tokens": a.new_tokens,
        "tokens_per_s": round(a.sequences * a.new_tokens / median, 1),
        "round_s": round(median, 3),
        "round_s_min": round(min(seconds), 3),
        "round_s_max": round(max(seconds), 3),
        "rounds": a.rounds,
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
