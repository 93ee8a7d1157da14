"""One conversation inside an application, as a generator that yields requests and receives replies.

Promises: one shape for one question and for many turns, testable without a model. Tool calls are answered
before the next turn. A conversation ends before the next request once a limit is met; none cuts an answer.
Leaves to others: the questions (redteam/attacks/), the answers (engines/), and the application's own
formats (spec.py, tools.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, TypeVar, overload

import msgspec
from msgspec import UNSET, UnsetType

from heredity.application.retrieval import user_message
from heredity.application.sandbox import ConversationLimits
from heredity.application.spec import Application
from heredity.application.toolbox import ToolSession
from heredity.application.tools import World, fit, is_answered_by
from heredity.core.errors import EngineFailure, ToolFailure
from heredity.core.records import (
    Check,
    Consult,
    Decoding,
    Limit,
    Message,
    Probe,
    Reply,
    Request,
    Retrieved,
    ToolCall,
    Turn,
)
from heredity.engines import AnswerListener, Engine, capabilities

T = TypeVar("T")
_ASKED = Probe("ask", "ask", "benign", ("",), Check("refusal"), "ask")  # a turn of a person, without a check


class Ending(NamedTuple):
    """How a conversation ended.

    is_made: whether a turn that makes the probe's demand was answered. limit: of the application, if one
    ended it.
    """

    is_made: bool
    limit: Limit | None = None


class ApplicationSession:
    """Converses inside an application. tools: those that run, of one conversation; None: these fail."""

    def __init__(self, application: Application, tools: ToolSession | None = None) -> None:
        self._application, self._tools = application, tools

    @overload
    def converse(
        self, turns: Generator[Turn, Reply, None], probe: Probe, seed: int = 0
    ) -> Generator[Request, Reply, Ending]: ...

    @overload
    def converse(
        self, turns: Generator[Turn | Consult, Reply, None], probe: Probe, seed: int = 0
    ) -> Generator[Request | Consult, Reply, Ending]: ...

    def converse(
        self, turns: Generator[Turn | Consult, Reply, None], probe: Probe, seed: int = 0
    ) -> Generator[Request | Consult, Reply, Ending]:
        """One conversation as a generator: yields a request, receives the reply; returns how it ended.

        User turns come from the attack, until it ends, or a limit or an error does. A fresh turn restarts
        conversation and turns; one that retracts replaces the turn before it, and both count. The tools'
        state stays. A Consult is passed on.
        """
        application = self._application.for_probe(probe)
        inside = ApplicationSession(application, self._tools)
        chat = _Chat(application, probe.passage)
        world = World(application.state, application.tools) if application.tools else None
        meter, limit, is_made, reply = LimitMeter(application.limits), None, False, None
        while True:
            try:
                turn = next(turns) if reply is None else turns.send(reply)
            except StopIteration:
                return Ending(is_made, limit)
            if isinstance(turn, Consult):
                reply = yield turn
                if reply.error is not None:
                    return Ending(is_made)
                continue
            if limit := meter.met:
                return Ending(is_made, limit)
            if turn.is_fresh:
                chat = _Chat(application, probe.passage)
            elif chat.n_turns >= application.max_turns:
                return Ending(is_made, "turns")
            reply, limit = yield from inside.answer(chat, turn, probe, world, seed, meter)
            if reply.error is not None:
                return Ending(is_made)
            is_made |= turn.asks

    def retrieve(self, text: str, planted: tuple[Retrieved, ...] = ()) -> tuple[Retrieved, ...] | None:
        """The passages for a turn of the user; None if the application does not retrieve."""
        retrieval = self._application.retrieval
        return None if retrieval is None else retrieval.search(text, planted)

    def answer(
        self, chat: _Chat, turn: Turn, probe: Probe, world: World | None, seed: int, meter: LimitMeter
    ) -> Generator[Request, Reply, tuple[Reply, Limit | None]]:
        """The replies to a turn, put behind those of `chat`; returns the last, and the limit that ended them.

        A tool call is answered with the probe's or the tool's own result, and the model replies again. That
        ends when it calls no tool, has replied `max_turns` times, or meets a limit of the conversation.
        Results that the model has not read then come with the next turn.
        """
        application, prefill = self._application, turn.prefill
        planted = None if isinstance(probe.planted, UnsetType) else probe.planted
        passages = self.retrieve(turn.text, planted or ())
        chat.add(turn, passages or ())
        messages, is_shared = chat.messages, probe.tool_description is UNSET
        for _ in range(application.max_turns):
            request = application.request(messages, prefill, seed, turn.decoding, is_shared)
            reply = yield msgspec.structs.replace(request, retrieved=passages, planted=planted)
            passages = None  # later replies to the turn answer the results of tools
            if reply.error is not None:
                return reply, None
            meter.add(reply)
            calls = application.calls(prefill, reply)
            messages.append(application.answer_message(prefill + reply.text, calls))
            prefill = ""
            if not calls or application.rendering == "theirs":  # their application answers its own calls
                return reply, None
            messages += application.results([(call.name, self._result(call, probe, world)) for call in calls])
            if limit := meter.met:
                return reply, limit
        return reply, "replies"

    def _result(self, call: ToolCall, probe: Probe, world: World | None) -> str:
        """The result of a call: the probe's own if it has one, else the tool's.

        A tool's is what it reads in the world, what it returned as it ran, or its canned one. Raises
        ToolFailure if the tool should run, and there is nothing that runs it or no result of it.
        """
        tool = next((each for each in self._application.tools if each.name == call.name), None)
        done = None if world is None else world.call(call)
        if done is not None and done.error:
            if tool is not None and tool.runs and self._tools is not None:
                self._tools.note(tool, "arguments-invalid")
            return f"error: {done.error}"
        if probe.tool_result is not None and is_answered_by(call, probe.tool_result):
            return probe.tool_result.text
        if done is not None and done.read is not None:
            return done.read
        if tool is None:
            return f"error: there is no tool named {call.name}"
        if not tool.runs:
            return tool.result
        if self._tools is None:
            raise ToolFailure(f"nothing runs the tool {tool.name} here")
        return self._tools.call(tool, fit(tool, call.arguments).arguments)


class LedConversation:
    """One conversation that a person leads: turns are given one by one, and their number has no limit.

    application: None sends the person's words only. The other limits of an application hold for each turn.
    """

    def __init__(
        self,
        application: Application | None,
        decoding: Decoding,
        seed: int = 0,
        tools: ToolSession | None = None,
    ) -> None:
        self._decoding, self._seed = decoding, seed
        self._chat = _Chat(application, "")
        self._application = application
        if application is not None:
            self._session = ApplicationSession(msgspec.structs.replace(application, decoding=decoding), tools)
            self._world = World(application.state, application.tools)

    def turn(self, text: str, prefill: str = "") -> Generator[Request, Reply, Limit | None]:
        """The replies to one turn, as `converse`; returns the limit that ended them.

        After an error, and if it is closed early, the turn is taken back, with all that followed it.
        """
        before, is_kept = (list(self._chat.messages), self._chat.n_turns), False
        try:
            if self._application is None:
                self._chat.add(Turn(text))
                reply = yield Request(0, tuple(self._chat.messages), self._decoding, self._seed, prefill)
                self._chat.messages.append(Message("assistant", prefill + reply.text))
                limit = None
            else:
                meter, turn = LimitMeter(self._application.limits), Turn(text, prefill)
                reply, limit = yield from self._session.answer(
                    self._chat, turn, _ASKED, self._world, self._seed, meter
                )
            is_kept = reply.error is None
            return limit
        finally:
            if not is_kept:
                self._chat.messages, self._chat.n_turns = before


class _Chat:
    """The messages of a conversation. The first turn brings the passage with it."""

    def __init__(self, application: Application | None, passage: str) -> None:
        self.messages, self._passage, self.n_turns = list[Message](), passage, 0
        if application is not None:
            self.messages += application.messages()
        self._before = (list(self.messages), passage)  # in front of the last turn

    def add(self, turn: Turn, retrieved: Sequence[Retrieved] = ()) -> None:
        """Put the user's turn at the end, or in place of the last turn and all that followed it.

        retrieved: the passages retrieved for it, which come before its text, after the probe's own passage.
        """
        if turn.retracts:
            self.messages, self._passage = list(self._before[0]), self._before[1]
        self._before = (list(self.messages), self._passage)
        # Two messages of the user in a row are more than some templates take.
        is_open = bool(self.n_turns and self.messages) and self.messages[-1].role == "user"
        left = self.messages.pop() if is_open else None
        self.messages += turn.before
        is_bare = not (retrieved or self._passage or left)
        self.messages.append(
            Message("user", turn.text) if is_bare else user_message(turn.text, retrieved, self._passage, left)
        )
        self._passage, self.n_turns = "", self.n_turns + 1


class LimitMeter:
    """Measures one conversation against its limits."""

    def __init__(self, limits: ConversationLimits | None) -> None:
        self._limits = limits
        self._n_tokens, self._started = 0, time.monotonic()

    def add(self, reply: Reply) -> None:
        """Count a reply with its prompt."""
        self._n_tokens += reply.n_prompt_tokens + reply.n_answer_tokens

    @property
    def met(self) -> Limit | None:
        """The limit that is met, tokens first; None for none."""
        if (limits := self._limits) is None:
            return None
        if limits.tokens is not None and self._n_tokens >= limits.tokens:
            return "tokens"
        if limits.seconds is not None:
            return "seconds" if time.monotonic() - self._started >= limits.seconds else None
        return None


# --- the answers of a loaded model to a person ---


def replies(
    engine: Engine,
    conversation: Generator[Request, Reply, T],
    listener: AnswerListener | None = None,
    begin: Callable[[Request], None] | None = None,
) -> Generator[tuple[Request, Reply], None, T]:
    """Each request of a conversation with its reply; returns the end of the conversation.

    begin: takes each request before it is sent.
    Raises EngineFailure, with its code, for a reply that is an error. The conversation is closed then.
    """
    streamer = capabilities(engine).streamer
    try:
        request = next(conversation)
        while True:
            if listener is not None:
                listener.n_heard = 0
            if begin is not None:
                begin(request)
            (reply,) = (
                streamer.stream([request], listener)
                if listener is not None and streamer is not None
                else engine.reply([request])
            )
            if reply.error is not None:
                raise EngineFailure(reply.error)
            yield request, reply
            request = conversation.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        conversation.close()
