"""The official OpenAI client: chat completions."""

import asyncio
import json
import math

import openai
import pytest
from schemas import NO_THINKING
from serving import eventually

HELLO = [{"role": "user", "content": "What is the weather in Paris?"}]


def ask(client, server, **fields):
    """A short answer without thinking, the same one each time."""
    request = {"messages": HELLO, "seed": 7, "max_completion_tokens": 24} | fields
    request.setdefault("extra_body", NO_THINKING)
    return client.chat.completions.create(model=server.model, **request)


def joined(stream):
    """Content, thinking, finish reason and usage of a stream."""
    content, thinking, finish, usage = "", "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            thinking += getattr(choice.delta, "reasoning_content", None) or ""
            finish = choice.finish_reason or finish
    return content, thinking, finish, usage


def of(answer):
    """The same of an answer that is no stream."""
    message = answer.choices[0].message
    thinking = getattr(message, "reasoning_content", None) or ""
    return message.content or "", thinking, answer.choices[0].finish_reason, answer.usage


def test_models(client, server):
    models = client.models.list().data
    assert [model.object for model in models] == ["model"]
    assert client.models.retrieve(models[0].id).id == models[0].id


def test_an_answer(client, server):
    answer = ask(client, server)
    assert answer.object == "chat.completion" and answer.model == server.model
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    usage = answer.usage
    assert usage.completion_tokens == 24
    assert usage.total_tokens == usage.prompt_tokens + 24
    assert ask(client, server, max_completion_tokens=5).usage.completion_tokens == 5
    fields = {"max_completion_tokens": openai.NOT_GIVEN, "max_tokens": 6}
    assert ask(client, server, **fields).usage.completion_tokens == 6


@pytest.mark.parametrize("fields", [{}, {"temperature": 0}, {"top_p": 0.5, "presence_penalty": 1}])
@pytest.mark.parametrize("extra", [NO_THINKING, {}])
def test_a_stream_says_the_same(client, server, fields, extra):
    whole = of(ask(client, server, extra_body=extra, **fields))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    assert joined(ask(client, server, extra_body=extra, **options, **fields)) == whole
    assert joined(ask(client, server, extra_body=extra, stream=True, **fields))[:3] == whole[:3]


def test_the_other_models_stream_the_same(other_server):
    with openai.OpenAI(base_url=f"{other_server.url}/v1", api_key="none", max_retries=0) as client:
        for extra in [NO_THINKING, {}]:
            whole = of(ask(client, other_server, extra_body=extra))
            assert whole[0] or whole[1]
            assert joined(ask(client, other_server, extra_body=extra, stream=True))[:3] == whole[:3]


def test_n_answers(client, server):
    answer = ask(client, server, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) == 3
    assert answer.usage.completion_tokens == 72
    streamed = ["", "", ""]
    for chunk in ask(client, server, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_a_seed_decides(client, server):
    texts = [ask(client, server, seed=seed).choices[0].message.content for seed in [1, 1, 2]]
    assert texts[0] == texts[1] != texts[2]


def test_a_known_prefix_costs_no_prefill_and_changes_nothing(client, server):
    messages = [{"role": "user", "content": "Count: one two three. " * 40}]
    first, second = (ask(client, server, messages=messages) for _ in range(2))
    assert of(first)[:3] == of(second)[:3]
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert second.usage.prompt_tokens - 64 <= cached < second.usage.prompt_tokens


def test_stop(client, server):
    whole = ask(client, server).choices[0].message.content
    words = [whole[at : at + 3] for at in range(4, len(whole) - 3)]
    stop = next(word for word in words if word.isascii() and not word.isspace())
    answer = ask(client, server, stop=[stop]).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.message.content.strip() == whole.split(stop)[0].strip()
    assert joined(ask(client, server, stop=stop, stream=True))[0] == answer.message.content


def test_logprobs(client, server):
    answer = ask(client, server, logprobs=True, top_logprobs=5, temperature=0)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    for entry in entries:
        top = [other.logprob for other in entry.top_logprobs]
        assert len(top) == 5 and top == sorted(top, reverse=True)
        assert sum(map(math.exp, top)) <= 1.0001
        # Greedy: the likeliest is what was taken.
        assert entry.logprob == top[0] and entry.token == entry.top_logprobs[0].token
    stream = ask(client, server, logprobs=True, top_logprobs=5, temperature=0, stream=True)
    parts = [choice.logprobs for chunk in stream for choice in chunk.choices if choice.logprobs]
    streamed = [entry.logprob for part in parts for entry in part.content or []]
    assert streamed == [entry.logprob for entry in entries]


def test_logit_bias_decides(client, server):
    [token] = server.tokens("a")
    answer = ask(client, server, logit_bias={str(token): 100}, max_completion_tokens=4)
    assert answer.choices[0].message.content == "aaaa"


def test_the_end_token_ends(client, server):
    [token] = server.tokens("<|im_end|>")
    answer = ask(client, server, logit_bias={str(token): 100})
    assert answer.choices[0].finish_reason == "stop"
    assert not answer.choices[0].message.content


def test_thinking_has_its_own_fields_and_a_budget(client, server):
    answer = ask(client, server, extra_body={})
    message = answer.choices[0].message
    # The template opened the thinking and a random model hardly closes it.
    assert message.reasoning_content and not message.content
    assert message.reasoning == message.reasoning_content
    for stream in [False, True]:
        budget = {"extra_body": {"thinking_token_budget": 8}, "max_completion_tokens": 40}
        answer = ask(client, server, stream=stream, **budget)
        content, thinking, _, _ = joined(answer) if stream else of(answer)
        assert content and thinking and "</think>" not in content + thinking
    history = HELLO + [
        {"role": "assistant", "content": "Cold.", "reasoning": "It is winter."},
        {"role": "user", "content": "And in Berlin?"},
    ]
    lengths = [ask(client, server, messages=history).usage.prompt_tokens]
    history[1]["reasoning_content"] = history[1].pop("reasoning")
    lengths.append(ask(client, server, messages=history).usage.prompt_tokens)
    del history[1]["reasoning_content"]
    lengths.append(ask(client, server, messages=history).usage.prompt_tokens)
    assert lengths[0] == lengths[1] > lengths[2]


def test_content_in_parts(client, server):
    parts = [{"type": "text", "text": HELLO[0]["content"]}]
    answer = ask(client, server, messages=[{"role": "user", "content": parts}])
    assert of(answer) == of(ask(client, server))


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", -1), ("temperature", "hot"), ("top_p", 1.5), ("top_p", [None]),
        ("n", 0), ("n", 1_000_000), ("max_completion_tokens", -1), ("max_tokens", 1.5),
        ("messages", []), ("messages", "hello"), ("messages", None), ("stop", [1]),
        ("presence_penalty", 3), ("frequency_penalty", "x"), ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": 101}), ("top_logprobs", 21), ("seed", "x"), ("stream", "yes"),
        ("tools", {}), ("tool_choice", "sometimes"), ("response_format", {"type": "xml"}),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(client, server, field, value):
    with pytest.raises(openai.BadRequestError) as caught:
        extra = {"logprobs": True} if field == "top_logprobs" else {}
        ask(client, server, extra_body=NO_THINKING | extra | {field: value})
    error = caught.value.body
    assert error["type"] == "invalid_request_error" and error["message"]
    assert (error["param"] or "").startswith(field), error


def test_an_unknown_field_is_accepted(client, server):
    extra = NO_THINKING | {"bananas": 3, "store": False, "user": "someone", "metadata": {}}
    assert of(ask(client, server, extra_body=extra)) == of(ask(client, server))


def test_an_unknown_model_is_not_found(client, server):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-none", messages=HELLO)
    assert caught.value.body["param"] == "model" and "gpt-none" in caught.value.body["message"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-none")


def test_a_prompt_beyond_the_context_names_both_lengths(client, server):
    messages = [{"role": "user", "content": "one two three " * 8192}]
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, server, messages=messages)
    assert "8192" in caught.value.body["message"], caught.value.body
    # Without a limit an answer may run to the end of the context, and ends there.
    text = "one two three " * 8192
    tokens = server.tokens(text[: len(text) // 8])
    tokens = (tokens * 8)[: 8192 - 20]
    goes_on = {str(server.tokens("<|im_end|>")[0]): -100}
    done = client.completions.create(
        model=server.model, prompt=tokens, max_tokens=19, seed=1, logit_bias=goes_on
    )
    assert done.choices[0].finish_reason == "length"
    assert done.usage.completion_tokens == 19


def test_many_at_once_answer_as_alone(client, server):
    def fields(k):
        text = f"Say {k} words. " + "And more. " * (7 * k % 11)
        return {"messages": [{"role": "user", "content": text}], "seed": k,
                "max_completion_tokens": 10 + 3 * k, "temperature": k % 3 * 0.5}  # fmt: skip

    async def together():
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as crowd:
            return await asyncio.gather(*(ask(crowd, server, **fields(k)) for k in range(20)))

    alone = [of(ask(client, server, **fields(k)))[:3] for k in range(20)]
    assert [of(answer)[:3] for answer in asyncio.run(together())] == alone


def test_going_away_frees_the_slot(client, server):
    end = server.tokens("<|im_end|>")[0]
    before = server.metric("generation_tokens_total")
    stream = ask(
        client, server, stream=True, max_completion_tokens=7000, logit_bias={str(end): -100}
    )
    for _ in range(3):
        next(stream)
    assert server.metric("num_requests_running") == 1
    stream.close()
    eventually(server.is_idle, 2, "the stream's slot is free")
    assert server.metric("generation_tokens_total") - before < 7000


def test_chunks_are_events_and_the_last_says_done(server):
    body = {"model": server.model, "messages": HELLO, "max_tokens": 5, "stream": True}
    status, headers, text = server.post("/v1/chat/completions", body)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    events = text.decode().strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
