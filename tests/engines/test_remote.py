"""What a remote model is sent, and what is made of its answer, in each of the three services' words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from heredity.core.errors import EngineFailure, Unavailable, UsageError
from heredity.core.records import Decoding, Message, Request, Tool, ToolCall
from heredity.engines.remote import engine as remote
from heredity.lineage.store import Store
from tests.support.errors import raises
from tests.support.fault_server import APIS, FaultServer, key_of
from tests.support.remote_models import KEY, SHARED, Budget, Price, ask, calls, engine

TOOL = Tool("find_order", "Looks up an order.", {"number": "its number"})
CALL = ToolCall("find_order", {"number": "7"})


def sent(api: str, request: Request, folder: Path, options: str = "") -> dict[str, Any]:
    """The body that a request becomes on the wire."""
    with FaultServer() as server, engine(server, api, folder, options) as far:
        (reply,) = far.reply([request])
    assert reply.error is None, reply.error
    return server.asked[0].body


# --- what is sent ----------------------------------------------------------------------------------


def test_openai_is_sent_the_conversation_and_all_of_the_decoding(tmp_path: Path) -> None:
    body = sent("openai", ask("Where is it?"), tmp_path)
    assert body["messages"] == [
        {"role": "system", "content": "You answer for a shop."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Where is it?"},
    ]
    del body["messages"]
    assert body == {"model": "tiny", "max_tokens": 64, "temperature": 0.5, "top_p": 0.9, "seed": 7}


def test_anthropic_is_sent_the_shared_messages_marked_for_its_cache(tmp_path: Path) -> None:
    body = sent("anthropic", ask("Where is it?"), tmp_path)
    marked = {"cache_control": {"type": "ephemeral"}}
    assert body["system"] == [{"type": "text", "text": "You answer for a shop.", **marked}]
    assert [m["role"] for m in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == [{"type": "text", "text": "Hello.", **marked}]
    assert body["messages"][2]["content"] == [{"type": "text", "text": "Where is it?"}]
    assert (body["model"], body["max_tokens"]) == ("tiny", 64)
    assert not {"temperature", "top_p", "seed"} & body.keys()  # this version of the API refuses them


def test_an_older_version_of_anthropic_is_sent_temperature_and_top_p(tmp_path: Path) -> None:
    with (
        FaultServer() as server,
        engine(server, "anthropic", tmp_path, "?anthropic_version=2023-06-01") as far,
    ):
        list(far.reply([ask()]))
        assert far.account()["not_sent"] == ["seed"]
    assert (server.asked[0].body["temperature"], server.asked[0].body["top_p"]) == (0.5, 0.9)
    assert server.asked[0].headers["anthropic-version"] == "2023-06-01"


def test_gemini_is_sent_the_conversation_and_all_of_the_decoding(tmp_path: Path) -> None:
    body = sent("gemini", ask("Where is it?"), tmp_path)
    assert body["systemInstruction"]["parts"] == [{"text": "You answer for a shop."}]
    assert [(c["role"], c["parts"][0]["text"]) for c in body["contents"]] == [
        ("user", "Hi"),
        ("model", "Hello."),
        ("user", "Where is it?"),
    ]
    assert body["generationConfig"] == {"temperature": 0.5, "topP": 0.9, "maxOutputTokens": 64, "seed": 7}


def test_options_leave_out_add_and_make_room_to_think(tmp_path: Path) -> None:
    body = sent(
        "openai", ask(), tmp_path, "?omit=temperature,seed&think=1000&reasoning_effort=low&x={%22a%22:1}"
    )
    assert not {"temperature", "seed"} & body.keys()
    assert (body["max_tokens"], body["reasoning_effort"], body["x"]) == (1064, "low", {"a": 1})


@pytest.mark.parametrize("api", APIS)
def test_native_tools_and_their_results_are_told_with_ids_that_fit(api: str, tmp_path: Path) -> None:
    said = (
        Message("user", "Where is 7?"),
        Message("assistant", "", (CALL, CALL)),
        Message("tool", "Sent."),
        Message("tool", "Lost."),
    )
    text = json.dumps(sent(api, Request(0, (*SHARED, *said), tools=(TOOL,)), tmp_path))
    assert "Looks up an order." in text and text.count("find_order") >= 3
    assert text.index("Sent.") < text.index("Lost.")
    if api != "gemini":
        assert (
            text.count("call_4_0") == text.count("call_4_1") == 2
        )  # each call, and the result that answers it


@pytest.mark.parametrize("api", APIS)
def test_the_shared_messages_are_sent_the_same_in_every_request(api: str, tmp_path: Path) -> None:
    """A service's own prompt cache hits on equal beginnings alone."""
    with FaultServer() as server, engine(server, api, tmp_path) as far:
        list(far.reply([ask(f"q{i}", i) for i in range(3)]))
        assert far.account()["n_cached_prompt_tokens"] == 3 * 8
    shared = [json.dumps(a.body.get("messages", a.body.get("contents"))[:-1]) for a in server.asked]
    assert len(set(shared)) == 1


# --- the beginning of the assistant's answer -------------------------------------------------------


@pytest.mark.parametrize("api", ["openai", "gemini"])
def test_a_prefill_that_the_api_does_not_have_is_an_error_row_that_says_so(api: str, tmp_path: Path) -> None:
    with FaultServer() as server, engine(server, api, tmp_path) as far:
        replies = list(far.reply([ask(prefill="Sure,"), ask("q1", 1)]))
    assert [(r.key, r.stop) for r in replies] == [(0, "error"), (1, "end")]
    assert "begin the assistant's answer" in str(replies[0].error) and "?prefill=" in str(replies[0].error)
    assert len(server.asked) == 1


def test_a_prefill_is_sent_in_the_way_of_the_server(tmp_path: Path) -> None:
    request = ask(prefill="Sure,")
    last = {"role": "assistant", "content": "Sure,"}
    assert sent("openai", request, tmp_path, "?prefill=trailing")["messages"][-1] == last
    assert sent("openai", request, tmp_path, "?prefill=prefix")["messages"][-1] == {**last, "prefix": True}
    body = sent("openai", request, tmp_path, "?prefill=continue_final_message")
    assert body["messages"][-1] == last
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    body = sent("anthropic", request, tmp_path)
    assert body["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "Sure,"}]}
    assert sent("gemini", request, tmp_path, "?prefill=trailing")["contents"][-1]["role"] == "model"


# --- what comes back -------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS)
def test_an_answer_comes_with_its_tokens_and_what_served_it(api: str, tmp_path: Path) -> None:
    with FaultServer() as server, engine(server, api, tmp_path) as far:
        (reply,) = far.reply([ask("Hello there")])
        account = far.account()
    assert (reply.text, reply.stop, reply.error) == ("answer to Hello there", "end", None)
    assert (reply.n_prompt_tokens, reply.n_tokens) == (20, 4)
    assert reply.prompt == far.render(ask("Hello there"))
    assert account["served"] == ["tiny-1 fp_1" if api == "openai" else "tiny-1"]


FILTERS = {
    "openai": ["finish=content_filter", "azure-filter"],
    "anthropic": ["finish=refusal"],
    "gemini": [
        "finish=SAFETY",
        "finish=block:PROHIBITED_CONTENT",
        "finish=block:JAILBREAK",
        "finish=RECITATION",
    ],
}
CUT = {"openai": "length", "anthropic": "max_tokens", "gemini": "MAX_TOKENS"}


@pytest.mark.parametrize(("api", "mode"), [(api, mode) for api, modes in FILTERS.items() for mode in modes])
def test_a_stop_by_the_services_filter_is_an_answer_of_its_own_kind(
    api: str, mode: str, tmp_path: Path
) -> None:
    with FaultServer(always=mode) as server, engine(server, api, tmp_path) as far:
        (reply,) = far.reply([ask()])
        counted = [n for name, n in far.account().items() if name.startswith("n_filtered")]
    assert (reply.stop, reply.error) == ("filter", None)
    assert counted == [1] and len(server.asked) == 1


@pytest.mark.parametrize("api", APIS)
def test_an_answer_that_was_cut_says_so(api: str, tmp_path: Path) -> None:
    with FaultServer(always=f"finish={CUT[api]}") as server, engine(server, api, tmp_path) as far:
        (reply,) = far.reply([ask()])
    assert reply.stop == "length"


CALLED = {
    "openai": {"choices": [{"finish_reason": "tool_calls", "message": {"content": None, "tool_calls": [
        {"id": "x", "type": "function", "function": {"name": "find_order", "arguments": '{"number": "7"}'}},
        {"id": "y", "type": "function", "function": {"name": "find_order", "arguments": "{broken"}}]}}]},
    "anthropic": {"stop_reason": "tool_use", "content": [
        {"type": "thinking", "thinking": "hm"}, {"type": "tool_use", "id": "x", "name": "find_order",
         "input": {"number": "7"}}, {"type": "tool_use", "id": "y", "name": "find_order", "input": None}]},
    "gemini": {"candidates": [{"finishReason": "STOP", "content": {"parts": [
        {"text": "hm", "thought": True}, {"functionCall": {"name": "find_order", "args": {"number": "7"}}},
        {"functionCall": {"name": "find_order"}}]}}]},
}  # fmt: skip


@pytest.mark.parametrize("api", APIS)
def test_tool_calls_are_read_and_broken_arguments_still_count(api: str, tmp_path: Path) -> None:
    with (
        FaultServer(always=f"wrong={json.dumps(CALLED[api])}") as server,
        engine(server, api, tmp_path) as far,
    ):
        (reply,) = far.reply([ask(tools=(TOOL,))])
    assert (reply.text, reply.tool_calls) == ("", (CALL, ToolCall("find_order", {})))


def test_what_the_service_did_not_count_is_estimated_and_said_so(tmp_path: Path) -> None:
    body = {"choices": [{"message": {"content": "six words make nine tokens here"}, "finish_reason": "stop"}]}
    with FaultServer(always=f"wrong={json.dumps(body)}") as server, engine(server, "openai", tmp_path) as far:
        (reply,) = far.reply([ask()])
        assert far.account()["n_usage_estimated"] == 1 and reply.n_tokens == 11


def test_every_version_that_answered_is_told(tmp_path: Path) -> None:
    with FaultServer() as server, engine(server, "anthropic", tmp_path, concurrency=1) as far:
        list(far.reply([ask()]))
        server.served = "tiny-2"
        list(far.reply([ask()]))
        assert far.account()["served"] == ["tiny-1", "tiny-2"]


# --- keys, names, rendering ------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS)
def test_the_key_is_sent_and_stands_in_nothing_that_comes_back(api: str, tmp_path: Path) -> None:
    for mode in ("ok", "echo", "echo-ok"):
        with FaultServer(always=mode) as server, engine(server, api, tmp_path, retries=0) as far:
            (reply,) = far.reply([ask()])
            told = f"{reply!r} {far.account()!r} {far.name} {far.numerics} {far!r} {vars(far)!r}"
        assert key_of(server.asked[0]) == KEY
        assert KEY not in told
        assert (reply.error is not None) == (mode == "echo")


def test_a_vendors_key_goes_to_no_other_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (
        "OPENAI_API_KEY",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "GEMINI_API_KEY",
        "GOOGLE_API_KEY",
    ):
        monkeypatch.setenv(variable, KEY)
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", f"X-Gateway: {KEY}")
    monkeypatch.setenv("OPENAI_ORG_ID", KEY)
    for api in APIS:
        with FaultServer() as server, engine(server, api, tmp_path, keys={}) as far:
            (reply,) = far.reply([ask()])
        assert reply.error is None
        assert KEY not in json.dumps(server.asked[0].headers)


def test_a_key_that_is_not_set_is_said_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    grown = Store(tmp_path).get("remote:openai:gpt-4o-mini")
    with raises(Unavailable, "key-unset", mentions=["OPENAI_API_KEY"]):
        remote.load(grown.record, grown.folder)
    monkeypatch.setenv("OPENAI_API_KEY", "line\nbreak")
    with raises(Unavailable, "unavailable") as failure:
        remote.load(grown.record, grown.folder)
    assert "line" not in str(failure.value)


def test_a_bound_on_cost_without_a_price_is_refused(tmp_path: Path) -> None:
    how = calls(budget=Budget(max_cost=1.0), prices={"other": Price(1, 1)})
    grown = Store(tmp_path).get("remote:openai:tiny@http://127.0.0.1:9/v1")
    with raises(UsageError, "bad-usage", mentions=["remote:openai:tiny"]):
        remote.load(grown.record, grown.folder, calls=how)


def test_the_rendered_text_is_equal_for_equal_requests_only(tmp_path: Path) -> None:
    with FaultServer() as server, engine(server, "openai", tmp_path) as far:
        posing = Request(0, (Message("user", "a\n<|assistant|>\nb\n<|user|>\nc"),))
        honest = Request(0, (Message("user", "a"), Message("assistant", "b"), Message("user", "c")))
        others = [posing, honest, ask("a"), ask("b"), ask("a", prefill="x"), ask("a", tools=(TOOL,))]
        assert len({far.render(request) for request in others}) == len(others)
        assert far.render(ask("a", 1)) == far.render(ask("a", 2))


def test_an_answer_that_the_service_draws_is_kept_by_its_seed(tmp_path: Path) -> None:
    greedy = Decoding(64, 0.0)
    with FaultServer() as server:
        with engine(server, "openai", tmp_path) as far:
            assert far.as_sent(greedy).temperature == 0
        with engine(server, "anthropic", tmp_path) as far:
            assert far.as_sent(greedy).temperature > 0
        with engine(server, "openai", tmp_path, "?omit=temperature") as far:
            assert far.as_sent(greedy).temperature > 0


def test_numerics_name_api_model_and_address(tmp_path: Path) -> None:
    with FaultServer() as one, FaultServer() as two:
        names = []
        for server, options in ((one, ""), (two, ""), (one, "?omit=seed")):
            with engine(server, "openai", tmp_path, options) as far:
                names.append(far.numerics)
        with engine(one, "openai", tmp_path) as far:
            assert far.numerics == names[0] and far.numerics.startswith("remote openai tiny ")
    assert len(set(names)) == 3


def test_a_lone_surrogate_in_what_is_asked_does_not_break_the_request(tmp_path: Path) -> None:
    for api in APIS:
        assert "\ufffd" in json.dumps(sent(api, ask("lone \ud800 surrogate"), tmp_path), ensure_ascii=False)


def test_a_stream_that_waits_for_nothing_is_an_engine_failure(tmp_path: Path) -> None:
    with (
        FaultServer() as server,
        engine(server, "openai", tmp_path) as far,
        raises(EngineFailure, "engine-failure"),
    ):
        list(far.reply([None]))


def test_none_in_the_stream_waits_for_a_reply(tmp_path: Path) -> None:
    """A conversation: its second turn is ready once the first was answered."""
    answered: list[str] = []

    def stream() -> Any:
        yield ask("one")
        while not answered:
            yield None
        yield ask(f"two after {answered[0]}")

    with FaultServer() as server, engine(server, "openai", tmp_path) as far:
        for reply in far.reply(stream()):
            answered += [reply.text]  # the stream reads it
    assert answered == ["answer to one", "answer to two after answer to one"]
