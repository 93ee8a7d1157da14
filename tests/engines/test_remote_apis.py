"""The JSON that each remote API is sent and answers with, without a network."""

from __future__ import annotations

from typing import Any

import pytest

from heredity.core import registry
from heredity.core.errors import EngineFailure
from heredity.core.records import Decoding, Message, Request
from heredity.engines.remote.apis import ApiModule, Endpoint, MalformedAnswer, RemoteApi
from heredity.engines.remote.services import HOMES
from tests.support.errors import raises

APIS = registry.names("engines.remote.apis")
REQUEST = Request(0, (Message("system", "Be brief."), Message("user", "Hi")), Decoding(32, 0.5), 2**40 + 7)


def opened(api: str, base_url: str = "http://host", model: str = "m", **options: Any) -> RemoteApi:
    module = registry.load_as(ApiModule, "engines.remote.apis", api)
    return module.open_api(Endpoint(f"remote:{api}:{model}", api, base_url, model, options), "a key")


@pytest.mark.parametrize("api", APIS)
def test_an_api_has_a_home_and_posts_below_its_address(api: str) -> None:
    assert api in HOMES
    assert opened(api, "http://host/base/").url.startswith("http://host/base/")
    assert "//" not in opened(api, "http://host/base/").url.removeprefix("http://")


@pytest.mark.parametrize("api", APIS)
def test_exactly_one_header_holds_the_key(api: str) -> None:
    assert [value for value in opened(api).headers.values() if "a key" in value] in (
        ["a key"],
        ["Bearer a key"],
    )


@pytest.mark.parametrize(
    ("api", "url"),
    [
        ("openai", "http://host/chat/completions"),
        ("anthropic", "http://host/v1/messages"),
        ("gemini", "http://host/v1beta/models/m:generateContent"),
    ],
)
def test_the_address_of_each_api(api: str, url: str) -> None:
    assert opened(api).url == url


def test_a_tuned_gemini_keeps_its_folder_and_other_names_cannot_leave_theirs() -> None:
    assert opened("gemini", model="tunedModels/x").url == "http://host/v1beta/tunedModels/x:generateContent"
    assert "?" not in opened("gemini", model="a?key=b").url


@pytest.mark.parametrize("api", APIS)
def test_a_field_of_the_options_is_added_to_the_body(api: str) -> None:
    assert opened(api, extra={"a": 1}).body(REQUEST)["extra"] == {"a": 1}


def test_an_option_extends_the_configuration_of_gemini() -> None:
    body = opened("gemini", generationConfig={"topK": 5, "temperature": 1.0}).body(REQUEST)
    assert body["generationConfig"] == {
        "maxOutputTokens": 32, "temperature": 1.0, "topP": 1.0, "seed": (2**40 + 7) % 2**31, "topK": 5
    }  # fmt: skip


def test_the_account_of_openai_is_named_at_its_own_address_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.delenv("OPENAI_PROJECT_ID", raising=False)
    assert opened("openai", HOMES["openai"]).headers == {
        "Authorization": "Bearer a key",
        "OpenAI-Organization": "org-1",
    }
    assert opened("openai").headers == {"Authorization": "Bearer a key"}


def test_the_limit_of_tokens_has_its_new_name_at_openai_only() -> None:
    assert opened("openai", HOMES["openai"]).body(REQUEST)["max_completion_tokens"] == 32
    assert opened("openai").body(REQUEST)["max_tokens"] == 32


def test_anthropic_refuses_a_system_message_after_the_start() -> None:
    late = Request(0, (Message("user", "Hi"), Message("system", "Be brief.")), Decoding(32))
    with raises(EngineFailure, "engine-failure", mentions=["system"]):
        opened("anthropic").body(late)


def part(text: str, reason: str = "") -> dict[str, Any]:
    """A response of a stream of Gemini."""
    content = {"parts": [{"text": text}] if text else []}
    return {"candidates": [{"content": content, "finishReason": reason or None, "index": 0}]}


def test_a_reason_of_gemini_counts_only_at_the_end_of_its_answer() -> None:
    """Proxies name one in empty parts before the answer."""
    stream = opened("gemini").open_stream("")
    assert [stream.feed(each) for each in (part("", "STOP"), part("Hel"), part("lo"))] == ["", "Hel", "lo"]
    with pytest.raises(MalformedAnswer):
        stream.answer()
    stream.feed(part("", "STOP"))
    stream.feed({"usageMetadata": {"promptTokenCount": 3}})
    found = opened("gemini").read(stream.answer(), "")
    assert (found.text, found.reason, found.stop) == ("Hello", "STOP", "end")


def test_a_part_of_a_block_that_did_not_start_is_malformed() -> None:
    delta = {"type": "input_json_delta", "partial_json": "{}"}
    with pytest.raises(MalformedAnswer):
        opened("anthropic").open_stream("").feed({"type": "content_block_delta", "index": 0, "delta": delta})


def test_a_block_of_anthropic_that_starts_twice_is_malformed() -> None:
    """The second start would take back what was heard."""
    stream, start = opened("anthropic").open_stream(""), {"type": "content_block_start", "index": 0}
    stream.feed({**start, "content_block": {"type": "text", "text": "a"}})
    with pytest.raises(MalformedAnswer, match="twice"):
        stream.feed({**start, "content_block": {"type": "text", "text": ""}})


def test_an_event_of_anthropic_that_is_unknown_changes_nothing() -> None:
    stream = opened("anthropic").open_stream("")
    assert stream.feed({"type": "a_new_kind", "index": 0}) == "" and not stream.is_ended


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"candidates": [{}]}, {"content": [3]}])
def test_an_answer_of_another_shape_is_malformed(api: str, answer: dict[str, Any]) -> None:
    with pytest.raises(MalformedAnswer):
        opened(api).read(answer, "")


def test_a_json_schema_goes_to_an_api_that_takes_one_and_is_refused_by_others() -> None:
    decoding = Decoding(json_schema='{"type": "object"}')
    body = opened("openai").body(Request(0, (Message("user", "hello"),), decoding))
    form = body["response_format"]
    assert form == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
    }
    assert {api: opened(api).holds_schemas for api in APIS} == {
        "openai": True,
        "anthropic": False,
        "gemini": False,
    }
