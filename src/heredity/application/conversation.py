"""One conversation inside an application, as a generator that yields requests and receives replies.

Promises: one shape for one question and for many turns, testable without a model. Tool calls are answered
before the next turn. The limits hold.
Leaves to others: the questions (redteam/attacks/), the answers (engines/), and the application's own
formats (spec.py, tools.py).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from heredity.application.limits import LimitMeter
from heredity.application.tools import World
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
    Turn,
)

if TYPE_CHECKING:
    from heredity.application.spec import Application
    from heredity.application.toolbox import ToolSession

_BEFORE, _BEHIND = "Retrieved document:\n", "\n\n"  # a passage that is shown with a turn
_ASKS = "Question: "  # before the user's text, where passages precede it
_ASKED = Probe("ask", "ask", "benign", ("",), Check("refusal"), "ask")  # a turn of a person, without a check


class Ending(NamedTuple):
    """How a conversation ended.

    is_made: whether a turn that makes the probe's demand was answered. limit: of the application, if one
    ended it.
    """

    is_made: bool
    limit: Limit | None = None


def converse(
    application: Application,
    turns: Generator[Turn | Consult, Reply, None],
    probe: Probe,
    seed: int = 0,
    tools: ToolSession | None = None,
) -> Generator[Request | Consult, Reply, Ending]:
    """One conversation as a generator: yields a request, receives the reply; returns how it ended.

    User turns come from the attack, until it ends, or a limit or an error does. A fresh turn restarts
    conversation and turns; one that retracts replaces the turn before it, and both count. The tools' state
    stays. A Consult is passed on. Without `tools`, tools that run fail.
    """
    application = application.for_probe(probe)
    chat, world = _Chat(application, probe.passage), World(application.state, application.tools)
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
        found = application.retrieve(turn.text, probe.planted)
        chat.add(turn, () if isinstance(found, UnsetType) else found)
        reply, limit = yield from _answer(
            application, chat.messages, turn, probe, world, seed, found, meter, tools
        )
        if reply.error is not None:
            return Ending(is_made)
        is_made |= turn.asks


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
        self._application, self._decoding, self._seed, self._tools = application, decoding, seed, tools
        self._chat = _Chat(application, "")
        if application is not None:
            self._application = application = msgspec.structs.replace(application, decoding=decoding)
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
                reply, limit = yield from self._inside(self._application, Turn(text, prefill))
            is_kept = reply.error is None
            return limit
        finally:
            if not is_kept:
                self._chat.messages, self._chat.n_turns = before

    def _inside(
        self, application: Application, turn: Turn
    ) -> Generator[Request, Reply, tuple[Reply, Limit | None]]:
        found = application.retrieve(turn.text)
        self._chat.add(turn, () if isinstance(found, UnsetType) else found)
        meter, messages = LimitMeter(application.limits), self._chat.messages
        return (
            yield from _answer(
                application, messages, turn, _ASKED, self._world, self._seed, found, meter, self._tools
            )
        )


class _Chat:
    """The messages of a conversation. The first turn brings the passage with it."""

    def __init__(self, application: Application | None, passage: str) -> None:
        self.messages, self._passage, self.n_turns = list[Message](), passage, 0
        if application is not None:
            self.messages += application.messages()
        self._before = (list(self.messages), passage)  # in front of the last turn

    def add(self, turn: Turn, found: Sequence[Retrieved] = ()) -> None:
        """Put the user's turn at the end, or in place of the last turn and all that followed it.

        found: the passages retrieved for it, which come before its text, after the probe's own passage.
        """
        if turn.retracts:
            self.messages, self._passage = list(self._before[0]), self._before[1]
        self._before = (list(self.messages), self._passage)
        # Two messages of the user in a row are more than some templates take.
        is_open = bool(self.n_turns and self.messages) and self.messages[-1].role == "user"
        left = self.messages.pop() if is_open else None
        self.messages += turn.before
        self.messages.append(user_message(turn.text, found, self._passage, left))
        self._passage, self.n_turns = "", self.n_turns + 1


def _answer(
    application: Application,
    messages: list[Message],
    turn: Turn,
    probe: Probe,
    world: World,
    seed: int,
    found: tuple[Retrieved, ...] | UnsetType,
    meter: LimitMeter,
    tools: ToolSession | None,
) -> Generator[Request, Reply, tuple[Reply, Limit | None]]:
    """The replies to one turn, put behind `messages`; returns the last, and the limit that ended them.

    A tool call is answered with the probe's or the tool's own result, and the model replies again. That
    ends when it calls no tool, has replied `max_turns` times, or meets a limit of the conversation. Results
    that the model has not read then come with the next turn.
    """
    prefill = turn.prefill
    is_shared = probe.tool_description is UNSET
    for _ in range(application.max_turns):
        request = application.request(messages, prefill, seed, turn.decoding, is_shared)
        reply = yield msgspec.structs.replace(request, retrieved=found, planted=probe.planted)
        found = UNSET  # later replies to the turn answer the results of tools
        if reply.error is not None:
            return reply, None
        meter.add(reply)
        calls = application.calls(prefill, reply)
        messages.append(application.said(prefill + reply.text, calls))
        prefill = ""
        if not calls or application.rendering == "theirs":  # their application answers its own calls
            return reply, None
        named = [(call.name, application.tool_result(call, probe, world, tools)) for call in calls]
        messages += application.results(named)
        if limit := meter.met:
            return reply, limit
    return reply, "replies"


def user_message(
    text: str, found: Sequence[Retrieved] = (), passage: str = "", left: Message | None = None
) -> Message:
    """A turn of the user: its text behind the passages that are shown with it.

    passage: that of a probe, which comes before those that were retrieved. left: the turn before, if it got
    no answer.
    """
    passages = [passage.strip()] if passage else []
    passages += map(shown_passage, found)
    shown, data = "", list[tuple[int, int]]()
    for each in passages:
        shown += _BEFORE
        data.append((len(shown), len(shown) + len(each)))
        shown += f"{each}{_BEHIND}"
    made = Message("user", f"{shown}{_ASKS}{text}", data=tuple(data)) if shown else Message("user", text)
    return _joined(left, made)


def shown_passage(found: Retrieved) -> str:
    """A retrieved passage as the model sees it."""
    return f"[{found.citation}]\n{found.text}"


def without_passages(message: Message, is_left_out: Callable[[str], bool]) -> Message:
    """A message of the user without some of the passages shown with it, as if they had not been found."""
    content, text, data, at = message.content, "", list[tuple[int, int]](), 0
    for spans in _turns(message):
        are_passages = _is_passage(message, spans[0][0])
        kept = [span for span in spans if not (are_passages and is_left_out(content[slice(*span)]))]
        text += content[at : spans[0][0]].removesuffix(_BEFORE)
        at = spans[-1][1] + len(_BEHIND) if are_passages else spans[-1][1]
        for low, high in kept:
            text += _BEFORE if are_passages else ""
            data.append((len(text), len(text) + high - low))
            text += content[low:high] + (_BEHIND if are_passages else "")
        if not kept:
            at += len(_ASKS)
    return msgspec.structs.replace(message, content=text + content[at:], data=tuple(data) or UNSET)


def with_passages(message: Message, found: Sequence[Retrieved]) -> Message:
    """A message of the user with these passages in front, as if they had been retrieved for it."""
    if not found:
        return message
    front = user_message("", found)
    assert not isinstance(front.data, UnsetType)
    own = () if isinstance(message.data, UnsetType) else message.data
    before = front.content.removesuffix(_ASKS) if message.content.startswith(_BEFORE) else front.content
    moved = ((low + len(before), high + len(before)) for low, high in own)
    return msgspec.structs.replace(message, content=before + message.content, data=(*front.data, *moved))


def own_words(message: Message) -> str:
    """The words of the user in a message, without passages; "" for results of tools and other roles."""
    if message.role != "user" or isinstance(message.data, UnsetType):
        return message.content if message.role == "user" else ""
    bare = without_passages(message, lambda _: True)
    return bare.content if isinstance(bare.data, UnsetType) else ""


def _turns(message: Message) -> list[list[tuple[int, int]]]:
    """The data of a message: the passages of one turn together, and each result of a tool by itself."""
    turns: list[list[tuple[int, int]]] = []
    for low, high in () if isinstance(message.data, UnsetType) else message.data:
        between = message.content[turns[-1][-1][1] : low] if turns else ""
        if between == _BEHIND + _BEFORE and _is_passage(message, turns[-1][0][0]):
            turns[-1].append((low, high))
        else:
            turns.append([(low, high)])
    return turns


def _is_passage(message: Message, start: int) -> bool:
    return message.content[:start].endswith(_BEFORE)


def _joined(first: Message | None, second: Message) -> Message:
    """Two messages of the user as one."""
    if first is None:
        return second
    text = f"{first.content}\n\n"
    earlier = () if isinstance(first.data, UnsetType) else first.data
    later = () if isinstance(second.data, UnsetType) else second.data
    data = (*earlier, *((low + len(text), high + len(text)) for low, high in later))
    return Message("user", text + second.content, data=data or UNSET)
