"""Tools of the caller: shown by the model's own template, and called in the formats that models write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from hypothesis import given
from hypothesis import strategies as st

from heredity.application.spec import Application
from heredity.core.records import Message, Tool, ToolCall
from heredity.deploy.serve import answers
from heredity.deploy.serve.chat import parse
from heredity.deploy.serve.schema import Rules
from heredity.engines.chat import Template, divide_answer
from tests.deploy.serve.serving import HELLO, client, listening, named, saying
from tests.support.errors import raises

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Bern"]}, "n": {"type": "integer"}},
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Looks.", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "time"}}
ONE = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern", "n": 2}}\n</tool_call>'
TWO = f'I look.\n{ONE}\n<tool_call>{{"name": "time", "arguments": {{}}}}</tool_call>'
BARE = ' {"name": "weather", "parameters": {"city": "Bern"}}'
BROKEN = '<tool_call>{"name": "weather", "arguments": {"city": Bern}}</tool_call>'
LIST = '[TOOL_CALLS] [{"name": "weather", "arguments": ["Bern"]}]'
OPEN = "One < two, [TO be] sure, and 3 <tool_cal"
OTHER = '{"name": "Ann", "parameters": {"age": 7}}'


def asked(address: str, is_streamed: bool, **more: Any) -> tuple[str | None, list[tuple[str, str]], str]:
    """The content, the calls and the finish reason of an answer."""
    body = {"model": "scripted:helpful", "messages": HELLO, "tools": [WEATHER, TIME]} | more
    made = client(address).chat.completions.create(stream=is_streamed, **body)
    if not is_streamed:
        (choice,) = made.choices
        calls = choice.message.tool_calls or []
        found = [(call.function.name, call.function.arguments) for call in calls]
        return choice.message.content, found, choice.finish_reason
    content, found, reason = "", [], ""
    for chunk in made:
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        for number, call in enumerate(choice.delta.tool_calls or []):
            assert call.index == number and call.id and call.type == "function"
            found.append((call.function.name, call.function.arguments))
        reason = choice.finish_reason or reason
    return content or None, found, reason


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("said", "content", "calls"),
    [
        (ONE, None, [("weather", '{"city": "Bern", "n": 2}')]),
        (TWO, "I look.\n", [("weather", '{"city": "Bern", "n": 2}'), ("time", "{}")]),
        (BARE, None, [("weather", '{"city": "Bern"}')]),
        (BROKEN, None, [("weather", '{"city": Bern}')]),
        (LIST, None, [("weather", '["Bern"]')]),
        (OPEN, OPEN, []),
        (OTHER, OTHER, []),
        ("", None, []),
    ],
)
def test_calls_are_handed_out_and_are_no_text(
    said: str, content: str | None, calls: list[tuple[str, str]], is_streamed: bool
) -> None:
    with listening(saying(said)) as address:
        found = asked(address, is_streamed)
    assert (found[0] or None, *found[1:]) == (content, calls, "tool_calls" if calls else "stop")


@pytest.fixture(scope="module")
def two() -> Iterator[str]:
    with listening(saying(TWO)) as address:
        yield address


@pytest.mark.parametrize("is_streamed", [False, True])
def test_one_call_at_a_time_is_one(two: str, is_streamed: bool) -> None:
    assert len(asked(two, is_streamed, parallel_tool_calls=False)[1]) == 1


@pytest.mark.parametrize("is_streamed", [False, True])
def test_with_the_choice_none_there_are_no_calls_and_no_tools(two: str, is_streamed: bool) -> None:
    content, calls, reason = asked(two, is_streamed, tool_choice="none")
    assert (content, calls, reason) == (TWO, [], "stop")


def test_an_agents_loop_goes_round(two: str) -> None:
    """What was handed out is sent back, with results, as every framework does."""
    ask = client(two).chat.completions.create
    first = ask(model="scripted:helpful", messages=HELLO, tools=[WEATHER, TIME]).choices[0].message
    results = [{"role": "tool", "tool_call_id": c.id, "content": "rain"} for c in first.tool_calls]
    more: list[Any] = [*HELLO, first, *results]
    assert ask(model="scripted:helpful", messages=more, tools=[WEATHER, TIME]).choices


def put(messages: list[Any], rules: Rules | None = None, **more: Any) -> Any:
    return parse({"model": "m", "messages": messages, "tools": [WEATHER]} | more, rules or Rules()).requests[
        0
    ]


def calling(arguments: str) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def test_a_message_that_the_client_parsed_is_taken_back(two: str) -> None:
    """OpenAI's `parse` adds what it read from the text, and sends it back."""
    tools: Any = [{**each, "function": {**each["function"], "strict": True}} for each in (WEATHER, TIME)]
    ask = client(two).chat.completions.parse
    first = ask(model="scripted:helpful", messages=HELLO, tools=tools).choices[0].message
    assert first.tool_calls[0].function.parsed_arguments == {"city": "Bern", "n": 2}
    results = [{"role": "tool", "tool_call_id": c.id, "content": "rain"} for c in first.tool_calls]
    more: list[Any] = [*HELLO, first, *results]
    assert ask(model="scripted:helpful", messages=more, tools=tools).choices


def test_the_model_sees_the_schema_that_the_caller_sent() -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": "rain"}
    request = put([*HELLO, calling('{"city": "Bern"}'), result])
    assert request.tools == (Tool("weather", "Looks.", schema=SCHEMA),)
    call = ToolCall("weather", {"city": "Bern"})
    assert request.messages[1:] == (Message("assistant", "", (call,)), Message("tool", "rain"))
    text = Template("{{ tools | tojson }}").render(request)
    assert json.loads(text) == [WEATHER]
    assert put(HELLO, tool_choice="none").tools == ()


def test_arguments_that_are_no_object_come_back_as_they_were_written() -> None:
    """A framework sends a broken call back with the error that it raised: that must not end the loop."""
    result = {"role": "tool", "tool_call_id": "c1", "content": "error: bad JSON"}
    request = put([*HELLO, calling('{"city": Bern}'), result])
    assert divide_answer(request.messages[1].content, ["weather"]).calls == (("weather", '{"city": Bern}'),)


DESK = Application("desk", "You help.", tools=(Tool("weather", "Looks up."), Tool("pay", "Pays.")))


def test_an_application_holds_its_tools() -> None:
    """Its own may be declared again, as frameworks do for the functions that they run; no other may."""
    found = parse({"model": "m", "messages": HELLO, "tools": [WEATHER]}, Rules(DESK))
    assert found.requests == parse({"model": "m", "messages": HELLO}, Rules(DESK)).requests
    assert found.ignored == ("tools",)
    with (
        raises(openai.BadRequestError, "invalid_request", mentions=["time"]) as refused,
        listening(named("leaky", DESK)) as address,
    ):
        client(address).chat.completions.create(model="scripted:leaky", messages=HELLO, tools=[TIME])
    assert (refused.value.param, refused.value.body["reason"]) == ("tools", "bad-usage")


def test_a_template_that_shows_no_tools_is_told() -> None:
    with raises(openai.BadRequestError, "invalid_request") as refused, listening(named("leaky")) as address:
        client(address).chat.completions.create(model="scripted:leaky", messages=HELLO, tools=[TIME])
    assert (refused.value.param, refused.value.body["reason"]) == ("tools", "tools-not-shown")


CALL_IN_A_BLOCK = '```json\n{\n  "name": "send",\n  "arguments": {"n": 1}\n}\n```'


def test_a_call_in_a_code_block_is_a_call_of_a_tool_that_exists() -> None:
    assert divide_answer(CALL_IN_A_BLOCK, ["send"]) == ("", (("send", '{"n": 1}'),))
    assert divide_answer(CALL_IN_A_BLOCK, ["read"]) == (CALL_IN_A_BLOCK, ())
    assert divide_answer(f"For example:\n{CALL_IN_A_BLOCK}", ["send"]).calls == ()


@pytest.mark.parametrize(
    ("text", "sent"), [(CALL_IN_A_BLOCK, ""), ("```python\n{}\n```", "```python\n{}\n```")]
)
def test_only_a_code_block_that_may_be_a_call_is_held_back(text: str, sent: str) -> None:
    filter_ = answers._BeforeCalls()
    assert "".join(map(filter_.feed, text)) == sent


PARTS = ["<tool_", "call>", "{", '"name"', "[TOOL", "_CALLS]", " ", "a", "<", "|>", "``", "`js", "on\n"]
PARTS.append(CALL_IN_A_BLOCK.replace("send", "a"))


@given(st.lists(st.sampled_from(PARTS)))
def test_what_is_streamed_is_the_beginning_of_what_is_sent_whole(parts: list[str]) -> None:
    filter_, sent, text = answers._BeforeCalls(), "", "".join(parts)
    for part in parts:
        sent += filter_.feed(part)
    assert divide_answer(text, ["a"]).text.startswith(sent)
