"""The guards of an application in their order: what they let pass of a question, and of its answer.

Promises: the model never sees a text that was blocked. Each guard that found something is named, and so is an
error of a guard. The same text gives the same findings.
Leaves to others: the findings themselves (guards/), and asking the model (guarded.py, deploy/serve).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from heredity.application.guard_models import ModelReads
from heredity.application.guards import load_guard
from heredity.application.guards.model import ModelGuard
from heredity.application.guards.protocols import (
    FAILED,
    FAILED_OPEN,
    GuardReaders,
    GuardRule,
    GuardSpan,
    GuardSpec,
    ReadText,
    Side,
    apart,
)
from heredity.application.spec import Application
from heredity.core.records import Message, Reply, Request, ToolCall
from heredity.core.sanitize import clean_text

READ_AT_ONCE = 16  # texts that the model of a guard reads together
BLOCKED = "I'm sorry, but I can't help with that."
REMOVED = "[removed]"
T = TypeVar("T")


class Admission(NamedTuple):
    """A request as guards let it pass, and what they found. A blocked one must not reach the model."""

    request: Request
    prepared: Request
    notes: tuple[str, ...]
    is_blocked: bool

    def refused(self, prompt: str = "") -> Reply:
        """The reply to a blocked request. prompt: what the model would have got."""
        return Reply(self.request.key, prompt, BLOCKED, stop="filter", n_tokens=0, guarded=self.notes)


class _Filtered(NamedTuple):
    """A text without the findings, whether it is blocked, the notes of the guards, and if they changed it."""

    text: str
    is_blocked: bool
    notes: tuple[str, ...]
    is_changed: bool = False


class GuardChain:
    """Guards one after the other. `seconds`: that they took so far.

    readers: the models of guards; a chain with such a guard is refused without them. Threads may share a
    chain if they may share its models.
    """

    def __init__(
        self, specs: Sequence[GuardSpec], application: Application, readers: GuardReaders | None = None
    ) -> None:
        self._application, self.seconds = application, 0.0
        self._guards: list[tuple[GuardSpec, GuardRule]] = [(spec, load_guard(spec)) for spec in specs]
        self._models = [guard for _, guard in self._guards if isinstance(guard, ModelGuard)]
        self._reads = ModelReads(self._models, readers)

    def n_at_once(self, *sides: Side) -> int:
        """How many requests or replies to `read_ahead` together: several if a model reads these sides."""
        return READ_AT_ONCE if any({*sides} & {*guard.sides} for guard in self._models) else 1

    def read_requests(self, requests: Sequence[Request]) -> None:
        """Let the models of guards read the newest texts of many requests together, before `admit`."""
        texts = [(side, "", text) for each in requests for text, side in self._newest(each)]
        self._read_ahead([ReadText(*text) for text in texts])

    def read_replies(self, replies: Sequence[tuple[Admission, Reply]]) -> None:
        """Let the models of guards read many answers together, before `check`."""
        self._read_ahead(
            [
                ReadText("answer", asked_text(admitted.request), admitted.request.prefill + reply.text)
                for admitted, reply in replies
                if reply.error is None
            ]
        )

    def _read_ahead(self, texts: Sequence[ReadText]) -> None:
        """A failure is not noted here: the text is read again by itself, and the guard fails there."""
        start = time.monotonic()
        for guard in self._models:
            wanted = [text for text in texts if text.side in guard.sides and text.text.strip()]
            with suppress(Exception):
                self._reads.read(guard, wanted)
        self.seconds += time.monotonic() - start

    @property
    def retrieves(self) -> bool:
        """Whether one of the guards adds passages."""
        return any(guard.RETRIEVES for _, guard in self._guards)

    def admit(self, request: Request) -> Admission:
        """The request for the model. It is blocked if a guard blocks one of the newest messages."""
        found = [self._filtered(text, side) for text, side in self._newest(request)]
        notes = tuple(dict.fromkeys(note for each in found for note in each.notes))
        return Admission(request, self.prepared(request), notes, any(each.is_blocked for each in found))

    def _newest(self, request: Request) -> list[tuple[str, Side]]:
        """The parts of the messages since the last answer."""
        newest: list[Message] = []
        for message in reversed(request.messages[request.n_shared :]):
            if message.role == "assistant":
                break
            if message.role != "system":
                newest.append(message)
        return [(m.content[low:high], side) for m in reversed(newest) for low, high, side in _parts(m)]

    def prepared(self, request: Request) -> Request:
        """The request without what guards take out, as they rewrite it."""
        shared, own = request.messages[: request.n_shared], request.messages[request.n_shared :]
        request = replace(request, messages=(*shared, *map(self._cleaned, own)))
        for _, guard in self._guards:
            request = guard.prepare(request, self._application.facts)
        return request

    def _cleaned(self, message: Message) -> Message:
        """A message without the findings in its parts. The model never sees a text that was blocked."""
        if message.role not in ("user", "tool"):
            return message
        text, spans = "", []
        for low, high, side in _parts(message):
            start = len(text)
            text += self._filtered(message.content[low:high], side).text
            if side == "data":
                spans.append((start, len(text)))
        is_marked = not isinstance(message.data, UnsetType)
        return replace(message, content=text, data=tuple(spans) if is_marked else UNSET)

    def check(self, admitted: Admission, reply: Reply) -> Reply:
        """The reply as guards let it pass."""
        request = admitted.request
        if reply.error is not None or reply.stop == "error":
            return reply
        start, names = len(request.prefill), request.tool_names
        called = self._filtered_calls(self._application.calls(request.prefill, reply, names))
        asked = asked_text(request)
        is_cut = reply.stop == "length"
        found = self._filtered(request.prefill + reply.text, "answer", start, asked, is_cut)
        text, calls, stop = found.text[start:], reply.tool_calls, reply.stop
        is_blocked = called.is_blocked or found.is_blocked or (text != reply.text and is_removed(text))
        notes = called.notes
        if not is_blocked and (
            left := self._application.calls(request.prefill, replace(reply, text=text), names)
        ):
            # A tool would get these values, which JSON may have spelt otherwise in the text.
            values = self._filtered("\n".join(_values(left)), "answer", 0, asked)
            is_blocked, notes = values.is_changed, (*notes, *values.notes)
        every = tuple(dict.fromkeys((*admitted.notes, *notes, *found.notes)))
        if is_blocked:
            text, calls, stop = BLOCKED, (), "filter"
        elif not found.is_changed:
            return replace(reply, guarded=every) if every else reply
        return replace(
            reply, text=text, tool_calls=calls, stop=stop, tokens=(), n_tokens=reply.n_answer_tokens,
            guarded=every, withheld=clean_text(reply.text),
        )  # fmt: skip

    def _filtered_calls(self, calls: Sequence[ToolCall]) -> _Filtered:
        """Whether the guards block one of these calls."""
        notes: list[str] = []
        is_blocked = False
        for spec, guard in self._guards:
            for call in calls:
                why, error = self._tried(lambda: guard.forbids(call, self._application.facts), "")  # noqa: B023
                is_blocked |= bool(why) or (bool(error) and spec.fails == "closed")
                if why or error:
                    notes.append(self._note(spec, why, error))
        return _Filtered("", is_blocked, tuple(dict.fromkeys(notes)))

    def _filtered(
        self, text: str, side: Side, start: int = 0, question: str = "", is_cut: bool = False
    ) -> _Filtered:
        """A text as the guards of this side let it pass, one after the other. Before `start` all passes.

        is_cut: the limit on tokens ended it.
        """
        notes: list[str] = []
        is_changed = False
        for spec, guard in self._guards:
            if side not in guard.SIDES:
                continue
            nothing: Sequence[GuardSpan] = ()
            found, error = self._tried(lambda: self._found(guard, text, side, question, is_cut), nothing)  # noqa: B023
            if error:
                notes.append(self._note(spec, "", error))
                if spec.fails == "closed":
                    return _Filtered(REMOVED, True, tuple(notes), True)
            spans = [span._replace(start=max(span.start, start)) for span in found if span.end > start]
            if not spans:
                continue
            notes += dict.fromkeys(self._note(spec, span.why) for span in spans)
            if guard.acts == "block":
                return _Filtered(REMOVED, True, tuple(notes), True)
            text, is_changed = without_spans(text, spans), True
        return _Filtered(text, False, tuple(notes), is_changed)

    def _found(
        self, guard: GuardRule, text: str, side: Side, question: str, is_cut: bool
    ) -> Sequence[GuardSpan]:
        """The findings of a guard in a text, by itself or by its model."""
        if not isinstance(guard, ModelGuard):
            found = guard.find(text, side, self._application.facts)
            return apart([*found, *guard.find_cut(text, self._application.facts)]) if is_cut else found
        if side not in guard.sides or not text.strip():
            return ()
        return guard.found(text, self._reads.score(guard, ReadText(side, question, text)))

    def _tried(self, check: Callable[[], T], passing: T) -> tuple[T, str]:
        """The result of a guard's check, and the kind of its error."""
        start = time.monotonic()
        try:
            return check(), ""
        except Exception as error:
            return passing, type(error).__name__
        finally:
            self.seconds += time.monotonic() - start

    def _note(self, spec: GuardSpec, why: str, error: str = "") -> str:
        """A finding of a guard, or its error: a row must show that a check was left out."""
        if error:
            return clean_text(f"{spec.label}{FAILED_OPEN if spec.fails == 'open' else FAILED}{error}")
        return clean_text(f"{spec.label}: {why}")


def _parts(message: Message) -> Iterator[tuple[int, int, Side]]:
    """The parts of a message by who wrote them: (start, end, side), in order and without a gap."""
    if message.role == "tool":
        yield 0, len(message.content), "data"
        return
    at = 0
    for low, high in () if isinstance(message.data, UnsetType) else message.data:
        if at < low:
            yield at, low, "user"
        yield low, high, "data"
        at = high
    if at < len(message.content) or not message.content:
        yield at, len(message.content), "user"


def asked_text(request: Request) -> str:
    """The question of a request: what the user says in the last message, without data."""
    last = next((m for m in reversed(request.messages) if m.role == "user"), None)
    if last is None:
        return ""
    return "".join(last.content[low:high] for low, high, side in _parts(last) if side == "user")


def is_removed(text: str) -> bool:
    """Whether nothing but marks of what was removed is left of an answer."""
    return not any(map(str.isalnum, text.replace(REMOVED, "")))


def _values(calls: Sequence[ToolCall]) -> Iterator[str]:
    """The texts and numbers of calls, however deep."""
    left: list[object] = [value for call in reversed(calls) for value in (call.arguments, call.name)]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += [part for pair in value.items() for part in pair][::-1]
        elif isinstance(value, list | tuple):
            left += reversed(value)
        elif value is not None and not isinstance(value, bool):
            yield str(value)


def without_spans(text: str, spans: Sequence[GuardSpan]) -> str:
    """A text with REMOVED in place of the spans."""
    found, at = "", 0
    for span in spans:
        found += text[at : span.start] + REMOVED
        at = span.end
    return found + text[at:]
