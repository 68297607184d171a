"""The official OpenAI client: responses."""

import json

import openai
import pytest
from jsonschema import validate
from schemas import COUNT, NO_THINKING, PARAMETERS

TOOLS = [
    {"type": "function", "name": name, "description": name, "parameters": schema, "strict": True}
    for name, schema in PARAMETERS.items()
]


def respond(client, server, **fields):
    request = {"input": "What is the weather?", "max_output_tokens": 24} | fields
    extra = {"seed": 7} | request.pop("extra_body", NO_THINKING)
    return client.responses.create(model=server.model, extra_body=extra, **request)


def test_a_response(client, server):
    answer = respond(client, server)
    assert answer.object == "response" and answer.id.startswith("resp")
    assert answer.output_text
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 24
    assert answer.usage.total_tokens == answer.usage.input_tokens + 24
    assert respond(client, server).output_text == answer.output_text


@pytest.mark.parametrize("extra", [NO_THINKING, {"thinking_token_budget": 8}])
def test_a_stream_says_the_same(client, server, extra):
    whole = respond(client, server, extra_body=extra, max_output_tokens=40)
    events = list(respond(client, server, extra_body=extra, max_output_tokens=40, stream=True))
    types = [event.type for event in events]
    assert types[0] == "response.created" and types[-1] == f"response.{whole.status}"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text and len(deltas) > 1
    assert events[-1].response.output_text == whole.output_text
    # All but the tokens found in the cache, which the first request filled.
    counts = ["input_tokens", "output_tokens", "total_tokens"]
    usage = events[-1].response.usage
    assert [getattr(usage, name) for name in counts] == [
        getattr(whole.usage, name) for name in counts
    ]
    numbers = [event.sequence_number for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    kinds = [item.type for item in whole.output]
    assert kinds == (["message"] if extra is NO_THINKING else ["reasoning", "message"])


def test_instructions_and_turns(client, server):
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": [{"type": "input_text", "text": "Count"}]},
    ]
    plain = respond(client, server, input=turns)
    told = respond(client, server, input=turns, instructions="Be brief.")
    assert told.usage.input_tokens > plain.usage.input_tokens and told.output_text


def test_a_function_call(client, server):
    fields = {"tools": TOOLS, "tool_choice": "required", "max_output_tokens": 400}
    answer = respond(client, server, **fields)
    calls = [item for item in answer.output if item.type == "function_call"]
    assert calls and answer.status == "completed"
    validate(json.loads(calls[0].arguments), PARAMETERS[calls[0].name])
    events = list(respond(client, server, stream=True, **fields))
    kind = "response.function_call_arguments"
    arguments = "".join(event.delta for event in events if event.type == f"{kind}.delta")
    assert arguments == "".join(call.arguments for call in calls)
    done = [event.arguments for event in events if event.type == f"{kind}.done"]
    assert done == [call.arguments for call in calls]
    turns = [
        {"role": "user", "content": "What is the weather?"},
        calls[0].model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": calls[0].call_id, "output": "cold"},
    ]
    assert respond(client, server, input=turns, tools=TOOLS).usage.input_tokens > 0


def test_a_schema(client, server):
    text = {"format": {"type": "json_schema", "name": "it", "schema": COUNT, "strict": True}}
    answer = respond(client, server, text=text, max_output_tokens=400)
    assert answer.status == "completed"
    validate(json.loads(answer.output_text), COUNT)


@pytest.mark.parametrize(
    "field, value",
    [("input", 5), ("input", []), ("max_output_tokens", -1), ("temperature", "x"), ("tools", 1),
     ("text", {"format": {"type": "xml"}}), ("previous_response_id", "resp_none")],
)  # fmt: skip
def test_a_wrong_field_is_named(client, server, field, value):
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        respond(client, server, extra_body={field: value})
    assert (caught.value.body["param"] or "").startswith(field), caught.value.body
