"""A tiny random model as a Hugging Face folder: enough to talk to a server, made in a second.

    python clients/random_model.py qwen|deepseek|llama OUT

The weights say nothing, so every answer is noise; but the tokenizer is a byte-level BPE with the
special tokens of its family, and the chat template takes tools and thinking as the family's does.
Everything follows from the kind: two runs give the same files.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = (
    """
The weather in Berlin is cold and clear. The weather in Paris is warm; in Lisbon it rains.
What is two plus three? Two plus three is five. What is the answer? The answer is five.
A small model writes noise, and the noise must come back whole: every byte, every token.
{"name": "weather", "arguments": {"city": "Paris", "unit": "celsius", "days": 3}}
{"answer": true, "list": [1, 2, 3], "nothing": null, "text": "words and words"}
Count: one two three four five six seven eight nine ten. 0 1 2 3 4 5 6 7 8 9 10 20 30.
def add(left, right): return left + right. Grüße aus Köln; ça va? 你好，世界. Привет, мир.
"""
    * 4
)
VOCABULARY = 448  # 256 bytes, merges of the corpus, and the added tokens

QWEN_TEMPLATE = """
{%- macro text(message) -%}{{ message.content if message.content else '' }}{%- endmacro -%}
{%- if tools or messages[0].role == 'system' -%}
{{- '<|im_start|>system\\n' -}}
{%- if messages[0].role == 'system' -%}{{- text(messages[0]) -}}{%- endif -%}
{%- if tools -%}
{{- '\\nFunctions:\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\\n</tools>\\nA call is:\\n<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>' -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>\\n' + text(message) + '\\n</tool_response><|im_end|>\\n' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if message.reasoning_content -%}
{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- text(message) -}}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function if call.function else call -%}
{%- set arguments = function.arguments -%}
{%- if arguments is not string -%}{%- set arguments = arguments | tojson -%}{%- endif -%}
{{- '\\n<tool_call>\\n{"name": "' + function.name + '", "arguments": ' + arguments -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif message.role == 'user' or not loop.first -%}
{{- '<|im_start|>' + message.role + '\\n' + text(message) + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- else -%}
{{- '<think>\\n' -}}
{%- endif -%}
{%- endif -%}
"""

DEEPSEEK_TEMPLATE = """
{%- macro text(message) -%}{{ message.content if message.content else '' }}{%- endmacro -%}
{{- bos_token -}}
{%- for message in messages if message.role == 'system' -%}{{- text(message) -}}{%- endfor -%}
{%- if tools -%}
{{- '\\n\\nFunctions:' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{- '<｜User｜>' + text(message) -}}
{%- elif message.role == 'tool' -%}
{{- '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + text(message) -}}
{{- '<｜tool▁output▁end｜><｜tool▁outputs▁end｜>' -}}
{%- elif message.role == 'assistant' -%}
{{- '<｜Assistant｜></think>' + text(message) -}}
{%- if message.tool_calls -%}
{{- '<｜tool▁calls▁begin｜>' -}}
{%- for call in message.tool_calls -%}
{%- set arguments = call.function.arguments -%}
{%- if arguments is not string -%}{%- set arguments = arguments | tojson -%}{%- endif -%}
{{- '<｜tool▁call▁begin｜>' + call.function.name + '<｜tool▁sep｜>' + arguments -}}
{{- '<｜tool▁call▁end｜>' -}}
{%- endfor -%}
{{- '<｜tool▁calls▁end｜>' -}}
{%- endif -%}
{{- '<｜end▁of▁sentence｜>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<｜Assistant｜>' -}}
{%- if thinking is defined and thinking is false -%}{{- '</think>' -}}
{%- else -%}{{- '<think>' -}}{%- endif -%}
{%- endif -%}
"""

LLAMA_TEMPLATE = """
{%- macro text(message) -%}{{ message.content if message.content else '' }}{%- endmacro -%}
{{- bos_token -}}
{%- if tools -%}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nFunctions:' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\\nA call is {"name": function name, "parameters": {...}} and nothing else.<|eot_id|>' -}}
{%- endif -%}
{%- for message in messages -%}
{%- set role = 'ipython' if message.role == 'tool' else message.role -%}
{{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' -}}
{%- if message.tool_calls -%}
{%- set function = message.tool_calls[0].function -%}
{%- set arguments = function.arguments -%}
{%- if arguments is not string -%}{%- set arguments = arguments | tojson -%}{%- endif -%}
{{- '{"name": "' + function.name + '", "parameters": ' + arguments + '}' -}}
{%- else -%}
{{- text(message) -}}
{%- endif -%}
{{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

# Per kind: the template, bos, eos and pad, tokens that a decoder hides, and tokens that it shows.
TEXT = {
    "qwen": (
        QWEN_TEMPLATE, None, "<|im_end|>", "<|endoftext|>",
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>",
         "</think>"],
    ),
    "deepseek": (
        DEEPSEEK_TEMPLATE, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
        "<｜▁pad▁｜>",
        ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"],
        ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜tool▁calls▁begin｜>",
         "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
         "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>",
         "<｜tool▁output▁end｜>", "<｜tool▁sep｜>"],
    ),
    "llama": (
        LLAMA_TEMPLATE, "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>",
        ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>",
         "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
         "<|python_tag|>"],
        [],
    ),
}  # fmt: skip

COMMON = {
    "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 128,
    "max_position_embeddings": 8192, "num_attention_heads": 4, "num_hidden_layers": 2,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "torch_dtype": "float32",
    "use_cache": True, "vocab_size": VOCABULARY,
}  # fmt: skip
CONFIG = {
    "qwen": COMMON | {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "max_window_layers": 2,
        "model_type": "qwen2", "num_key_value_heads": 2, "sliding_window": None,
        "tie_word_embeddings": True, "use_sliding_window": False,
    },
    "llama": COMMON | {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "head_dim": 16, "mlp_bias": False, "model_type": "llama", "num_key_value_heads": 2,
        "pretraining_tp": 1, "rope_scaling": None, "tie_word_embeddings": False,
    },
    "deepseek": COMMON | {
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0, "ep_size": 1, "first_k_dense_replace": 1, "kv_lora_rank": 32,
        "model_type": "deepseek_v3", "moe_intermediate_size": 32, "moe_layer_freq": 1,
        "n_group": 1, "n_routed_experts": 8, "n_shared_experts": 1, "norm_topk_prob": True,
        "num_experts_per_tok": 2, "num_key_value_heads": 4, "num_nextn_predict_layers": 1,
        "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "rope_scaling": None,
        "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False,
        "topk_group": 1, "topk_method": "noaux_tc", "v_head_dim": 16,
    },
}  # fmt: skip


def tokenizer(kind):
    """The tokenizer, with bytes 0..255 among its tokens: every text can be said."""
    _, _, _, _, special, shown = TEXT[kind]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(special) - len(shown), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    made.train_from_iterator([CORPUS], trainer)
    made.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    made.add_tokens([AddedToken(t, normalized=False, special=False) for t in shown])
    assert made.get_vocab_size() == VOCABULARY, made.get_vocab_size()
    return made


def linear(at, shape, std=0.08):
    return [(f"{at}.weight", shape, std)]


def mlp(at, hidden, width):
    up = linear(f"{at}.gate_proj", (width, hidden)) + linear(f"{at}.up_proj", (width, hidden))
    return up + linear(f"{at}.down_proj", (hidden, width))


def latent_attention(c, at):
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    nope, rope, rank = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["kv_lora_rank"]
    return [
        (f"{at}.q_a_proj.weight", (c["q_lora_rank"], hidden), 0.08),
        (f"{at}.q_a_layernorm.weight", (c["q_lora_rank"],), None),
        (f"{at}.q_b_proj.weight", (heads * (nope + rope), c["q_lora_rank"]), 0.08),
        (f"{at}.kv_a_proj_with_mqa.weight", (rank + rope, hidden), 0.08),
        (f"{at}.kv_a_layernorm.weight", (rank,), None),
        (f"{at}.kv_b_proj.weight", (heads * (nope + c["v_head_dim"]), rank), 0.08),
        (f"{at}.o_proj.weight", (hidden, heads * c["v_head_dim"]), 0.08),
    ]


def grouped_attention(c, at):
    hidden = c["hidden_size"]
    key = hidden // c["num_attention_heads"] * c["num_key_value_heads"]
    tensors = linear(f"{at}.o_proj", (hidden, hidden))
    for name, rows in [("q_proj", hidden), ("k_proj", key), ("v_proj", key)]:
        tensors += linear(f"{at}.{name}", (rows, hidden))
        if c["model_type"] == "qwen2":
            tensors.append((f"{at}.{name}.bias", (rows,), 0.08))
    return tensors


def experts(c, at):
    hidden, width, count = c["hidden_size"], c["moe_intermediate_size"], c["n_routed_experts"]
    tensors = linear(f"{at}.gate", (count, hidden))
    tensors.append((f"{at}.gate.e_score_correction_bias", (count,), 0.02))
    for expert in range(count):
        tensors += mlp(f"{at}.experts.{expert}", hidden, width)
    return tensors + mlp(f"{at}.shared_experts", hidden, width * c["n_shared_experts"])


def layer(c, index):
    at, hidden = f"model.layers.{index}", c["hidden_size"]
    tensors = [(f"{at}.{n}.weight", (hidden,), None)
               for n in ["input_layernorm", "post_attention_layernorm"]]  # fmt: skip
    attention = latent_attention if "kv_lora_rank" in c else grouped_attention
    tensors += attention(c, f"{at}.self_attn")
    if index >= c.get("first_k_dense_replace", c["num_hidden_layers"]):
        return tensors + experts(c, f"{at}.mlp")
    return tensors + mlp(f"{at}.mlp", hidden, c["intermediate_size"])


def tensors_of(c):
    """Name, shape and standard deviation of every tensor; None where it is all ones."""
    hidden, rows = c["hidden_size"], (c["vocab_size"], c["hidden_size"])
    tensors = [("model.embed_tokens.weight", rows, 0.12), ("model.norm.weight", (hidden,), None)]
    if not c["tie_word_embeddings"]:
        tensors += linear("lm_head", rows, 0.3)
    predictions = c.get("num_nextn_predict_layers", 0)
    for index in range(c["num_hidden_layers"] + predictions):
        tensors += layer(c, index)
    for index in range(c["num_hidden_layers"], c["num_hidden_layers"] + predictions):
        at = f"model.layers.{index}"
        tensors += linear(f"{at}.eh_proj", (hidden, 2 * hidden))
        tensors += [(f"{at}.{n}.weight", (hidden,), None)
                    for n in ["enorm", "hnorm", "shared_head.norm"]]  # fmt: skip
    return tensors


def weights(c, seed):
    rng = np.random.Generator(np.random.PCG64(seed))
    made = {}
    for name, shape, std in sorted(tensors_of(c), key=lambda tensor: tensor[0]):
        ones = np.ones(shape, np.float32)
        made[name] = ones if std is None else np.float32(std) * rng.standard_normal(shape, "f4")
    # The predicting layer shares the embedding and the head, and files hold them twice.
    for index in range(c["num_hidden_layers"], c["num_hidden_layers"] + 1):
        if f"model.layers.{index}.eh_proj.weight" in made:
            made[f"model.layers.{index}.embed_tokens.weight"] = made["model.embed_tokens.weight"]
            made[f"model.layers.{index}.shared_head.head.weight"] = made["lm_head.weight"]
    return made


def write(kind, out):
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    template, bos, eos, pad, _, _ = TEXT[kind]
    words = tokenizer(kind)
    words.save(str(out / "tokenizer.json"))
    ids = {
        "bos_token_id": words.token_to_id(bos) if bos else None,
        "eos_token_id": words.token_to_id(eos),
        "pad_token_id": words.token_to_id(pad),
    }
    config = CONFIG[kind] | ids
    settings = {
        "add_bos_token": bos is not None, "bos_token": bos, "chat_template": template,
        "clean_up_tokenization_spaces": False, "eos_token": eos,
        "model_max_length": config["max_position_embeddings"], "pad_token": pad,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    for name, content in [("config", config), ("generation_config", ids),
                          ("tokenizer_config", settings)]:  # fmt: skip
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (out / f"{name}.json").write_text(text)
    seed = sorted(TEXT).index(kind) + 1
    save_file(weights(config, seed), out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2])
