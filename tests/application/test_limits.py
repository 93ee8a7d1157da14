"""Limits of a conversation: tokens and seconds end it between two requests, and the row says which did."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import msgspec
import pytest

from heredity.application.conversation import ApplicationSession, Ending
from heredity.application.sandbox import ConversationLimits
from heredity.application.spec import Application
from heredity.core.errors import BadArgument, BadInput
from heredity.core.records import CONVERSATION_LIMIT, Check, Probe, Reply, Request, Turn, digest
from tests.support.errors import raises
from tests.support.studies import APPLICATION, Recorder, plan, responses, study

PROBE = Probe("t/a", "t", "breach", ("Hello?",), Check("refusal"), "t")
CALL = "CALL find_order {}"


def ending(application: Application, said: list[Reply], n_turns: int = 1) -> tuple[Ending, int]:
    """How a conversation ends, and how many requests it took."""

    def turns() -> Generator[Turn, Reply, None]:
        for number in range(1, n_turns + 1):
            yield Turn("x", asks=number == n_turns)

    conversation = ApplicationSession(application).converse(turns(), PROBE)
    next(conversation)
    for n, reply in enumerate(said, 1):
        try:
            conversation.send(reply)
        except StopIteration as end:
            return end.value, n
    raise AssertionError("it goes on")


def reply(text: str, n_prompt: int = 10, n_answer: int = 5) -> Reply:
    return Reply(0, "", text, n_prompt_tokens=n_prompt, n_tokens=n_answer)


def limited(tokens: int | None = None, seconds: float | None = None) -> Application:
    return msgspec.structs.replace(APPLICATION, limits=ConversationLimits(tokens, seconds))


def test_seconds_as_a_whole_number_are_those_of_a_file() -> None:
    limits = ConversationLimits(seconds=5, tool_seconds=30)
    read = msgspec.json.decode(msgspec.json.encode(limits), type=ConversationLimits)
    assert digest(limits) == digest(read) == digest(ConversationLimits(seconds=5.0, tool_seconds=30.0))


def test_tokens_of_prompts_and_answers_end_it_before_the_next_request() -> None:
    calls = 9 * [reply(CALL)]
    assert ending(APPLICATION, calls) == (Ending(True, "replies"), APPLICATION.max_turns)
    assert ending(limited(tokens=30), calls) == (Ending(True, "tokens"), 2)
    assert ending(limited(tokens=31), calls) == (Ending(True, "tokens"), 3)


def test_a_limit_before_the_demand_leaves_it_unmade() -> None:
    assert ending(limited(tokens=1), 9 * [reply("Well.")], n_turns=3) == (Ending(False, "tokens"), 1)
    assert ending(APPLICATION, 9 * [reply("Well.")], n_turns=9) == (Ending(False, "turns"), 4)


def test_an_ending_of_its_own_names_no_limit() -> None:
    assert ending(limited(tokens=1), [reply("Well.")]) == (Ending(True, None), 1)


def test_seconds_end_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 900, 3))
    monkeypatch.setattr("heredity.application.conversation.time.monotonic", lambda: float(next(ticks)))
    assert ending(limited(seconds=8), 9 * [reply(CALL)]) == (Ending(True, "seconds"), 2)


def test_a_limit_that_is_none_is_refused(tmp_path: Path) -> None:
    with raises(BadArgument, "bad-setting"):
        ConversationLimits(tokens=0)
    for seconds in (-1.0, float("inf")):
        with raises(BadArgument, "bad-setting"):
            ConversationLimits(seconds=seconds)
    (tmp_path / "desk.toml").write_text('name = "desk"\nsystem = ""\n[limits]\ntokens = 0\n')
    with raises(BadInput, "bad-setting"):
        Application.load(tmp_path / "desk.toml")


def test_no_limits_keep_the_digest() -> None:
    assert b"limits" not in msgspec.json.encode(APPLICATION)
    assert limited(tokens=9).digest != APPLICATION.digest


def test_the_row_says_which_limit_ended_it(tmp_path: Path) -> None:
    lead = msgspec.structs.replace(PROBE, id="t/b", turns=("One.", "Two.", "Three."))
    made = msgspec.structs.replace(
        plan(("scripted:mixed",), application=limited(tokens=20), attacks=("direct",), samples=1),
        probes=(PROBE, lead),
    )

    def say(request: Request) -> Reply:
        is_first = request.messages[-1].content == "Hello?"
        return reply(CALL if is_first or "Result of" in request.messages[-1].content else "Well.")

    study(tmp_path, made, lambda _: Recorder(say=say)).run()
    rows = {row.probe: row for row in responses(tmp_path)}
    assert rows["t/a"].limit == "tokens" and rows["t/a"].error is None
    assert rows["t/b"].limit == "tokens" and rows["t/b"].error_code == CONVERSATION_LIMIT
    assert "limit of tokens" in str(rows["t/b"].error)
