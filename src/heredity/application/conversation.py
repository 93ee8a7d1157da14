"""One conversation inside an application, as a generator that yields requests and receives replies.

Promises: one shape for one question and for many turns, testable without a model. Tool calls are answered
before the next turn. The turn limit holds.
Leaves to others: the questions (redteam/attacks/), the answers (engines/), and the application's own
formats (spec.py, tools.py).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from msgspec import UNSET

from heredity.application.tools import World
from heredity.core.records import Consult, Message, Probe, Reply, Request, Turn

if TYPE_CHECKING:
    from heredity.application.spec import Application


def converse(
    application: Application,
    turns: Generator[Turn | Consult, Reply, None],
    probe: Probe,
    seed: int = 0,
) -> Generator[Request | Consult, Reply, bool]:
    """One conversation as a generator: yields a request, receives the reply; returns whether a turn that
    makes the probe's demand was answered.

    User turns come from the attack, until it has no more, the turn limit is met, or an error ends it. A
    fresh turn restarts the conversation and its limit; only the tools' state stays. A Consult, the attack's
    question to its attacker model, is passed on.
    """
    application = application.for_probe(probe)
    messages, world = list(application.messages()), World(application.state, application.tools)
    passage, n_turns, is_made, reply = probe.passage, 0, False, None
    while True:
        try:
            turn = next(turns) if reply is None else turns.send(reply)
        except StopIteration:
            return is_made
        if isinstance(turn, Consult):
            reply = yield turn
            if reply.error is not None:
                return is_made
            continue
        if turn.is_fresh:
            messages, passage, n_turns = list(application.messages()), probe.passage, 0
        elif n_turns >= application.max_turns:
            return is_made
        # Two messages of the user in a row are more than some templates take.
        left = f"{messages.pop().content}\n\n" if n_turns and messages[-1].role == "user" else ""
        messages += turn.before
        messages.append(Message("user", left + _with_passage(turn.text, passage)))
        passage, n_turns = "", n_turns + 1
        reply = yield from _answer(application, messages, turn, probe, world, seed)
        if reply.error is not None:
            return is_made
        is_made |= turn.asks


def _answer(
    application: Application, messages: list[Message], turn: Turn, probe: Probe, world: World, seed: int
) -> Generator[Request, Reply, Reply]:
    """The replies to one turn, put behind `messages`; returns the last.

    A tool call is answered with the probe's or the tool's canned result, and the model replies again. That
    ends when it calls no tool or has replied `max_turns` times; calls left open are answered with the next
    turn.
    """
    prefill = turn.prefill
    is_shared = probe.tool_description is UNSET
    for _ in range(application.max_turns):
        reply = yield application.request(messages, prefill, seed, turn.decoding, is_shared)
        if reply.error is not None:
            break
        calls = application.calls(prefill, reply)
        messages.append(application.said(prefill + reply.text, calls))
        prefill = ""
        if not calls or application.rendering == "theirs":  # their application answers its own calls
            break
        named = [(call.name, application.tool_result(call, probe, world)) for call in calls]
        messages += application.results(named)
    return reply


def _with_passage(text: str, passage: str) -> str:
    return f"Retrieved document:\n{passage.strip()}\n\nQuestion: {text}" if passage else text
