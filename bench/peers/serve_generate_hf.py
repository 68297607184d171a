"""What serving is compared with: Hugging Face's `generate` on one batch.

    python bench/peers/serve_model.py OUT
    python bench/peers/serve_generate_hf.py OUT --mode f32 [--batch 64] [--rounds 5] [--threads 2]

64 sequences of 128 new tokens each after prompts of 16 random ones, greedy, with the cache that
`generate` takes by default. It holds the whole batch from the start and sends nothing over a
network; ours is `bruchteil serve OUT --parallel 64` under
`cargo run --release -p serve --example load -- URL --streams 64`. Modes: f32, bf16 (weights and
arithmetic). The last line on stdout is one JSON object; `tokens_per_s` comes from the median round
after one for warming up, and counts new tokens alone.
Packages: ../../golden/requirements.txt.
"""

import argparse
import json
import resource
import statistics
import time

import torch
import transformers

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def generate(model, prompts, new_tokens):
    """Seconds, and the tokens after the prompts."""
    began = time.perf_counter()
    tokens = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False,
        max_new_tokens=new_tokens, pad_token_id=0,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    tokens = tokens[:, prompts.shape[1] :]
    assert tokens.shape == (len(prompts), new_tokens), tokens.shape
    return seconds, tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--mode", choices=DTYPES, default="f32")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    if min(a.batch, a.prompt_tokens, a.new_tokens, a.rounds, a.threads) < 1:
        parser.error("every number must be at least 1")
    torch.set_num_threads(a.threads)
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(a.model, dtype=DTYPES[a.mode])
    model.eval()
    # No end token: none comes from this model, and looking for it would cost the peer time.
    model.generation_config.eos_token_id = None
    rng = torch.Generator().manual_seed(1)
    shape = (a.batch, a.prompt_tokens)
    prompts = torch.randint(0, model.config.vocab_size - 2, shape, generator=rng)
    rounds = [generate(model, prompts, a.new_tokens) for _ in range(a.rounds + 1)]
    seconds = [seconds for seconds, _ in rounds[1:]]
    median = statistics.median(seconds)
    result = {
        "peer": "serve_generate_hf",
        "mode": a.mode,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": a.threads,
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch": a.batch,
        "prompt_tokens": a.prompt_tokens,
        "new_tokens": a.new_tokens,
        "tokens_per_s": round(a.batch * a.new_tokens / median, 1),
        "seconds": round(median, 3),
        "seconds_min": round(min(seconds), 3),
        "seconds_max": round(max(seconds), 3),
        "rounds": a.rounds,
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "first_tokens": rounds[-1][1][0, :8].tolist(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
