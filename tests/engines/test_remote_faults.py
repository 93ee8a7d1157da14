"""Whatever goes wrong on the wire ends as an answer after a retry or as an error row, in bounded time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from heredity.core.errors import BudgetSpent, EngineFailure
from heredity.core.sanitize import clean_text
from tests.support.errors import raises
from tests.support.fault_server import APIS, FaultServer
from tests.support.remote_models import KEY, Budget, Price, ask, asks, engine

PASSING = [
    "429=0", "429", "429=0.05", "500", "502", "503=0", "504", "529", "408", "409", "half", "half-stall",
    "stall", "drop", "garbage", "no-http", "html", "wrong", "empty", "gzip", "echo",
    'wrong={"choices": 3, "content": "x"}', 'wrong={"choices": [], "candidates": [], "content": [3]}',
]  # fmt: skip
FINAL = ["400", "413", "422", "redirect", "redirect=http://127.0.0.1:9/x", "418"]
# What is seen before a body is read as that of a service: the same code for every service.
BELOW = [
    mode
    for mode in PASSING
    if mode[0].isdigit() or mode in ("half-stall", "stall", "drop", "no-http", "gzip")
]
FAULTS = [
    pytest.param(api, mode, marks=[pytest.mark.proof] if api != APIS[0] and mode in BELOW else [])
    for api in APIS
    for mode in PASSING
]


def _short(mode: str, seconds: float) -> dict[str, float]:
    return {"stall_seconds": seconds} if "stall" in mode else {}


@pytest.mark.parametrize(("api", "mode"), FAULTS)
def test_a_failure_that_passes_is_tried_again(api: str, mode: str, tmp_path: Path) -> None:
    with FaultServer(modes=[mode]) as server, engine(server, api, tmp_path, **_short(mode, 0.5)) as far:
        (reply,) = far.reply([ask()])
    assert (reply.text, reply.error) == ("answer to q", None)
    assert len(server.asked) == 2 or "stall" in mode


@pytest.mark.parametrize(("api", "mode"), FAULTS)
def test_a_failure_that_stays_is_an_error_row_in_bounded_time(api: str, mode: str, tmp_path: Path) -> None:
    with FaultServer(always=mode) as server, engine(server, api, tmp_path, **_short(mode, 0.1)) as far:
        (reply,) = far.reply([ask()])
    assert reply.stop == "error" and reply.error and "attempts" in reply.error
    assert reply.text == "" and KEY not in reply.error
    assert 3 <= len(server.asked) <= 9


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("mode", FINAL)
def test_a_refused_request_is_an_error_row_at_once(api: str, mode: str, tmp_path: Path) -> None:
    with FaultServer(always=mode) as server, engine(server, api, tmp_path) as far:
        (reply,) = far.reply([ask()])
    assert reply.stop == "error" and f"HTTP {mode[:3] if mode[0] != 'r' else 307}" in str(reply.error)
    assert [asked.path for asked in server.asked] == [server.asked[0].path]  # asked once, not redirected


@pytest.mark.slow
@pytest.mark.parametrize("api", APIS)
def test_among_many_requests_with_every_fault_none_is_lost(api: str, tmp_path: Path) -> None:
    faults = [mode for mode in (*PASSING, *FINAL) if "stall" not in mode]
    modes = [mode for fault in faults for mode in (fault, "ok", "ok")]
    with FaultServer(modes=modes * 2) as server, engine(server, api, tmp_path, retries=9) as far:
        replies = list(far.reply(asks(160)))
    assert sorted(reply.key for reply in replies) == list(range(160))
    for reply in replies:
        assert reply.error or reply.text == f"answer to q{reply.key}"
    assert sum(reply.error is not None for reply in replies) == 2 * len(FINAL)


@pytest.mark.parametrize("said", ["half \ud800 of a pair", "\udc00", "whole \U0001f600"])
def test_half_a_surrogate_in_an_answer_is_read_at_once(said: str, tmp_path: Path) -> None:
    body = json.dumps({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]})
    with FaultServer(always=f"wrong={body}") as server, engine(server, "openai", tmp_path) as far:
        (reply,) = far.reply([ask()])
    assert (reply.text, reply.error, len(server.asked)) == (clean_text(said), None, 1)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("mode", ["401", "403", "404", "402", "echo-401"])
def test_what_fails_for_all_ends_the_run(api: str, mode: str, tmp_path: Path) -> None:
    with (
        FaultServer(always=mode) as server,
        engine(server, api, tmp_path) as far,
        raises(EngineFailure, "engine-failure", mentions=[f"HTTP {mode[-3:]}"]) as failure,
    ):
        list(far.reply(asks(50)))
    assert KEY not in str(failure.value) and len(server.asked) <= 4


def test_a_refusal_of_one_request_after_answers_is_its_own(tmp_path: Path) -> None:
    with (
        FaultServer(modes=["ok", "403", "404"]) as server,
        engine(server, "openai", tmp_path, concurrency=1) as far,
    ):
        replies = list(far.reply(asks(4)))
    assert [reply.stop for reply in replies] == ["end", "error", "error", "end"]


def test_money_that_is_gone_ends_the_run_and_is_not_asked_for_again(tmp_path: Path) -> None:
    with (
        FaultServer(modes=["ok"], always="quota") as server,
        engine(server, "openai", tmp_path, concurrency=1) as far,
    ):
        replies = far.reply(asks(10))
        assert next(replies).text == "answer to q0"
        with raises(EngineFailure, "engine-failure", mentions=["no money left"]):
            next(replies)
    assert len(server.asked) == 2


def test_a_service_that_is_gone_ends_the_run_after_some_error_rows(tmp_path: Path) -> None:
    with FaultServer() as server, engine(server, "openai", tmp_path, retries=1) as far:
        server._server.close()  # nobody listens any more
        got = []
        with raises(EngineFailure, "engine-failure", mentions=[16]):
            got += list(far.reply(asks(200)))


def test_a_service_that_asks_to_wait_for_hours_ends_the_run(tmp_path: Path) -> None:
    with (
        FaultServer(always="429=7200") as server,
        engine(server, "openai", tmp_path) as far,
        raises(EngineFailure, "engine-failure", mentions=["7,200"]),
    ):
        list(far.reply(asks(3)))


@pytest.mark.parametrize("mode", ["429=0.6", "date=2"])
def test_nobody_asks_before_the_time_that_the_service_named(mode: str, tmp_path: Path) -> None:
    """A date has whole seconds, so that one of 2 seconds is at least one away."""
    times: list[float] = []

    def say(asked: object) -> str:
        times.append(time.monotonic())
        return "yes"

    with FaultServer(modes=[mode], say=say) as server, engine(server, "openai", tmp_path) as far:
        assert [r.text for r in far.reply(asks(3))] == ["yes"] * 3
    assert times[-1] - times[0] >= 0.55


@pytest.mark.slow
def test_concurrency_follows_what_the_service_bears(tmp_path: Path) -> None:
    # An answer takes far longer than sending a request, so that as many as are allowed are under way at once.
    with FaultServer(limit=6, delay=0.2) as server, engine(server, "openai", tmp_path, retries=8) as far:
        replies = list(far.reply(asks(100)))
        limited = far.account()["n_limited"]
    assert all(reply.error is None for reply in replies)
    assert server.most_active > 4  # it went up from where it starts ...
    assert 0 < limited < 50  # ... and few requests were asked in vain
    with FaultServer(delay=0.3) as server, engine(server, "openai", tmp_path) as far:
        list(far.reply(asks(150)))
    assert server.most_active > 32


def test_an_answer_of_a_megabyte_and_one_with_control_codes_come_whole(tmp_path: Path) -> None:
    nasty = "\x1b[2J\x1b]0;owned\x07\u202e<script>\x00" + "x" * 1_000_000
    for api in APIS:
        with FaultServer(say=lambda asked: nasty) as server, engine(server, api, tmp_path) as far:
            (reply,) = far.reply([ask()])
        assert reply.text == nasty


def test_a_body_without_end_is_not_read_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heredity.engines.remote.engine.MAX_BYTES", 10_000)
    with FaultServer(say=lambda asked: "x" * 20_000) as server, engine(server, "openai", tmp_path) as far:
        (reply,) = far.reply([ask()])
    assert "longer than 10,000 bytes" in str(reply.error)


# --- budget ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS)
def test_a_budget_of_tokens_stops_before_it_is_overrun_and_keeps_what_came(api: str, tmp_path: Path) -> None:
    budget = Budget(max_tokens=2_000)
    with FaultServer(delay=0.002) as server, engine(server, api, tmp_path, budget=budget) as far:
        replies = []
        with raises(BudgetSpent, "budget-spent", mentions=["2,000"]):
            replies.extend(far.reply(asks(500)))
    assert budget.tokens == sum(23 for _ in replies) <= 2_000
    assert len(server.asked) == len(replies) > 75  # whatever was paid for was handed over


def test_a_budget_of_money_counts_cached_tokens_at_their_price(tmp_path: Path) -> None:
    budget, price = Budget(max_cost=0.01), Price(10.0, 100.0, 1.0)
    with (
        FaultServer() as server,
        engine(server, "openai", tmp_path, budget=budget, prices={"": price}) as far,
    ):
        replies = []
        with raises(BudgetSpent, "budget-spent", mentions=["0.0100"]):
            replies.extend(far.reply(asks(500)))
        assert far.account()["cost"] == round(budget.cost, 6)
    # 12 fresh and 8 cached tokens of prompt, 3 of the answer
    assert budget.cost == pytest.approx(len(replies) * (12 * 10 + 8 * 1 + 3 * 100) / 1e6)
    assert 0 < budget.cost <= 0.01 and replies


# --- nothing is left behind ------------------------------------------------------------------------


def test_a_stream_that_is_closed_early_gives_up_what_is_under_way(tmp_path: Path) -> None:
    with FaultServer(modes=["ok"], always="stall") as server, engine(server, "openai", tmp_path) as far:
        replies = far.reply(asks(50))
        assert next(replies).text
        replies.close()
        server.always = "ok"
        assert len(list(far.reply(asks(20)))) == 20  # and the engine can be asked again
