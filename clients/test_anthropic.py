"""The official Anthropic client: messages."""

import anthropic
import pytest
from jsonschema import validate
from schemas import PARAMETERS

HELLO = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS = [
    {"name": name, "description": name, "input_schema": schema}
    for name, schema in PARAMETERS.items()
]
PLAIN = {"type": "disabled"}


def fields_of(server, **fields):
    """A short message without thinking, the same one each time."""
    request = {"model": server.model, "max_tokens": 24, "messages": HELLO, "thinking": PLAIN}
    return request | {"extra_body": {"seed": 7}} | fields


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


def prompt_tokens(message):
    # Anthropic counts what the cache held apart.
    return message.usage.input_tokens + message.usage.cache_read_input_tokens


def test_a_message(claude, server):
    message = claude.messages.create(**fields_of(server))
    assert message.type == "message" and message.role == "assistant"
    assert message.model == server.model and text_of(message)
    assert message.stop_reason == "max_tokens" and message.usage.output_tokens == 24
    told = claude.messages.create(**fields_of(server, system="Be brief."))
    assert prompt_tokens(told) > prompt_tokens(message)
    parts = [{"type": "text", "text": "Be brief."}]
    assert text_of(claude.messages.create(**fields_of(server, system=parts))) == text_of(told)


def test_a_stream_says_the_same(claude, server):
    whole = claude.messages.create(**fields_of(server))
    with claude.messages.stream(**fields_of(server)) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == text_of(whole) == text_of(final)
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert prompt_tokens(final) == prompt_tokens(whole)


def test_thinking_is_a_block(claude, server):
    thinking = {"type": "enabled", "budget_tokens": 1024}
    fields = fields_of(server, thinking=thinking, max_tokens=1100)
    message = claude.messages.create(**fields)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].thinking and text_of(message)
    with claude.messages.stream(**fields) as stream:
        final = stream.get_final_message()
    assert final.content[0].thinking == message.content[0].thinking
    assert text_of(final) == text_of(message)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "count"}])
def test_a_tool(claude, server, choice):
    fields = fields_of(server, tools=TOOLS, tool_choice=choice, max_tokens=400)
    message = claude.messages.create(**fields)
    assert message.stop_reason == "tool_use"
    uses = [block for block in message.content if block.type == "tool_use"]
    assert uses
    for use in uses:
        validate(use.input, PARAMETERS[use.name])
    with claude.messages.stream(**fields) as stream:
        final = stream.get_final_message()
    assert [block.input for block in final.content if block.type == "tool_use"] == [
        use.input for use in uses
    ]
    answer = {"type": "tool_result", "tool_use_id": uses[0].id, "content": "cold"}
    turns = HELLO + [
        {"role": "assistant", "content": [block.model_dump() for block in message.content]},
        {"role": "user", "content": [answer]},
    ]
    later = claude.messages.create(**fields_of(server, tools=TOOLS, messages=turns))
    assert prompt_tokens(later) > prompt_tokens(message)


def test_stop_sequences(claude, server):
    whole = text_of(claude.messages.create(**fields_of(server)))
    words = [whole[at : at + 3] for at in range(4, len(whole) - 3)]
    stop = next(word for word in words if word.isascii() and not word.isspace())
    message = claude.messages.create(**fields_of(server, stop_sequences=[stop]))
    assert message.stop_reason == "stop_sequence" and message.stop_sequence == stop
    assert text_of(message).strip() == whole.split(stop)[0].strip()


@pytest.mark.parametrize(
    "field, value",
    [("max_tokens", -1), ("max_tokens", "x"), ("messages", []), ("messages", "hi"),
     ("temperature", 7), ("tools", {}), ("tool_choice", {"type": "never"}), ("system", 5),
     ("stop_sequences", "x"), ("messages", [{"role": "robot", "content": "hi"}])],
)  # fmt: skip
def test_a_wrong_field_is_named(claude, server, field, value):
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(**fields_of(server, extra_body={field: value}))
    body = caught.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert field in body["error"]["message"], body


def test_an_unknown_model_is_not_found(claude, server):
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.create(**fields_of(server, model="claude-none"))
    assert caught.value.body["error"]["type"] == "not_found_error"


def test_keys(guarded):
    ask = fields_of(guarded)
    key = guarded.auth["Authorization"].removeprefix("Bearer ")
    for given in [{"api_key": key}, {"auth_token": key}]:
        with anthropic.Anthropic(base_url=guarded.url, max_retries=0, **given) as claude:
            assert text_of(claude.messages.create(**ask))
    with anthropic.Anthropic(base_url=guarded.url, max_retries=0, api_key="wrong") as claude:
        with pytest.raises(anthropic.AuthenticationError):
            claude.messages.create(**ask)
