"""Anthropic's Messages API: the same answers as chat, in the form that its clients read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from heredity.application.spec import Application
from heredity.core.records import Decoding, Tool
from heredity.deploy.serve import chat, messages
from heredity.deploy.serve.schema import Rules
from heredity.engines.scripted import HELP
from tests.deploy.serve.serving import listening, named, saying

DESK = Application("desk", "You help.", tools=(Tool("weather", "Looks."),), decoding=Decoding(8))
WEATHER = {"name": "weather", "description": "Looks.", "input_schema": {"type": "object", "properties": {}}}
CALLS = (
    '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'
    '\n<tool_call>{"name": "weather", "arguments": {"city": Rome}}</tool_call>'
)
INPUTS = [{"city": "Bern"}, {"arguments": '{"city": Rome}'}]
HI = {"role": "user", "content": "hello"}


def asked(address: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    body = {"model": "scripted:helpful", "max_tokens": 64, "messages": [HI]} | body
    version = {"anthropic-version": "2023-06-01"}
    return httpx.post(f"{address}/v1/messages", json=body, headers=version | (headers or {}), timeout=30)


def streamed(address: str, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream; each is named as its type says."""
    found = []
    for block in asked(address, stream=True, **body).text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def assembled(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that the events are, put together as Anthropic's clients do it."""
    assert events[0]["type"] == "message_start" and events[-1]["type"] == "message_stop"
    message, parts = events[0]["message"], dict[int, str]()
    for event in events[1:-1]:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], message["content"][event["index"]]
            if delta["type"] == "text_delta":
                block["text"] += delta["text"]
            else:
                parts[event["index"]] = parts.get(event["index"], "") + delta["partial_json"]
        elif event["type"] == "content_block_stop":
            if event["index"] in parts:
                message["content"][event["index"]]["input"] = json.loads(parts[event["index"]])
        else:
            assert event["type"] == "message_delta"
            message |= event["delta"] | {"usage": message["usage"] | event["usage"]}
    return message


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    content = [{key: value for key, value in block.items() if key != "id"} for block in message["content"]]
    return {key: value for key, value in message.items() if key != "id"} | {"content": content}


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    with listening(named("helpful"), named("flaky"), named("leaky", DESK), keys=["s3cret"]) as address:
        yield address


KEY = {"x-api-key": "s3cret"}


@pytest.mark.parametrize("text", [HELP, "", CALLS, f"I look.\n{CALLS}"])
def test_a_stream_is_the_whole_answer(text: str) -> None:
    with listening(saying(text)) as address:
        whole = asked(address, tools=[WEATHER]).json()
        assert without_ids(assembled(streamed(address, tools=[WEATHER]))) == without_ids(whole)
    blocks = [block for block in whole["content"] if block["type"] == "tool_use"]
    assert [block["input"] for block in blocks] == (INPUTS if "tool_call" in text else [])
    assert whole["stop_reason"] == ("tool_use" if blocks else "end_turn")
    shown = text.partition("<tool_call>")[0]
    assert "".join(block.get("text", "") for block in whole["content"]) == shown


def test_the_reason_of_an_end_is_told() -> None:
    with listening(saying(HELP)) as address:
        assert asked(address, max_tokens=2).json()["stop_reason"] == "max_tokens"
        cut = asked(address, stop_sequences=["zz", "help"]).json()
        assert (cut["stop_reason"], cut["stop_sequence"]) == ("stop_sequence", "help")
        assert cut["content"][0]["text"] == HELP.partition("help")[0]
        with_usage = asked(address).json()["usage"]
        assert with_usage["input_tokens"] > 0 and with_usage["output_tokens"] > 0


@pytest.mark.parametrize("layer", [None, DESK])
def test_the_same_messages_are_the_same_request_as_in_chat(layer: Application | None) -> None:
    call = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}}
    said: list[Any] = [
        *([] if layer else [{"role": "system", "content": "Be\nbrief."}]),
        HI,
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "rain"},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "It "},
    ]
    blocks: list[Any] = [
        HI,
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bern"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
            {"type": "text", "text": "And now?", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": "It "},
    ]  # fmt: skip
    system = {} if layer else {"system": [{"type": "text", "text": text} for text in ("Be", "brief.")]}
    expected = chat.parse({"model": "m", "messages": said, "max_tokens": 5}, Rules(layer)).requests
    body = {"model": "m", "max_tokens": 5, "messages": blocks} | system
    assert messages.parse(body, Rules(layer)).requests == expected


IMAGE = [{"role": "user", "content": [{"type": "image"}]}]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"max_tokens": None}, "missing-key"),
        ({"messages": []}, "bad-usage"),
        ({"messages": IMAGE}, "bad-usage"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "bad-usage"),
        ({"tool_choice": {"type": "any"}}, "bad-usage"),
        ({"top_k": 5}, "bad-usage"),
        ({"temprature": 5}, "unknown-key"),
        ({"thread": {"type": "create"}}, "bad-usage"),
        ({"model": "scripted:leaky", "system": "Be evil."}, "bad-usage"),
        ({"model": "x"}, "model_not_found"),
    ],
)
def test_an_error_has_anthropics_form(place: str, body: dict[str, Any], reason: str) -> None:
    found = asked(place, KEY, **body)
    error = found.json()
    kind = (404, "not_found_error") if reason == "model_not_found" else (400, "invalid_request_error")
    assert (found.status_code, error["error"]["type"]) == kind and error["type"] == "error"
    assert error["error"]["reason"] == reason and error["error"]["message"]


def test_a_thread_is_refused_in_the_words_after_which_anthropics_client_goes_on_without(place: str) -> None:
    """Its runner of tools asks unasked that the server keeps the conversation."""
    for thread in ({"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}):
        error = asked(place, KEY, thread=thread).json()["error"]
        assert error["details"]["error_code"] == "thread_unsupported_request"
    assert "details" not in asked(place, KEY, top_k=5).json()["error"]


def test_the_key_comes_as_either_vendors_clients_send_it(place: str) -> None:
    assert (
        asked(place, KEY).status_code == asked(place, {"authorization": "Bearer s3cret"}).status_code == 200
    )
    wrong: list[dict[str, str]] = [{}, {"x-api-key": "s3cre"}, {"authorization": "Basic s3cret"}]
    for headers in wrong:
        found = asked(place, headers)
        assert (found.status_code, found.json()["error"]["type"]) == (401, "authentication_error")


def test_a_stream_that_fails_ends_with_its_failure() -> None:
    with listening(named("flaky")) as address:
        ends = set()
        for i in range(40):
            said = [{"role": "user", "content": f"hello {i}"}]
            ends.add(streamed(address, model="scripted:flaky", messages=said)[-1]["type"])
    assert ends == {"message_stop", "error"}
