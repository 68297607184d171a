"""The official OpenAI client: completions, with what evaluation needs of them."""

import json
import math
import os
import subprocess

import openai
import pytest


def complete(client, server, prompt, **fields):
    request = {"max_tokens": 16, "seed": 5} | fields
    return client.completions.create(model=server.model, prompt=prompt, **request)


def score(server, rows, scratch):
    """What `bruchteil score` says of rows of token ids: a list of log-probabilities each."""
    file = scratch / "rows.jsonl"
    file.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in rows))
    command = [os.environ["BRUCHTEIL"], "score", "--quiet", server.model_dir, "--input", file]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [json.loads(line)["logprobs"] for line in lines.splitlines()]


def test_text_and_token_ids_are_the_same_prompt(client, server):
    text = "The weather in Paris is"
    tokens = server.tokens(text)
    said = complete(client, server, text)
    assert said.object == "text_completion" and said.choices[0].text
    assert said.usage.prompt_tokens == len(tokens) and said.usage.completion_tokens == 16
    assert complete(client, server, tokens).choices[0].text == said.choices[0].text


def test_several_prompts(client, server):
    prompts = ["one two", "The answer", "def add("]
    for given in [prompts, [server.tokens(prompt) for prompt in prompts]]:
        choices = complete(client, server, given, n=2).choices
        assert [choice.index for choice in choices] == list(range(6))
    alone = [complete(client, server, prompt).choices[0].text for prompt in prompts]
    together = complete(client, server, prompts).choices
    assert together[0].text == alone[0]


def test_a_stream_says_the_same(client, server):
    whole = complete(client, server, "Count: one", max_tokens=100)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    text, usage = "", None
    for chunk in complete(client, server, "Count: one", max_tokens=100, **options):
        text += chunk.choices[0].text if chunk.choices else ""
        usage = chunk.usage or usage
    assert text == whole.choices[0].text and usage == whole.usage


def test_stop_across_tokens(client, server):
    whole = complete(client, server, "Count: one", max_tokens=100).choices[0].text
    at = next(at for at in range(20, 80) if whole[at : at + 6].isascii())
    for stop in [whole[at : at + 6], whole[at + 1 : at + 4], whole[at]]:
        answer = complete(client, server, "Count: one", max_tokens=100, stop=[stop]).choices[0]
        assert answer.text == whole.split(stop)[0] and answer.finish_reason == "stop"
        stream = complete(client, server, "Count: one", max_tokens=100, stop=stop, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == answer.text


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("as_tokens", [False, True])
def test_echo_gives_what_score_gives(client, server, tmp_path, max_tokens, as_tokens):
    texts = ["The weather in Paris is warm", "two plus three", "Grüße aus Köln"]
    rows = [server.tokens(text) for text in texts]
    answer = complete(
        client, server, rows if as_tokens else texts, echo=True, logprobs=1, temperature=0,
        max_tokens=max_tokens,
    )  # fmt: skip
    scores = score(server, rows, tmp_path)
    for choice, text, row, scored in zip(answer.choices, texts, rows, scores, strict=True):
        found = choice.logprobs
        assert choice.text.startswith(text)
        count = len(row)
        assert len(found.token_logprobs) == len(found.tokens) == count + max_tokens
        assert found.token_logprobs[:count] == scored
        assert found.top_logprobs[0] is None
        for logprob, top in zip(found.token_logprobs[1:], found.top_logprobs[1:]):
            assert logprob <= max(top.values()) <= 0 and 1 <= len(top) <= 2
        assert found.text_offset[0] == 0 and found.text_offset == sorted(found.text_offset)
    assert answer.usage.completion_tokens == max_tokens * len(rows)


def test_generated_tokens_have_the_log_probabilities_of_score(client, server, tmp_path):
    prompt = server.tokens("Count: one two")
    for temperature in [0, 1, 0.3]:
        answer = complete(
            client, server, prompt, logprobs=5, temperature=temperature, max_tokens=24,
            extra_body={"return_token_ids": True},
        ).choices[0]  # fmt: skip
        row = prompt + answer.token_ids
        assert answer.logprobs.token_logprobs == score(server, [row], tmp_path)[0][len(prompt) :]


def test_echo_without_log_probabilities(client, server):
    text = "The weather"
    plain = complete(client, server, text).choices[0].text
    assert complete(client, server, text, echo=True).choices[0].text == text + plain


def test_log_probabilities_are_probabilities(client, server):
    found = complete(client, server, "one", logprobs=5, temperature=0).choices[0].logprobs
    for logprob, top in zip(found.token_logprobs, found.top_logprobs, strict=True):
        assert len(top) == 5
        assert sum(math.exp(logprob) for logprob in top.values()) <= 1.0001
        # Greedy: what was taken is the likeliest, to the last digit; lm-eval compares so.
        assert logprob == max(top.values())


@pytest.mark.parametrize(
    "field, value",
    [
        ("prompt", None), ("prompt", [[]]), ("prompt", [1, "a"]), ("prompt", [-1]),
        ("prompt", [4_000_000_000]), ("prompt", {"a": 1}), ("max_tokens", -1), ("max_tokens", "x"),
        ("logprobs", -1), ("logprobs", 1_000_000), ("best_of", 0), ("echo", "yes"),
        ("suffix", 5), ("n", -1), ("temperature", 1e308), ("min_p", 2), ("top_k", -5),
        ("repetition_penalty", 0), ("repetition_penalty", "x"), ("stop_token_ids", ["a"]),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(client, server, field, value):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, server, "a", extra_body={field: value})
    assert (caught.value.body["param"] or "").startswith(field), caught.value.body


def test_tokens_and_back(server):
    text = 'Grüße, 世界! {"a": 1}\n\n  def f(x):\t'
    found = server.json("/tokenize", {"prompt": text, "add_special_tokens": False})
    assert found["count"] == len(found["tokens"]) and found["max_model_len"] == 8192
    assert server.json("/detokenize", {"tokens": found["tokens"]})["prompt"] == text
    chat = {"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": True}
    tokens = server.json("/tokenize", chat)["tokens"]
    rendered = server.json("/detokenize", {"tokens": tokens})["prompt"]
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    info = server.json("/tokenizer_info")
    assert info["eos_token"] == "<|im_end|>" and "im_start" in info["chat_template"]
