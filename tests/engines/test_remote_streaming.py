"""Answers of a service that arrive in parts: heard as they come, and finished only with their end marker."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from heredity.core.errors import EngineFailure
from tests.support.errors import raises
from tests.support.event_streams import NO_END_MARKER
from tests.support.fault_server import APIS, FaultServer
from tests.support.recording_listener import RecordingListener
from tests.support.remote_models import KEY, Budget, Price, ask, asks, engine

CUT = [
    (api, mode)
    for api in APIS
    for mode in ("stream-unended", "stream-unreasoned", "stream-error", "stream-torn", "stream-stalls")
    if (api, mode) != (NO_END_MARKER, "stream-unended")
]
ENDS = [
    ("openai", "length", "length"),
    ("openai", "content_filter", "filter"),
    ("anthropic", "max_tokens", "length"),
    ("anthropic", "refusal", "filter"),
    ("gemini", "MAX_TOKENS", "length"),
    ("gemini", "SAFETY", "filter"),
    ("gemini", "block:SAFETY", "filter"),
]


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("mode", ["ok", "stream-crlf", "stream-thinks"])
def test_the_parts_are_the_answer_and_come_before_it(api: str, mode: str, tmp_path: Path) -> None:
    """Thoughts are not parts of it."""
    listener = RecordingListener()
    with FaultServer(always=mode) as server, engine(server, api, tmp_path) as far:
        assert far.capabilities.streamer is far
        (reply,) = far.stream([ask("Hello there")], listener)
        (whole,) = far.reply([ask("Hello there")])
    assert reply == whole and (reply.text, reply.stop) == ("answer to Hello there", "end")
    assert (reply.n_prompt_tokens, reply.n_tokens) == (20, 4)
    assert "".join(listener.heard[0]) == reply.text and len(listener.heard[0]) > 5
    assert [asked.is_streamed for asked in server.asked] == [True, False]


@pytest.mark.parametrize(("api", "reason", "stop"), ENDS)
def test_an_end_means_the_same_with_and_without_a_stream(
    api: str, reason: str, stop: str, tmp_path: Path
) -> None:
    with FaultServer(always=f"finish={reason}") as server, engine(server, api, tmp_path) as far:
        (reply,) = far.stream([ask()], RecordingListener())
        (whole,) = far.reply([ask()])
    assert reply == whole and reply.stop == stop


@pytest.mark.parametrize("api", APIS)
def test_a_stream_costs_and_counts_what_the_whole_answer_does(api: str, tmp_path: Path) -> None:
    accounts, budgets = [], []
    for is_streamed in (False, True):
        price, budget = Price(1.0, 2.0, 0.1), Budget(max_cost=1.0)
        with (
            FaultServer() as server,
            engine(server, api, tmp_path / str(is_streamed), prices={"": price}, budget=budget) as far,
        ):
            list(far.stream([ask()], RecordingListener()) if is_streamed else far.reply([ask()]))
            accounts.append(far.account())
        budgets.append((budget.tokens, budget.cost))
    assert accounts[0] == accounts[1] and accounts[0]["n_cached_prompt_tokens"] == 8
    assert budgets[0] == budgets[1] and budgets[0][0] == 23 and budgets[0][1] > 0


def test_an_answer_without_a_listener_is_asked_for_whole(tmp_path: Path) -> None:
    listener = RecordingListener(deaf=[1])
    with FaultServer() as server, engine(server, "openai", tmp_path) as far:
        replies = {reply.key: reply.text for reply in far.stream(asks(3), listener)}
    assert replies == {i: f"answer to q{i}" for i in range(3)} and set(listener.heard) == {0, 2}
    assert sorted("stream" in asked.body for asked in server.asked) == [False, True, True]


@pytest.mark.parametrize("api", APIS)
def test_the_calls_of_a_stream_are_joined(api: str, tmp_path: Path) -> None:
    with FaultServer(always="stream-call") as server, engine(server, api, tmp_path) as far:
        (reply,) = far.stream([ask()], RecordingListener())
    (call,) = reply.tool_calls
    assert (call.name, call.arguments, reply.text) == ("find_order", {"order": "A1"}, "")


@pytest.mark.parametrize(("api", "mode"), CUT)
def test_a_stream_that_is_cut_off_is_an_error_and_never_an_answer(
    api: str, mode: str, tmp_path: Path
) -> None:
    """What was heard cannot be taken back, so it is not asked again."""
    listener, stall = RecordingListener(), {"stall_seconds": 2.0} if mode == "stream-stalls" else {}
    with FaultServer(always=mode) as server, engine(server, api, tmp_path, **stall) as far:
        (reply,) = far.stream([ask()], listener)
    assert reply.stop == "error" and reply.text == "" and reply.error
    assert "answer to q".startswith("".join(listener.heard[0])) and len(server.asked) == 1


def test_an_answer_whose_parts_come_in_another_order_is_an_error(tmp_path: Path) -> None:
    """The listener would have heard another text than the row has."""
    with FaultServer(always="stream-mixed") as server, engine(server, "anthropic", tmp_path) as far:
        (reply,) = far.stream([ask()], RecordingListener())
    assert reply.stop == "error" and "order" in str(reply.error)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("mode", ["stream-error-first", "drop", "500", "429=0", "garbage"])
def test_a_failure_before_the_first_part_is_tried_again(api: str, mode: str, tmp_path: Path) -> None:
    listener = RecordingListener()
    with FaultServer(modes=[mode]) as server, engine(server, api, tmp_path) as far:
        (reply,) = far.stream([ask()], listener)
    assert (reply.text, "".join(listener.heard[0]), len(server.asked)) == ("answer to q", "answer to q", 2)


@pytest.mark.parametrize("api", APIS)
def test_an_error_of_the_stream_has_the_words_of_the_service(api: str, tmp_path: Path) -> None:
    with FaultServer(always="stream-error") as server, engine(server, api, tmp_path) as far:
        (reply,) = far.stream([ask()], RecordingListener())
    assert "out of luck" in str(reply.error)


@pytest.mark.parametrize(("api", "status"), [("openai", 400), ("anthropic", 422), ("gemini", 404)])
def test_a_service_that_refuses_streams_is_asked_without_one_from_then_on(
    api: str, status: int, tmp_path: Path
) -> None:
    """A proxy may not have the address of Gemini's streams."""
    listener = RecordingListener()
    with FaultServer(always=f"refuses-streams={status}") as server, engine(server, api, tmp_path) as far:
        for key in (0, 1):
            (reply,) = far.stream([ask("q", key)], listener)
            assert reply.text == "answer to q"
    assert listener.heard == {0: ["answer to q"], 1: ["answer to q"]}
    assert [asked.is_streamed for asked in server.asked] == [True, False, False]


def test_a_refused_request_stays_refused_and_streams_stay_on(tmp_path: Path) -> None:
    with FaultServer(modes=["400", "400"]) as server, engine(server, "openai", tmp_path) as far:
        (refused,) = far.stream([ask()], RecordingListener())
        (answered,) = far.stream([ask()], RecordingListener())
    assert refused.stop == "error" and "HTTP 400" in str(refused.error) and answered.text == "answer to q"
    assert ["stream" in asked.body for asked in server.asked] == [True, False, True]


def test_a_refused_key_ends_the_run(tmp_path: Path) -> None:
    with (
        FaultServer(always="echo-401") as server,
        engine(server, "openai", tmp_path) as far,
        raises(EngineFailure, "engine-failure", mentions=["HTTP 401"]) as failure,
    ):
        list(far.stream([ask()], RecordingListener()))
    assert KEY not in str(failure.value)


@pytest.mark.parametrize("api", APIS)
def test_a_key_that_comes_back_in_pieces_is_not_heard(api: str, tmp_path: Path) -> None:
    listener = RecordingListener()
    with FaultServer(always="stream-echo") as server, engine(server, api, tmp_path) as far:
        (reply,) = far.stream([ask()], listener)
    heard = "".join(listener.heard[0])
    assert heard == reply.text == "answer to qkey [key]." and KEY[:6] not in json.dumps(listener.heard)


class Stopping(RecordingListener):
    """Wants no more once it is told so, from any thread."""

    def __init__(self) -> None:
        super().__init__()
        self.is_over = threading.Event()

    def hear(self, key: int, more: str) -> None:
        super().hear(key, more)
        if len(self.heard[key]) == 3:
            self.is_over.set()

    def is_wanted(self, key: int) -> bool:
        return not self.is_over.is_set()


def test_an_answer_that_is_not_wanted_ends_with_its_parts(tmp_path: Path) -> None:
    """The service stalls, so that only the listener can end the answer."""
    listener = Stopping()
    with FaultServer(always="stream-stalls") as server, engine(server, "openai", tmp_path) as far:
        (reply,) = far.stream([ask()], listener)
    assert (reply.stop, reply.error) == ("length", None)
    assert reply.text == "".join(listener.heard[0]) and reply.text.startswith("answer")


def test_an_answer_is_given_up_before_its_first_part(tmp_path: Path) -> None:
    listener = Stopping()
    with FaultServer(always="stall") as server, engine(server, "openai", tmp_path) as far:
        threading.Timer(0.05, listener.is_over.set).start()
        (reply,) = far.stream([ask()], listener)
    assert (reply.text, reply.stop) == ("", "length") and not listener.heard


@pytest.mark.parametrize(
    ("api", "option", "said"),
    [
        ("openai", "trailing", "Sure, yes"),
        ("openai", "continue_final_message", " yes"),
        ("gemini", "trailing", "Sure, yes"),
        ("anthropic", "", " yes"),
    ],
)
def test_a_repeated_prefill_is_not_heard_again(api: str, option: str, said: str, tmp_path: Path) -> None:
    listener = RecordingListener()
    with (
        FaultServer(say=lambda _: said) as server,
        engine(server, api, tmp_path, f"?prefill={option}" if option else "") as far,
    ):
        (reply,) = far.stream([ask(prefill="Sure,")], listener)
    assert "".join(listener.heard[0]) == reply.text == " yes"
