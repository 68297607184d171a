"""A random model to serve, in the shape that ../README.md compares training steps with.

    python bench/peers/serve_model.py OUT

Llama's architecture: width 256, 6 layers, 4 heads, SwiGLU 1024, vocabulary 4096 with an untied
head: 8.39 M parameters in f32. Its tokenizer says all bytes and pairs of letters and digits, so
whatever tokens come are text. The end token's row of the head is zero: with greedy decoding no
answer ends before its limit.
Packages: ../../golden/requirements.txt.
"""

import json
import string
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ["<bos>", "<eos>"]
TEMPLATE = (
    "{%- for message in messages -%}{{- message.role + ': ' + message.content + '\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- 'assistant: ' -}}{%- endif -%}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 4094, "eos_token_id": 4095, "head_dim": 64, "hidden_act": "silu",
    "hidden_size": 256, "initializer_range": 0.02, "intermediate_size": 1024,
    "max_position_embeddings": 4096, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 4, "num_hidden_layers": 6, "num_key_value_heads": 4,
    "pretraining_tp": 1, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "float32", "use_cache": True, "vocab_size": 4096,
}  # fmt: skip


def tensors(rng):
    hidden, inner, vocab = 256, 1024, 4096

    def normal(*shape):
        return torch.empty(shape).normal_(0.0, 0.06, generator=rng)

    yield "model.embed_tokens.weight", normal(vocab, hidden)
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for norm in ["input_layernorm", "post_attention_layernorm"]:
            yield f"{at}.{norm}.weight", torch.ones(hidden)
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"]:
            yield f"{at}.self_attn.{name}.weight", normal(hidden, hidden)
        yield f"{at}.mlp.gate_proj.weight", normal(inner, hidden)
        yield f"{at}.mlp.up_proj.weight", normal(inner, hidden)
        yield f"{at}.mlp.down_proj.weight", normal(hidden, inner)
    yield "model.norm.weight", torch.ones(hidden)
    head = normal(vocab, hidden)
    head[CONFIG["eos_token_id"]] = 0
    yield "lm_head.weight", head


def tokenizer():
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = string.ascii_letters + string.digits
    pairs = [(a, b) for a in letters for b in letters][: 4096 - len(words) - len(SPECIAL)]
    words += [a + b for a, b in pairs]
    made = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(word, normalized=False) for word in SPECIAL])
    assert [made.token_to_id(word) for word in SPECIAL] == [4094, 4095]
    return made


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    weights = dict(tensors(torch.Generator().manual_seed(1)))
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer().save(str(out / "tokenizer.json"))
    settings = {
        "bos_token": "<bos>", "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>", "model_max_length": CONFIG["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    for name, content in [("config", CONFIG), ("tokenizer_config", settings)]:
        (out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    print(sum(w.numel() for w in weights.values()), "parameters in", out)


if __name__ == "__main__":
    main()
