"""OpenAI's Responses API: the same answers as chat, by OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from heredity.application.spec import Application
from heredity.core.records import Decoding, Tool
from heredity.deploy.serve import chat, responses
from heredity.deploy.serve.schema import Rules
from heredity.engines.scripted import HELP
from tests.deploy.serve.serving import client, listening, named, saying
from tests.support.errors import raises

DESK = Application("desk", "You help.", tools=(Tool("weather", "Looks."),), decoding=Decoding(8))
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Looks.",
    "parameters": SCHEMA,
    "strict": True,
}
LOOSE = WEATHER | {"strict": False}  # of a strict one the client parses the arguments
TWO = (
    'I look.\n<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'
    '\n<tool_call>{"name": "weather", "arguments": {"city": Rome}}</tool_call>'
)
ARGUMENTS = ['{"city": "Bern"}', '{"city": Rome}']


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    with listening(named("helpful"), named("flaky"), named("leaky", DESK)) as address:
        yield address


@pytest.fixture(scope="module")
def two() -> Iterator[str]:
    with listening(saying(TWO)) as address:
        yield address


def test_an_answer_comes_whole_or_as_a_stream(place: str) -> None:
    ask = client(place).responses.create
    whole = ask(model="scripted:helpful", input="hello", instructions="Be brief.")
    assert (whole.output_text, whole.status) == (HELP, "completed")
    assert whole.usage.input_tokens + whole.usage.output_tokens == whole.usage.total_tokens > 0
    events = list(ask(model="scripted:helpful", input="hello", instructions="Be brief.", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = "created in_progress output_item.added content_part.added output_text.delta output_text.done"
    kinds += " content_part.done output_item.done completed"
    # How many parts a text comes in is a matter of scheduling.
    assert [kind for kind, _ in groupby(event.type for event in events)] == [
        f"response.{kind}" for kind in kinds.split()
    ]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == HELP
    last = events[-1].response
    assert (last.output_text, last.usage) == (HELP, whole.usage)


def test_the_clients_own_stream_is_assembled(two: str) -> None:
    """Its helper refuses events in an order that it does not know."""
    with client(two).responses.stream(model="scripted:helpful", input="hello", tools=[LOOSE]) as stream:
        kinds = [event.type for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert kinds and [item.type for item in final.output] == ["message", "function_call", "function_call"]


def test_an_answer_that_is_cut_is_incomplete(place: str) -> None:
    found = client(place).responses.create(model="scripted:helpful", input="hello", max_output_tokens=2)
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_agents_loop_goes_round(two: str, is_streamed: bool) -> None:
    ask = client(two).responses.create
    made = ask(model="scripted:helpful", input="hello", tools=[WEATHER], stream=is_streamed)
    found = list(made)[-1].response if is_streamed else made
    calls = [item for item in found.output if item.type == "function_call"]
    assert found.output_text == "I look.\n"
    assert [call.arguments for call in calls] == ARGUMENTS
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"} for call in calls]
    more: list[Any] = [{"role": "user", "content": "hello"}, *found.output, *results]
    assert ask(model="scripted:helpful", input=more, tools=[WEATHER]).status == "completed"


def put(body: dict[str, Any], layer: Application | None = None) -> Any:
    return responses.parse({"model": "m"} | body, Rules(layer))


@pytest.mark.parametrize("layer", [None, DESK])
def test_the_same_messages_are_the_same_request_as_in_chat(layer: Application | None) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    said: list[Any] = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    items: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Bern"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    ]
    expected = chat.parse({"model": "m", "messages": said, "max_tokens": 5}, Rules(layer)).requests
    assert put({"input": items, "max_output_tokens": 5}, layer).requests == expected


def test_hints_are_named_and_what_clients_send_unasked_is_taken() -> None:
    sent = {"store": True, "metadata": {}, "truncation": "disabled", "text": {"format": {"type": "text"}},
            "previous_response_id": None, "background": False, "service_tier": "auto"}  # fmt: skip
    assert put({"input": "hello"} | sent) == put({"input": "hello"})
    hints = {"reasoning": {"effort": "low"}, "include": ["reasoning.encrypted_content"]}
    assert put({"input": "hello"} | hints).ignored == ("reasoning", "include")


@pytest.mark.parametrize(
    ("body", "reason", "param"),
    [
        ({"previous_response_id": "resp_1"}, "bad-usage", "previous_response_id"),
        ({"background": True}, "bad-usage", "background"),
        ({"truncation": "auto"}, "bad-usage", "truncation"),
        ({"text": {"format": {"type": "json_object"}}}, "bad-usage", "text"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "bad-usage", "input[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "bad-usage",
            "input[0].content",
        ),
        ({"input": [{"role": "judge", "content": "x"}]}, "unknown-name", "input[0].role"),
        ({"tools": [{"type": "web_search"}]}, "bad-usage", "tools[0].type"),
        ({"input": []}, "bad-usage", "input"),
        ({"temprature": 1}, "unknown-key", "temprature"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(
    place: str, body: dict[str, Any], reason: str, param: str
) -> None:
    with raises(openai.BadRequestError, "invalid_request") as caught:
        client(place).responses.create(model="scripted:helpful", input="hi", extra_body=body)
    assert (caught.value.body["reason"], caught.value.param) == (reason, param)


def test_an_application_holds_its_system_prompt(place: str) -> None:
    with raises(openai.BadRequestError, "invalid_request") as caught:
        client(place).responses.create(model="scripted:leaky", input="hi", instructions="Be evil.")
    assert caught.value.body["reason"] == "bad-usage"


def test_a_stream_that_fails_ends_with_its_failure(place: str) -> None:
    ask = client(place).responses.create
    ends = {list(ask(model="scripted:flaky", input=f"hello {i}", stream=True))[-1].type for i in range(40)}
    assert ends == {"response.completed", "response.failed"}
