"""The official OpenAI client: tools and structured output. A random model has no choice but to
obey a grammar, so whatever it writes shows whether the grammar holds."""

import asyncio
import json
import re
from typing import Literal

import openai
import pytest
from jsonschema import validate
from pydantic import BaseModel, ConfigDict
from schemas import COUNT, NO_THINKING, PARAMETERS, TOOLS, WEATHER
from test_chat import ask, of

NAMED = {"type": "function", "function": {"name": "count"}}
LONG = {"max_completion_tokens": 400}


def calls_of_stream(stream):
    """Id, name and arguments of each call, and the finish reason."""
    calls, finish, pieces = {}, None, 0
    for chunk in stream:
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or []:
                known = calls.setdefault(call.index, ["", "", ""])
                known[0] += call.id or ""
                known[1] += call.function.name or ""
                known[2] += call.function.arguments or ""
                pieces += 1
    return list(calls.values()), finish, pieces


@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("seed", range(4))
def test_a_call_fits_its_schema(client, server, choice, seed):
    fields = {"tools": TOOLS, "tool_choice": choice, "seed": seed} | LONG
    answer = ask(client, server, **fields).choices[0]
    assert answer.message.tool_calls and answer.finish_reason in ("tool_calls", "stop")
    for call in answer.message.tool_calls:
        assert call.type == "function" and call.id
        assert choice == "required" or call.function.name == "count"
        validate(json.loads(call.function.arguments), PARAMETERS[call.function.name])
    calls, finish, pieces = calls_of_stream(ask(client, server, stream=True, **fields))
    whole = [[call.function.name, call.function.arguments] for call in answer.message.tool_calls]
    assert [call[1:] for call in calls] == whole and finish == answer.finish_reason
    assert all(call[0] for call in calls) and pieces > 2 * len(calls), "arguments in pieces"


def test_calls_of_the_other_models(other_server):
    with openai.OpenAI(base_url=f"{other_server.url}/v1", api_key="none", max_retries=0) as client:
        for seed in range(3):
            fields = {"tools": TOOLS, "tool_choice": "required", "seed": seed} | LONG
            calls = ask(client, other_server, **fields).choices[0].message.tool_calls
            for call in calls:
                validate(json.loads(call.function.arguments), PARAMETERS[call.function.name])
            streamed, _, _ = calls_of_stream(ask(client, other_server, stream=True, **fields))
            assert [call.function.arguments for call in calls] == [call[2] for call in streamed]


def test_one_call_where_one_is_asked_for(client, server):
    fields = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    for seed in range(4):
        answer = ask(client, server, seed=seed, **fields, **LONG)
        assert len(answer.choices[0].message.tool_calls) == 1


def test_a_call_after_thinking(client, server):
    extra = {"thinking_token_budget": 8}
    fields = {"tools": TOOLS, "tool_choice": NAMED, "extra_body": extra} | LONG
    message = ask(client, server, **fields).choices[0].message
    assert message.reasoning_content
    validate(json.loads(message.tool_calls[0].function.arguments), COUNT)


def test_tools_are_not_called_where_they_may_not_be(client, server):
    answer = ask(client, server, tools=TOOLS, tool_choice="none")
    assert not answer.choices[0].message.tool_calls and answer.choices[0].message.content


def test_a_conversation_with_a_call_goes_on(client, server):
    first = ask(client, server, tools=TOOLS, tool_choice=NAMED, **LONG)
    call = first.choices[0].message
    messages = [
        {"role": "user", "content": "Count."},
        call,
        {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "1 and 2"},
    ]
    second = ask(client, server, messages=messages, tools=TOOLS)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert second.choices[0].message.content or second.choices[0].message.tool_calls


def json_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": schema}}


@pytest.mark.parametrize("schema", [WEATHER, COUNT])
@pytest.mark.parametrize("extra", [NO_THINKING, {"thinking_token_budget": 8}])
def test_json_of_a_schema(client, server, schema, extra):
    for seed in range(3):
        fields = {"response_format": json_schema(schema), "seed": seed, "extra_body": extra} | LONG
        answer = ask(client, server, **fields).choices[0]
        assert answer.finish_reason == "stop"
        validate(json.loads(answer.message.content), schema)
    pieces = [c.choices[0].delta.content or "" for c in ask(client, server, stream=True, **fields)
              if c.choices]  # fmt: skip
    assert "".join(pieces) == answer.message.content


class Forecast(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Berlin"]
    rain: bool


def test_a_class_of_pydantic(client, server):
    answer = client.chat.completions.parse(
        model=server.model, messages=[{"role": "user", "content": "Rain?"}], seed=3,
        response_format=Forecast, extra_body=NO_THINKING, max_completion_tokens=200,
    )  # fmt: skip
    assert isinstance(answer.choices[0].message.parsed, Forecast)


def test_any_json(client, server):
    # The braces are made likely: left alone, noise would not close them for long.
    bias = {str(server.tokens(brace)[0]): bias for brace, bias in [("{", 50), ("}", 100)]}
    fields = {"response_format": {"type": "json_object"}, "logit_bias": bias} | LONG
    answer = ask(client, server, **fields).choices[0]
    assert answer.finish_reason == "stop"
    assert isinstance(json.loads(answer.message.content), dict)


def test_a_schema_that_is_cut_short_says_so(client, server):
    fields = {"response_format": json_schema(WEATHER), "max_completion_tokens": 3}
    answer = ask(client, server, **fields).choices[0]
    assert answer.finish_reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.message.content)


@pytest.mark.parametrize(
    "extra, pattern",
    [
        ({"guided_regex": r"[a-c]{3}-\d{2}"}, r"[a-c]{3}-\d{2}"),
        ({"structured_outputs": {"regex": r"\d{3} (yes|no)"}}, r"\d{3} (yes|no)"),
        ({"guided_choice": ["red", "green"]}, "red|green"),
        ({"structured_outputs": {"choice": ["red", "green"]}}, "red|green"),
        ({"structured_outputs": {"grammar": 'start: "one " ("two" | "three")'}}, "one (two|three)"),
        ({"guided_json": COUNT}, r"\s*\{[^{}]*\}\s*"),
        ({"structured_outputs": {"json": COUNT}}, r"\s*\{[^{}]*\}\s*"),
    ],
)
def test_a_pattern_holds(client, server, extra, pattern):
    for seed in range(3):
        answer = ask(client, server, seed=seed, extra_body=NO_THINKING | extra, **LONG).choices[0]
        assert answer.finish_reason == "stop"
        assert re.fullmatch(pattern, answer.message.content), answer.message.content


@pytest.mark.parametrize(
    "extra, field",
    [
        ({"guided_regex": "(unclosed"}, "guided_regex"),
        ({"structured_outputs": {"regex": "a{2,1}"}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "start: ("}}, "structured_outputs"),
        ({"response_format": json_schema({"type": "strange"})}, "response_format"),
        ({"response_format": json_schema({"$ref": "#/nowhere"})}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 3}}}],
          "tool_choice": "required"}, "tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "none"}}},
         "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_grammar_is_refused(client, server, extra, field):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, server, extra_body=NO_THINKING | extra)
    assert (caught.value.body["param"] or "").startswith(field), caught.value.body


def test_a_grammar_among_many_is_the_same(client, server):
    def fields(k):
        return {"response_format": json_schema([WEATHER, COUNT][k % 2]), "seed": k} | LONG

    async def together():
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as crowd:
            return await asyncio.gather(*(ask(crowd, server, **fields(k)) for k in range(12)))

    alone = [of(ask(client, server, **fields(k)))[:3] for k in range(12)]
    assert [of(answer)[:3] for answer in asyncio.run(together())] == alone
