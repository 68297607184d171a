"""Writes fuzz/corpus/safetensors, fuzz/corpus/config, fuzz/corpus/chat_request and the models of
fuzz/corpus/gguf: small files, each broken in one way.

Of the first three, files whose names start with `valid` are accepted and all others refused. Of the
last, it writes `valid_model_*`, which are accepted, and `model_*`, which are refused for what they
say, not for how. Run it from anywhere; it needs Python alone and always writes the same bytes.
"""

import json
import struct
from pathlib import Path

CORPUS = Path(__file__).resolve().parent / "corpus"


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def file(header, data=0, length=None):
    """A file of this header, a JSON value or its bytes, with zeros for data."""
    if not isinstance(header, bytes):
        header = json.dumps(header, separators=(",", ":")).encode()
    length = len(header) if length is None else length
    return struct.pack("<Q", length) + header + bytes(data)


def valid_safetensors():
    sizes = {
        "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8,
        "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
    }
    types, end = {}, 0
    for dtype, size in sizes.items():
        types[dtype.lower()] = entry([2], end, end + 2 * size, dtype)
        end += 2 * size
    metadata = {"__metadata__": {"format": "pt"}, "w": entry([2, 3], 0, 24)}
    return {
        "valid_one": file({"w": entry([2], 0, 8)}, 8),
        "valid_two_reversed": file({"b": entry([2], 8, 16), "a": entry([2], 0, 8)}, 16),
        "valid_types": file(types, end),
        "valid_metadata": file(metadata, 24),
        "valid_padded": file(json.dumps(metadata).encode() + b"      ", 24),
        "valid_empty": file({}),
        "valid_scalar": file({"s": entry([], 0, 4)}, 4),
        "valid_half_bytes": file({"f4": entry([2, 3], 0, 3, "F4"),
                                  "f6": entry([4], 3, 6, "F6_E2M3")}, 6),
        "valid_eight_dimensions": file({"w": entry([1] * 8, 0, 4)}, 4),
        "valid_odd_names": file({"": entry([1], 0, 4), "ü\x1b[2J\"": entry([1], 4, 8)}, 8),
    }


def safetensors():
    good = entry([2], 0, 8)
    one = file({"w": good}, 8)
    two = lambda other, data=16: file({"good": good, "bad": other}, data)
    raw = lambda text, data=4: file(text.encode(), data)
    plain = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    huge = 2**64 // 8 * 8 - 8
    files = valid_safetensors()
    lengths = {"0": 0, "7": 7, "2_63": 2**63, "2_64_less_1": 2**64 - 1,
               "beyond": len(one) + 1, "100_mb": 100_000_001}
    for name, length in lengths.items():
        files[f"length_{name}"] = struct.pack("<Q", length) + one[8:]
    files |= {
        "empty_file": b"",
        "cut_in_length": one[:5],
        "cut_in_header": one[:30],
        "cut_in_data": one[:-1],
        "trailing_zip": one + b"PK\x03\x04",
        "trailing_header": file(b"{}{}"),
        "lfs_pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "overlap": two(entry([2], 4, 12)),
        "reversed": two(entry([2], 16, 8)),
        "gap": two(entry([1], 12, 16)),
        "past_end": two(entry([4], 8, 24)),
        "far_past_end": file({"w": entry([huge], 0, huge, "U8")}, 8),
        "wrong_size": two(entry([3], 8, 16)),
        "zero": two(entry([0, 2], 8, 8), 8),
        "product_overflow": two(entry([2**40, 2**40], 8, 16)),
        "product_wraps": two(entry([2**62 + 2], 8, 16)),
        "negative": two(entry([-2], 8, 16)),
        "fraction": two(entry([2.0], 8, 16)),
        "nine_dimensions": two(entry([1] * 9, 8, 12), 12),
        "odd_bits": two(entry([3], 8, 10, "F4"), 10),
        "type_unknown": two(entry([2], 8, 16, "X9")),
        "type_long": two(entry([2], 8, 16, "\x1b[2J" * 150)),
        "not_utf8": file(b'{"\xff":{}}'),
        "lone_surrogate": raw('{"\\ud800":%s}' % plain),
        "key_twice": raw('{"w":%s,"w":%s}' % (plain, plain)),
        "metadata_twice": raw('{"__metadata__":{},"__metadata__":{},"w":%s}' % plain),
        "field_twice": raw('{"w":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
        "field_missing": raw('{"w":{"dtype":"F32","shape":[1]}}'),
        "field_long": raw('{"w":{"%s":1}}' % ("\\u001b[2J" * 180)),
        "shape_is_long_text": raw('{"w":{"shape":"%s"}}' % ("x" * 1900)),
        "offsets_three": raw('{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}'),
        "many_dimensions": raw('{"w":{"shape":[%s1]}}' % ("1," * 900)),
        "many_tensors": raw("{%s}" % ",".join('"%d":%s' % (i, plain) for i in range(30))),
        "deep": raw('{"w":%s' % ("[" * 1900)),
        "deep_metadata": raw('{"__metadata__":%s%s}' % ("[" * 900, "]" * 900)),
        "list": raw("[]"),
        "blank_before": raw(" {}"),
        "open": raw('{"w":'),
    }
    return {f"{name}.safetensors": data for name, data in files.items()}


GQA = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
       "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 20}
V2 = {"model_type": "deepseek_v2", "hidden_size": 8, "intermediate_size": 12,
      "num_hidden_layers": 3, "num_attention_heads": 2, "q_lora_rank": None, "kv_lora_rank": 10,
      "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 3, "vocab_size": 20,
      "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2,
      "moe_intermediate_size": 6, "first_k_dense_replace": 1, "topk_method": "greedy",
      "routed_scaling_factor": 1.0}
V3 = V2 | {"model_type": "deepseek_v3", "q_lora_rank": 6, "topk_method": "noaux_tc",
           "scoring_func": "sigmoid", "n_group": 2, "topk_group": 1, "norm_topk_prob": True,
           "routed_scaling_factor": 2.5}
YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
        "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
       "weight_block_size": [128, 128]}


def valid_configs():
    moe = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2,
           "moe_intermediate_size": 6, "mlp_only_layers": [1], "decoder_sparse_step": 1}
    return {
        "valid_llama": GQA | {"rope_scaling": LLAMA3, "eos_token_id": [1, 2, 3]},
        "valid_llama_biased": GQA | {"attention_bias": True, "tie_word_embeddings": True},
        "valid_linear": GQA | {"rope_scaling": {"type": "linear", "factor": 2.5}},
        "valid_qwen2": GQA | {"model_type": "qwen2", "use_sliding_window": False,
                              "sliding_window": 4096, "max_window_layers": 1},
        "valid_qwen3": GQA | {"model_type": "qwen3", "head_dim": 16, "rope_theta": 1e6},
        "valid_qwen3_moe": GQA | moe,
        "valid_v2_lite": V2 | {"rope_scaling": YARN},
        "valid_v2_groups": V2 | {"topk_method": "group_limited_greedy", "n_group": 2,
                                 "topk_group": 2, "q_lora_rank": 5},
        "valid_v3": V3 | {"num_nextn_predict_layers": 1, "rope_scaling": YARN},
        "valid_v3_fp8": V3 | {"quantization_config": FP8 | {"scale_fmt": "ue8m0"}},
        "valid_v3_dense": V3 | {"n_routed_experts": 0},
        "valid_kimi": V3 | {"model_type": "kimi_k2", "n_group": 1},
        "valid_rope_parameters": GQA | {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
        "valid_float_digits": GQA | {"rope_theta": 12345.678901234567, "rms_norm_eps": 1.1e-06,
                                     "initializer_range": 0.30000000000000004},
        "valid_unknown_keys": GQA | {"never_heard_of": {"a": [1, 2]}, "another": "\x1b[2J"},
        "valid_largest_counts": GQA | {"max_position_embeddings": 2**31, "vocab_size": 2**24},
    }


def config():
    texts = {name: json.dumps(value) for name, value in valid_configs().items()}
    one = lambda **changed: json.dumps(GQA | changed)
    v3 = lambda **changed: json.dumps(V3 | changed)
    yarn = lambda **changed: v3(rope_scaling=YARN | changed)
    texts |= {
        # Read one step off and written again, it moved by another step.
        "valid_float_steps": one().replace("}", ', "rope_theta": 12345.678901269134}'),
        "layers_negative": one(num_hidden_layers=-1),
        "layers_huge": one(num_hidden_layers=2**62),
        "layers_fraction": one(num_hidden_layers=1.5),
        "layers_text": one(num_hidden_layers="x" * 1700),
        "layers_zero": one(num_hidden_layers=0),
        "heads_zero": one(num_attention_heads=0),
        "heads_more_than_width": one(num_attention_heads=16, num_key_value_heads=16),
        "heads_not_divided": one(num_attention_heads=3, num_key_value_heads=2, head_dim=2),
        "experts_one": v3(n_routed_experts=1, n_group=1),
        "experts_huge": v3(n_routed_experts=65536, num_hidden_layers=4096, n_group=1),
        "chosen_more_than_experts": v3(num_experts_per_tok=5),
        "chosen_more_than_groups_hold": v3(num_experts_per_tok=3),
        "groups_not_dividing": v3(n_group=3),
        "groups_more_chosen": v3(topk_group=3),
        "theta_nan": one().replace("}", ', "rope_theta": NaN}'),
        "theta_infinite": one().replace("}", ', "rope_theta": 1e999}'),
        "theta_negative": one(rope_theta=-10000),
        "theta_zero": one(rope_theta=0.0),
        "theta_tiny": one(rope_theta=1e-45),
        "yarn_factor_zero": yarn(factor=0),
        "yarn_theta_one": v3(rope_scaling=YARN, rope_theta=1),
        "yarn_mscale_negative": yarn(mscale=-1),
        "llama3_range_empty": one(rope_scaling=LLAMA3 | {"high_freq_factor": 1.0}),
        "rope_twice": one(rope_scaling=LLAMA3, rope_parameters={"type": "linear", "factor": 2}),
        "rope_type_unknown": one(rope_scaling={"type": "dynamic", "factor": 2}),
        "rope_odd": v3(qk_rope_head_dim=3),
        "eos_beyond_vocabulary": one(eos_token_id=[1, 20]),
        "vocabulary_huge": one(vocab_size=2**63),
        "hidden_2_60": one(hidden_size=2**60),
        "parameters_too_many": one(hidden_size=2**22, intermediate_size=2**22,
                                   num_hidden_layers=4096),
        "window_used": one(use_sliding_window=True, sliding_window=64),
        "window_llama": one(sliding_window=64),
        "fp8_block_zero": v3(quantization_config=FP8 | {"weight_block_size": [0, 128]}),
        "fp8_other_method": v3(quantization_config={"quant_method": "gptq"}),
        "type_unknown": one(model_type="mamba"),
        "type_control": one(model_type="\x1b[2J" * 50),
        "field_missing": one(hidden_size=None),
        "deep": '{"a":' * 300,
        "list": "[]",
        "open": one()[:-1],
        "trailing": one() + "{}",
        "empty": "",
    }
    files = {f"{name}.json": text.encode() for name, text in texts.items()}
    return files | {"not_utf8.json": one(model_type="?").encode().replace(b"?", b"\xff")}


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(it):
    """A value with its type: u32 for int, f32 for float."""
    if isinstance(it, bool):
        return struct.pack("<I?", 7, it)
    if isinstance(it, int):
        return struct.pack("<II", 4, it)
    if isinstance(it, float):
        return struct.pack("<If", 6, it)
    return struct.pack("<I", 8) + text(it)


def gguf_file(arch, keys, tensors):
    """`tensors`: a name, dimensions with the contiguous one first, f32 values (zeros if None)."""
    keys = {"general.architecture": arch} | {f"{arch}.{key}": v for key, v in keys.items()}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    head += b"".join(text(key) + value(v) for key, v in keys.items())
    data = b""
    for name, ne, values in tensors:
        head += text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, 0, len(data))
        count = 1
        for dim in ne:
            count *= dim
        data += struct.pack(f"<{count}f", *(values or [0.0] * count))
        data += bytes(-len(data) % 32)
    return head + bytes(-len(head) % 32) + data


def gguf():
    common = {"block_count": 1, "context_length": 64, "embedding_length": 4,
              "feed_forward_length": 4, "attention.head_count": 1, "attention.head_count_kv": 1,
              "attention.layer_norm_rms_epsilon": 1e-5}
    embedding = ("token_embd.weight", [4, 5], None)
    rotary = ("rope_freqs.weight", [2], [1.0, 8.0])
    heads = [("blk.0.attn_q.weight", [4, 4], None), ("blk.0.attn_k.bias", [4], None)]
    llama = lambda keys, more: gguf_file("llama", common | keys, [embedding, *more])
    theta = {"rope.freq_base": 1e8}
    moe = common | {"expert_count": 2, "expert_used_count": 1, "expert_feed_forward_length": 3}
    stack = [("blk.0.ffn_up_exps.weight", [4, 3, 2], None)]
    mla = {"attention.kv_lora_rank": 3, "attention.key_length": 4, "attention.value_length": 2,
           "rope.dimension_count": 2, "rope.scaling.type": "yarn", "rope.scaling.factor": 40.0,
           "rope.scaling.original_context_length": 64,
           "rope.scaling.yarn_log_multiplier": 0.0707}
    parts = [("blk.0.attn_k_b.weight", [2, 3, 1], None), ("blk.0.attn_v_b.weight", [3, 2, 1], None)]
    deepseek = lambda keys, more: gguf_file("deepseek2", moe | mla | keys, [embedding, *more])
    files = {
        "valid_model_llama3": llama(theta, [rotary, *heads]),
        "valid_model_linear": llama({"rope.scale_linear": 2.0}, heads),
        "valid_model_qwen3moe": gguf_file("qwen3moe", moe, [embedding, *stack]),
        "valid_model_deepseek2": deepseek({}, [*parts, *stack]),
        "valid_model_deepseek3": deepseek({"expert_gating_func": 2, "expert_shared_count": 1,
                                           "expert_weights_norm": True}, parts),
        "model_rope_divisors": llama({}, [(*rotary[:2], [3.0, 8.0])]),
        "model_rope_divisors_infinite": llama(theta, [(*rotary[:2], [1.0, float("inf")])]),
        "model_rope_divisors_shape": llama(theta, [("rope_freqs.weight", [3], None)]),
        "model_heads_zero": llama({"attention.head_count": 0}, heads),
        "model_heads_huge": llama({"attention.head_count": 2**32 - 1}, heads),
        "model_layers_huge": llama({"block_count": 2**32 - 1}, heads),
        "model_scaling_long": llama({"rope.scaling.type": "\x1b[2J" * 250}, []),
        "model_architecture_long": gguf_file("\x1b[2J" * 100, {}, [embedding]),
        "model_layers_absent": llama({}, []).replace(b"block_count", b"block_counx"),
        "model_value_part_alone": deepseek({}, parts[1:]),
        "model_key_part_odd": deepseek({}, [("blk.0.attn_k_b.weight", [2, 9, 1], None), parts[1]]),
        "model_experts_flat": deepseek({}, [("blk.0.ffn_up_exps.weight", [4, 6], None)]),
        "model_yarn_log_nan": deepseek({"rope.scaling.yarn_log_multiplier": float("nan")}, parts),
        "model_yarn_log_huge": deepseek({"rope.scaling.yarn_log_multiplier": 3e38}, parts),
        "model_shared_huge": deepseek({"expert_gating_func": 2, "expert_shared_count": 2**31},
                                      parts),
    }
    return {f"{name}.gguf": data for name, data in files.items()}


def requests():
    """A digit that chooses the path (`promises/chat_request.rs`), and the body."""
    def chat(**more):
        return {"messages": [{"role": "user", "content": "6 * 7 ?"}]} | more
    tool = {"name": "f", "description": "a", "parameters": {"type": "object"}}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    user = {"role": "user", "content": "a"}
    turns = [user, {"role": "assistant", "content": None, "reasoning": "b", "tool_calls": [call]},
             {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "42"}]}]
    items = [user, {"type": "reasoning", "summary": [],
                    "content": [{"type": "reasoning_text", "text": "b"}]},
             item, {"type": "function_call_output", "call_id": "c", "output": "42"},
             {"role": "assistant", "content": [{"type": "output_text", "text": "c"}]}, user]
    blocks = [user, {"role": "assistant", "content": [
                  {"type": "thinking", "thinking": "b", "signature": ""}, use]},
              {"role": "user", "content": [
                  {"type": "tool_result", "tool_use_id": "t", "content": "42"},
                  {"type": "text", "text": "?"}]}]
    input_tool = {"name": "f", "input_schema": {"type": "object"}}
    message = {"messages": blocks, "max_tokens": 4}
    bodies = {
        "valid_chat": (0, chat(n=2, temperature=0.7, top_p=0.9, stop=["a", "b"], seed=-1,
                               logit_bias={"1": 5, "2": -100}, logprobs=True, top_logprobs=3)),
        "valid_chat_tools": (0, {"messages": turns, "tools": [{"type": "function",
                                                               "function": tool}]}),
        "valid_chat_effort": (0, chat(reasoning_effort="none", thinking={"budget_tokens": 3},
                                      chat_template_kwargs={"enable_thinking": False})),
        "valid_text": (1, {"prompt": ["a b", [1, 2]], "max_tokens": 0, "echo": True}),
        "valid_text_ids": (1, {"prompt": [1, 2, 3], "logprobs": 2, "stream": True}),
        "valid_response": (2, {"input": "6 * 7 ?", "instructions": "a", "metadata": {"a": "b"},
                               "include": ["message.output_text.logprobs"], "top_logprobs": 2,
                               "text": {"format": {"type": "text"}}, "store": True,
                               "reasoning": {"effort": "low", "summary": "auto"}}),
        "valid_response_items": (2, {"input": items, "tools": [{"type": "function"} | tool],
                                     "tool_choice": "auto", "max_output_tokens": 1e30}),
        "valid_message": (3, message | {"system": [{"type": "text", "text": "a"}], "top_k": 3,
                                        "stop_sequences": ["a"], "metadata": {"user_id": "b"},
                                        "thinking": {"type": "enabled", "budget_tokens": 2}}),
        "valid_message_tools": (3, message | {"tools": [input_tool],
                                              "tool_choice": {"type": "auto"}}),
        "valid_count": (4, message | {"thinking": {"type": "disabled"}}),
        "valid_tokenize": (5, {"prompt": "a <eos> b", "return_token_strs": True}),
        "valid_tokenize_chat": (5, chat()),
        "valid_detokenize": (6, {"tokens": [1, 2, 15]}),
        "valid_chat_regex": (0, chat(structured_outputs={"regex": "[ab]+"})),
        "valid_chat_called": (0, chat(tool_choice="required", tools=[{"type": "function",
                                                                      "function": tool}])),
        "valid_response_schema": (2, {"input": "a", "text": {"format": {
            "type": "json_schema", "name": "x", "schema": {"type": "object"}}}}),
        "valid_message_called": (3, message | {"tools": [input_tool],
                                               "tool_choice": {"type": "tool", "name": "f"}}),
        "valid_chat_regex_huge": (0, chat(guided_regex="(.*){1,1000}{1,1000}")),
        "response_schema_cycle": (2, {"input": "a", "text": {"format": {
            "type": "json_schema", "schema": {"$ref": "#/a", "a": {"$ref": "#/b"}}}}}),
        "chat_empty": (0, {"messages": []}),
        "chat_role": (0, {"messages": [{"role": "king", "content": "a"}]}),
        "chat_template": (0, chat(chat_template="{{ 1 }}")),
        "chat_kwargs": (0, chat(chat_template_kwargs={"tokenize": True})),
        "chat_schema_twice": (0, chat(guided_regex="a", guided_json={})),
        "chat_choice_unknown": (0, chat(tool_choice={"function": {"name": "g"}})),
        "chat_model": (0, chat(model="../../x")),
        "text_id_beyond": (1, {"prompt": [270]}),
        "text_empty": (1, {"prompt": ""}),
        "response_memory": (2, {"input": "a", "previous_response_id": "resp_1"}),
        "response_background": (2, {"input": "a", "background": True}),
        "response_item": (2, {"input": [{"type": "item_reference", "id": "x"}]}),
        "response_metadata": (2, {"input": "a", "metadata": {"a": 1}}),
        "message_no_limit": (3, {"messages": [user]}),
        "message_image": (3, {"max_tokens": 1, "messages": [
            {"role": "user", "content": [{"type": "image"}]}]}),
        "message_continued": (3, {"max_tokens": 1, "messages": blocks[:2]}),
        "count_list": (4, [1]),
        "detokenize_text": (6, {"tokens": ["a"]}),
    }
    files = {name: b"%d" % path + json.dumps(body).encode()
             for name, (path, body) in bodies.items()}
    files["not_json"] = b"0{messages"
    files["not_utf8"] = b'1{"prompt": "\xff"}'
    files["deep"] = b"2" + b"[" * 200
    files["empty"] = b""
    return files


def write(kind, files):
    folder = CORPUS / kind
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        assert len(data) < 2048, f"{name} has {len(data)} bytes"
        (folder / name).write_bytes(data)
    print(f"{folder}: {len(files)} files")


if __name__ == "__main__":
    write("safetensors", safetensors())
    write("config", config())
    write("gguf", gguf())
    write("chat_request", requests())
