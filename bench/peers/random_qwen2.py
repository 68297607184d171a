"""A random checkpoint in the shape of Qwen2.5-0.5B: 494,032,768 parameters in bf16, 1 GB.

    python bench/peers/random_qwen2.py OUT

Speed does not depend on what weights say, so the comparison needs no download. There is no
tokenizer in it: both programs are driven by token ids.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
    "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
    "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip


def tensors(rng):
    hidden, width = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    head = hidden // CONFIG["num_attention_heads"]
    kv = head * CONFIG["num_key_value_heads"]

    def normal(*shape):
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=rng)

    def ones(n):
        return torch.ones(n, dtype=torch.bfloat16)

    yield "model.embed_tokens.weight", normal(CONFIG["vocab_size"], hidden)
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", ones(hidden)
        for name, rows in [("q_proj", hidden), ("k_proj", kv), ("v_proj", kv)]:
            yield f"{at}.self_attn.{name}.weight", normal(rows, hidden)
            yield f"{at}.self_attn.{name}.bias", normal(rows)
        yield f"{at}.self_attn.o_proj.weight", normal(hidden, hidden)
        yield f"{at}.post_attention_layernorm.weight", ones(hidden)
        yield f"{at}.mlp.gate_proj.weight", normal(width, hidden)
        yield f"{at}.mlp.up_proj.weight", normal(width, hidden)
        yield f"{at}.mlp.down_proj.weight", normal(hidden, width)
    yield "model.norm.weight", ones(hidden)


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    weights = dict(tensors(torch.Generator().manual_seed(1)))
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    print(sum(w.numel() for w in weights.values()), "parameters in", out)


if __name__ == "__main__":
    main()
