"""Requests that are wrong, odd or huge: never a status of 5xx, and the server goes on.

After every test the fixture `well` asks for an ordinary completion.
"""

import gzip
import json
import math
import time

import pytest

HUGE = [-1, 0, 2**31, 2**53, 2**63, 2**64, 10**30, 1e308, -1e308, 0.5, 1e-320]
ODD = ["x", "", "1", None, True, [], {}, [1], {"a": 1}, "\x00", "NaN"]
NUMBERS = [
    "temperature", "top_p", "top_k", "min_p", "n", "best_of", "seed", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "logprobs", "top_logprobs", "prompt_logprobs",
    "thinking_token_budget", "min_tokens", "priority",
]  # fmt: skip
OTHERS = [
    "stream", "stop", "stop_token_ids", "logit_bias", "stream_options", "user", "model", "echo",
    "suffix", "tools", "tool_choice", "response_format", "parallel_tool_calls", "metadata",
    "chat_template_kwargs", "guided_regex", "structured_outputs", "reasoning_effort",
    "return_token_ids", "skip_special_tokens", "ignore_eos",
]  # fmt: skip
LIMITS = {
    "/v1/chat/completions": ["max_tokens", "max_completion_tokens", "messages"],
    "/v1/completions": ["max_tokens", "prompt"],
    "/v1/responses": ["max_output_tokens", "input", "instructions", "text", "reasoning"],
    "/v1/messages": ["max_tokens", "messages", "system", "stop_sequences", "thinking"],
    "/tokenize": ["prompt", "messages", "add_special_tokens", "add_generation_prompt"],
    "/detokenize": ["tokens"],
}
HELLO = [{"role": "user", "content": "Hi"}]


def good(server, path):
    """A request of that route that ends at once."""
    ends = {"model": server.model, "logit_bias": {str(server.tokens("<|im_end|>")[0]): 100}}
    return {
        "/v1/chat/completions": ends | {"messages": HELLO, "max_tokens": 2},
        "/v1/completions": ends | {"prompt": "a", "max_tokens": 2},
        "/v1/responses": ends | {"input": "a", "max_output_tokens": 2},
        "/v1/messages": ends | {"messages": HELLO, "max_tokens": 2},
        "/tokenize": {"prompt": "a"},
        "/detokenize": {"tokens": [1, 2]},
    }[path]


def refused(server, path, body, headers=None, statuses=(400, 404, 413, 415, 422)):
    """A refusal with words and a field `error`, not an end of the connection."""
    status, _, text = server.post(path, body, headers)
    assert status in statuses, (path, status, text[:300])
    error = json.loads(text)["error"]
    assert error["message"] and error["type"], error
    assert "panic" not in error["message"]
    return error


def no_5xx(server, path, body, headers=None, within=30):
    started = time.monotonic()
    status, _, text = server.post(path, body, headers, timeout=120)
    took = time.monotonic() - started
    assert 200 <= status < 500, (path, str(body)[:300], status, text[:300])
    assert took < within, f"{path} took {took:.1f} s for {str(body)[:200]}"
    if status >= 400:
        assert json.loads(text)["error"]["message"], text[:300]
    return status


@pytest.mark.parametrize("path", LIMITS)
def test_each_field_with_each_odd_value(server, path):
    base = good(server, path)
    assert no_5xx(server, path, base) == 200
    for field in NUMBERS + OTHERS + LIMITS[path]:
        for value in HUGE + ODD:
            no_5xx(server, path, base | {field: value})
    for number in ["NaN", "Infinity", "-0", "1e999", "01", "+1", "0x1", "1" * 5000]:
        text = json.dumps(base)[:-1] + f', "temperature": {number}}}'
        no_5xx(server, path, text.encode())


@pytest.mark.parametrize("path", LIMITS)
def test_each_field_absent_or_alone(server, path):
    base = good(server, path)
    for field in base:
        no_5xx(server, path, {name: value for name, value in base.items() if name != field})
        no_5xx(server, path, {field: base[field]})
    refused(server, path, {})


@pytest.mark.parametrize(
    "messages",
    [
        [], [{}], [[]], [None], ["hi"], [{"role": "user"}], [{"role": "robot", "content": "hi"}],
        [{"role": 5, "content": "hi"}], [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "strange"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "assistant", "tool_calls": [{}]}], [{"role": "tool", "content": "x"}],
        [{"role": "assistant", "tool_calls": "x"}], [{"role": "tool", "tool_call_id": 7}],
    ],
)  # fmt: skip
def test_messages_that_are_none(server, messages):
    for path in ["/v1/chat/completions", "/v1/messages", "/tokenize"]:
        body = good(server, path) | {"messages": messages}
        body.pop("prompt", None)
        assert 200 <= no_5xx(server, path, body) < 500
    assert no_5xx(server, "/v1/responses", good(server, "/v1/responses") | {"input": messages})


@pytest.mark.parametrize("content", ["", " ", "\x00", "\ufeff", "\u200d" * 1000, "a" * 10_000])
def test_messages_that_are_odd(server, content):
    for messages in [
        [{"role": "user", "content": content}],
        [{"role": "system", "content": content}],
        [{"role": "assistant", "content": content}],
        [{"role": "user", "content": content, "name": content}],
    ]:
        body = good(server, "/v1/chat/completions") | {"messages": messages}
        no_5xx(server, "/v1/chat/completions", body)


def test_very_many_of_everything(server):
    chat, path = good(server, "/v1/chat/completions"), "/v1/chat/completions"
    no_5xx(server, path, chat | {"messages": HELLO * 10_000})
    no_5xx(server, path, chat | {"stop": [f"stop{k}" for k in range(1000)]})
    no_5xx(server, path, chat | {"stop": ["", "a" * 1_000_000]})
    no_5xx(server, path, chat | {"logit_bias": {str(k): 1 for k in range(100_000)}})
    no_5xx(server, path, chat | {"stop_token_ids": list(range(100_000))})
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    no_5xx(server, path, chat | {"tools": [tool] * 5000})
    no_5xx(server, path, chat | {"metadata": {str(k): "x" for k in range(100_000)}})
    completion = good(server, "/v1/completions")
    no_5xx(server, "/v1/completions", completion | {"prompt": ["a"] * 100_000})
    no_5xx(server, "/v1/completions", completion | {"prompt": [[1]] * 100_000})
    no_5xx(server, "/v1/completions", completion | {"prompt": ""})
    for field, value in [("n", 10**6), ("best_of", 10**6), ("n", 2**40)]:
        refused(server, "/v1/completions", completion | {field: value})
    no_5xx(server, "/v1/completions", completion | {"max_tokens": 2**40})
    no_5xx(server, "/v1/completions", completion | {"prompt_embeds": "gASV", "bananas": 1})


def test_every_penalty_with_every_way_of_decoding(server):
    ways = [{"temperature": 0}, {"temperature": 1}, {"top_k": 1}, {"top_p": 0.01}, {"min_p": 1.0},
            {"temperature": 2, "top_k": 3, "top_p": 0.5}, {"logprobs": 5}, {"n": 2},
            {"echo": True, "logprobs": 1}, {"stream": True}]  # fmt: skip
    penalties = [{"presence_penalty": -2}, {"frequency_penalty": 2}, {"repetition_penalty": 2},
                 {"repetition_penalty": 0.01}, {"logit_bias": {"5": -100}}]  # fmt: skip
    base = {"model": server.model, "prompt": "one two", "max_tokens": 8, "seed": 1}
    for way in ways:
        for penalty in penalties:
            assert no_5xx(server, "/v1/completions", base | way | penalty) == 200, (way, penalty)


def test_prompts_at_the_end_of_the_context(server):
    token, path = server.tokens("a"), "/v1/completions"
    base = {"model": server.model, "temperature": 0}
    for length, max_tokens in [(8190, 1), (8191, 1)]:
        body = base | {"prompt": token * length, "max_tokens": max_tokens}
        choice = server.json(path, body)["choices"][0]
        assert choice["finish_reason"] == "length"
    for length in [8192, 8193, 100 * 8192]:
        body = base | {"prompt": token * length, "max_tokens": 5}
        error = refused(server, path, body, statuses=(400, 413))
        assert error["param"] in ("prompt", "max_tokens", None)
    # No limit: the answer runs to the end of the context at most.
    body = base | {"prompt": token * 8100, "max_tokens": 5000}
    status, _, text = server.post(path, body)
    assert status == 400 or json.loads(text)["choices"][0]["finish_reason"] in ("length", "stop")


def test_bodies_that_are_no_json(server):
    path, chat = "/v1/chat/completions", good(server, "/v1/chat/completions")
    whole = json.dumps(chat).encode()
    for cut in range(0, len(whole), 7):
        refused(server, path, whole[:cut])
    for body in [b"", b" ", b"null", b"[]", b"1", b'"x"', b"{", b"{]}", b"\xff\xfe", whole + b"x",
                 b"\xef\xbb\xbf" + b"{}", b"'a'", b"{'a': 1}", b"\x00" * 1000]:  # fmt: skip
        refused(server, path, body)
    invalid = whole.replace(b"Hi", b"H\xff\xfei")
    refused(server, path, invalid)
    for escape in [b"\\ud800", b"\\udc00\\ud800", b"\\u12", b"\\x41"]:
        no_5xx(server, path, whole.replace(b"Hi", escape))
    twice = whole[:-1] + b', "max_tokens": 1, "max_tokens": 2}'
    no_5xx(server, path, twice)


@pytest.mark.parametrize("depth", [127, 129, 1000, 100_000])
@pytest.mark.parametrize("field", ["messages", "tools", "response_format", "bananas", "metadata"])
def test_deep_json(server, depth, field):
    path = "/v1/chat/completions"
    for opening, closing in [("[", "]"), ('{"a":', "}")]:
        deep = opening * depth + "1" + closing * depth
        text = json.dumps(good(server, path))[:-1] + f', "{field}": {deep}}}'
        status = no_5xx(server, path, text.encode())
        assert status < 400 or status in (400, 413, 422)


def test_bodies_of_other_kinds(server):
    path = "/v1/chat/completions"
    whole = json.dumps(good(server, path)).encode()
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]:
        status, _, _ = server.post(path, whole, {"Content-Type": kind})
        assert status in (400, 415), (kind, status)
    for kind in ["application/json; charset=utf-8", "APPLICATION/JSON"]:
        assert server.post(path, whole, {"Content-Type": kind})[0] == 200
    bomb = gzip.compress(b" " * 50_000_000)
    for body in [gzip.compress(whole), bomb]:
        refused(server, path, body, {"Content-Encoding": "gzip"})


def test_a_body_beyond_the_limit(server):
    before = server.resident_bytes()
    body = b'{"messages": "' + b"a" * (64 << 20) + b'"}'
    assert server.post("/v1/chat/completions", body)[0] == 413
    assert server.resident_bytes() - before < 64 << 20


@pytest.mark.parametrize("unit", ["^", "a", " ", "\n", "🙂", "\u200d🙂", "<think>", "é", "1", '"'])
def test_a_megabyte_of_one_thing(server, unit):
    text = unit * (1_000_000 // len(unit.encode()))
    started = time.monotonic()
    status, _, answer = server.post("/tokenize", {"prompt": text})
    assert status in (200, 400, 413), (status, answer[:300])
    assert time.monotonic() - started < 10
    body = good(server, "/v1/chat/completions") | {"messages": [{"role": "user", "content": text}]}
    no_5xx(server, "/v1/chat/completions", body, within=10)


def test_special_tokens_in_a_text_are_text(server):
    def count(content, token):
        messages = [{"role": "user", "content": content}]
        return server.json("/tokenize", {"messages": messages})["tokens"].count(token)

    for special in ["<|im_end|>", "<|im_start|>", "<tool_call>", "</think>", "<|endoftext|>"]:
        [token] = server.tokens(special)
        assert count(f"a {special}user b", token) == count("a b", token), special


def test_every_chunk_is_utf8(server):
    for seed in range(5):
        body = {"model": server.model, "prompt": "世界 🙂", "max_tokens": 120, "seed": seed,
                "temperature": 1.5, "stream": True}  # fmt: skip
        _, _, text = server.post("/v1/completions", body)
        events = text.decode("utf-8").split("\n\n")[:-2]
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        text = "".join(c["choices"][0]["text"] for c in chunks if c["choices"])
        whole = server.json("/v1/completions", body | {"stream": False})
        assert whole["choices"][0]["text"] == text


def schema(of):
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": of}}


DEEP = {"type": "object"}
for _ in range(60):
    DEEP = {"type": "object", "properties": {"a": DEEP}}
BRANCHING = {"anyOf": [{"type": "object", "properties": {f"k{j}": {"type": "integer"}
             for j in range(20)}, "required": [f"k{i}"]} for i in range(60)]}  # fmt: skip
SCHEMAS = [
    {"$ref": "#"}, {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    {"$ref": "http://127.0.0.1:1/x"}, {"$ref": "file:///etc/passwd"}, DEEP, BRANCHING,
    {"type": "array", "minItems": 10**9}, {"type": "array", "maxItems": 2**63},
    {"type": "string", "minLength": 10**9}, {"type": "string", "maxLength": -1},
    {"type": "integer", "minimum": 5, "maximum": 1}, {"type": "integer", "multipleOf": 0},
    {"type": "number", "minimum": 1e308, "maximum": 1e309}, {"enum": []}, {"type": []}, {"not": {}},
    {"enum": list(range(1_000_000))}, {"enum": ["x" * 1_000_000]}, False, True, {}, [], 7,
    {"allOf": [{"type": "string"}, {"type": "integer"}]}, {"patternProperties": {"(": {}}},
    {"properties": {f"k{i}": {"type": "string"} for i in range(50_000)}},
    {"type": "object", "minProperties": 10**6}, {"type": "string", "format": "regex" * 1000},
]  # fmt: skip


@pytest.mark.parametrize("at", range(len(SCHEMAS)))
def test_hostile_schemas(server, at):
    base, path = good(server, "/v1/chat/completions"), "/v1/chat/completions"
    plain = {"chat_template_kwargs": {"enable_thinking": False}, "max_tokens": 20}
    no_5xx(server, path, base | plain | {"response_format": schema(SCHEMAS[at])}, within=10)
    function = {"name": "f", "parameters": SCHEMAS[at], "strict": True}
    tools = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    no_5xx(server, path, base | plain | tools, within=10)


PATTERNS = [
    "(a+)+b", "(.*){1,1000}{1,1000}", r"\p{L}{1,10000}", "(" * 60_000 + ")" * 60_000,
    "a{1000000000}", "(((a{100}){100}){100}){100}", "(a|aa)+$", "[", "(?<=a)b", r"(a)\1", "(?=a)",
    "x" * 1_000_000, "(?:" + "|".join(f"w{i}" for i in range(20_000)) + ")+", r"\b\B", "^$", "",
    "(?i)" + "ſK" * 1000, "." * 5000 + "*", "((a?){50}){50}a{50}",
]  # fmt: skip


@pytest.mark.parametrize("at", range(len(PATTERNS)))
def test_hostile_patterns_in_every_field(server, at):
    pattern = PATTERNS[at]
    quoted = pattern.replace("/", "\\/")
    held = {"type": "string", "pattern": pattern}
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": held},
                                            "required": ["a"]}}  # fmt: skip
    base, path = good(server, "/v1/chat/completions"), "/v1/chat/completions"
    plain = {"chat_template_kwargs": {"enable_thinking": False}, "max_tokens": 20}
    for field in [
        {"guided_regex": pattern}, {"structured_outputs": {"regex": pattern}},
        {"response_format": schema(held)},
        {"response_format": schema({"patternProperties": {pattern: {"type": "null"}}})},
        {"tools": [{"type": "function", "function": function}], "tool_choice": "required"},
        {"structured_outputs": {"grammar": f"start: /{quoted}/"}}, {"guided_grammar": pattern},
        {"structured_outputs": {"choice": [pattern] * 100}},
    ]:  # fmt: skip
        no_5xx(server, path, base | plain | field, within=10)


def test_a_grammar_with_sixty_thousand_groups(server):
    base, path = good(server, "/v1/chat/completions"), "/v1/chat/completions"
    for grammar in [
        "start: " + "(" * 60_000 + '"a"' + ")" * 60_000,
        "start: start", "start: a\na: b\nb: a", 'start: start start | "a"', "start:",
        "%ignore /.*/",
        "start: " + " | ".join(f'"w{i}"' for i in range(20_000)), 'start: "a"' * 10_000,
        '%import common.WORD\nstart: WORD', 'start: %json {"$ref": "#"}', "\x00",
    ]:  # fmt: skip
        no_5xx(server, path, base | {"structured_outputs": {"grammar": grammar}}, within=10)


def test_unique_schemas_leave_nothing_behind(server):
    base, path = good(server, "/v1/chat/completions"), "/v1/chat/completions"
    plain = {"chat_template_kwargs": {"enable_thinking": False}}

    def ask(k):
        fields = {f"field{k}": {"type": "integer"}, f"other{k}": {"enum": [f"value{k}"]}}
        of = {"type": "object", "properties": fields, "required": list(fields)}
        no_5xx(server, path, base | plain | {"response_format": schema(of)})

    for k in range(200):
        ask(k)
    before = server.resident_bytes()
    for k in range(200, 800):
        ask(k)
    grown = server.resident_bytes() - before
    assert grown < 64 << 20, f"{grown >> 20} MiB more after 600 schemas"


def test_numbers_in_answers_are_json(server):
    """Minus infinity is no JSON: a token that cannot be must not break the answer."""
    body = {"model": server.model, "prompt": "one", "max_tokens": 3, "logprobs": 5, "echo": True,
            "logit_bias": {"5": -100}, "top_k": 1}  # fmt: skip
    _, _, text = server.post("/v1/completions", body)

    def no_constant(name):
        raise AssertionError(f"{name} in an answer")

    answer = json.loads(text, parse_constant=no_constant)
    found = answer["choices"][0]["logprobs"]["token_logprobs"][1:]
    assert all(math.isfinite(logprob) for logprob in found)
