"""A model behind guards: an Engine that checks questions and answers.

Promises: a blocked question never reaches the model. The reply names each guard that found something, and has
the model's own text. A guard that raises an error blocks, unless its spec says "open"; then the reply names
the error. The same request gives the same reply.
Leaves to others: the findings themselves (guards/).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from typing import NamedTuple, TypeVar

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from heredity.application.guards import load_guard, standing
from heredity.application.guards.protocols import FAILED_OPEN, GuardRule, GuardSpan, GuardSpec, Side
from heredity.application.spec import Application
from heredity.core.cache import ResponseCache, cache_key
from heredity.core.errors import EngineFailure
from heredity.core.records import Decoding, Message, Reply, Request, ToolCall, digest
from heredity.core.sanitize import clean, clean_text
from heredity.engines import is_batch_unverified
from heredity.engines.protocols import Accountant, DecodingAdapter, Engine

BLOCKED = "I'm sorry, but I can't help with that."
REMOVED = "[removed]"
GUARD_SECONDS = "guard_seconds"  # of an account
_AT_ONCE = 64  # blocked questions that are answered before the engine is asked again
T = TypeVar("T")


class KnownAnswers(NamedTuple):
    """The cache of answers, and the id of the model whose answers without guards are in it."""

    cache: ResponseCache
    model: str


def guarded(
    engine: Engine,
    application: Application,
    more: Sequence[GuardSpec] = (),
    known: KnownAnswers | None = None,
) -> Engine:
    """The engine behind the guards of an application that are on, and `more`; itself without any.

    known: the model's own answers. A guard that only checks answers then costs no further ones.
    """
    guards = [*standing(application), *more]
    return GuardedEngine(engine, application, guards, known) if guards else engine


class _Filtered(NamedTuple):
    """A text without the findings, whether it is blocked, the notes of the guards, and if they changed it."""

    text: str
    is_blocked: bool
    notes: tuple[str, ...]
    is_changed: bool = False


class _Admitted(NamedTuple):
    """A request, the one for the model, the findings in it, and the reply if the model is not asked."""

    request: Request
    prepared: Request
    notes: tuple[str, ...]
    blocked: Reply | None


class GuardedEngine:
    """An engine behind guards. It does not stream, and has no access to weights."""

    def __init__(
        self,
        inner: Engine,
        application: Application,
        specs: Sequence[GuardSpec],
        known: KnownAnswers | None = None,
    ) -> None:
        self._inner, self._application = inner, application
        self._answers = known if inner.numerics else None
        self._guards: list[tuple[GuardSpec, GuardRule]] = [(spec, load_guard(spec)) for spec in specs]
        names = "+".join(spec.label for spec in specs)
        self.name = f"{inner.name} behind {names}"
        layer = digest([list(specs), application.digest])[:12]  # a guard knows its secrets and tools
        self.numerics = f"{inner.numerics} behind {layer}" if inner.numerics else ""
        self.is_batch_unverified = is_batch_unverified(inner)
        self._seconds = 0.0

    def render(self, request: Request) -> str:
        """The prompt that the model gets."""
        return self._inner.render(self._prepared(request))

    def as_sent(self, decoding: Decoding) -> Decoding:
        """The decoding that the engine uses."""
        return self._inner.as_sent(decoding) if isinstance(self._inner, DecodingAdapter) else decoding

    def account(self) -> dict[str, object]:
        """The engine's account, with the seconds of the guards."""
        own = self._inner.account() if isinstance(self._inner, Accountant) else {}
        return {**own, GUARD_SECONDS: round(self._seconds, 3)}

    def close(self) -> None:
        """Close the engine."""
        self._inner.close()

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Answer a stream of requests (protocols.Engine)."""
        stream = _Stream(iter(requests), self._admitted)
        while not stream.is_over:
            with closing(_generator(self._inner.reply(stream.passed()))) as replies:
                for found in replies:
                    admitted = stream.asked(found.key)
                    self._keep(admitted.prepared, found)
                    yield self._checked(admitted, found)
                    yield from stream.blocked()
            yield from stream.blocked()

    # --- what goes in ---

    def _admitted(self, request: Request) -> _Admitted:
        """The request for the model, or a reply in its place if a guard blocks one of the newest messages."""
        newest: list[Message] = []
        for message in reversed(request.messages[request.n_shared :]):
            if message.role == "assistant":
                break
            if message.role != "system":
                newest.append(message)
        parts = ((m.content[low:high], side) for m in reversed(newest) for low, high, side in _parts(m))
        found = [self._filtered(text, side) for text, side in parts]
        notes = tuple(dict.fromkeys(note for each in found for note in each.notes))
        prepared = self._prepared(request)
        if not any(each.is_blocked for each in found):
            admitted = _Admitted(request, prepared, notes, None)
            if (known := self._known(prepared)) is None:
                return admitted
            return admitted._replace(blocked=self._checked(admitted, known))
        prompt = ""
        with suppress(EngineFailure):  # a prompt that does not fit, of a question that is not asked
            prompt = self._inner.render(prepared)
        return _Admitted(
            request,
            prepared,
            notes,
            Reply(request.key, prompt, BLOCKED, stop="filter", n_tokens=0, guarded=notes),
        )

    def _prepared(self, request: Request) -> Request:
        """The request without what guards take out, as they rewrite it."""
        shared, own = request.messages[: request.n_shared], request.messages[request.n_shared :]
        request = replace(request, messages=(*shared, *map(self._cleaned, own)))
        for _, guard in self._guards:
            request = guard.prepare(request, self._application)
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

    # --- the model's own answers ---

    def _known(self, request: Request) -> Reply | None:
        """The model's answer from the cache."""
        if self._answers is None:
            return None
        try:
            prompt = clean_text(self._inner.render(request))
        except EngineFailure:  # the engine reports it
            return None
        found = self._answers.cache.get(self._key(request, prompt))
        return None if found is None else replace(found, key=request.key)

    def _keep(self, request: Request, reply: Reply) -> None:
        if self._answers is not None:
            reply = clean(reply)
            self._answers.cache.put(self._key(request, reply.prompt), reply)

    def _key(self, request: Request, prompt: str) -> str:
        """The key of the model without guards, as a study has it."""
        model = "" if self._answers is None else self._answers.model
        decoding = self.as_sent(request.decoding)
        return cache_key(self._inner.numerics, model, prompt, decoding, request.seed)

    # --- what comes out ---

    def _checked(self, admitted: _Admitted, reply: Reply) -> Reply:
        """The reply as guards let it pass."""
        request = admitted.request
        if reply.error is not None or reply.stop == "error":
            return reply
        start, names = len(request.prefill), request.tool_names
        called = self._filtered_calls(self._application.calls(request.prefill, reply, names))
        found = self._filtered(request.prefill + reply.text, "answer", start)
        text, calls, stop = found.text[start:], reply.tool_calls, reply.stop
        is_blocked = called.is_blocked or found.is_blocked or (text != reply.text and is_removed(text))
        notes = called.notes
        if not is_blocked and (
            left := self._application.calls(request.prefill, replace(reply, text=text), names)
        ):
            # A tool would get these values, which JSON may have spelt otherwise in the text.
            values = self._filtered("\n".join(_values(left)), "answer")
            is_blocked, notes = values.is_changed, (*notes, *values.notes)
        every = tuple(dict.fromkeys((*admitted.notes, *notes, *found.notes)))
        if is_blocked:
            text, calls, stop = BLOCKED, (), "filter"
        elif not found.is_changed:
            return replace(reply, guarded=every) if every else reply
        n_tokens = len(reply.tokens) if reply.n_tokens is None else reply.n_tokens
        return replace(
            reply, text=text, tool_calls=calls, stop=stop, tokens=(), n_tokens=n_tokens,
            guarded=every, withheld=clean_text(reply.text),
        )  # fmt: skip

    def _filtered_calls(self, calls: Sequence[ToolCall]) -> _Filtered:
        """Whether the guards block one of these calls."""
        notes: list[str] = []
        is_blocked = False
        for spec, guard in self._guards:
            for call in calls:
                why, error = self._tried(lambda: guard.forbids(call, self._application), "")  # noqa: B023
                is_blocked |= bool(why) or (bool(error) and spec.fails == "closed")
                if why or error:
                    notes.append(self._note(spec, why, error))
        return _Filtered("", is_blocked, tuple(dict.fromkeys(notes)))

    def _filtered(self, text: str, side: Side, start: int = 0) -> _Filtered:
        """A text as the guards of this side let it pass, one after the other. Before `start` all passes."""
        notes: list[str] = []
        is_changed = False
        for spec, guard in self._guards:
            if side not in guard.SIDES:
                continue
            nothing: Sequence[GuardSpan] = ()
            found, error = self._tried(lambda: guard.find(text, side, self._application), nothing)  # noqa: B023
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
            text, is_changed = _without(text, spans), True
        return _Filtered(text, False, tuple(notes), is_changed)

    def _tried(self, check: Callable[[], T], passing: T) -> tuple[T, str]:
        """The result of a guard's check, and the kind of its error."""
        start = time.monotonic()
        try:
            return check(), ""
        except Exception as error:
            return passing, type(error).__name__
        finally:
            self._seconds += time.monotonic() - start

    def _note(self, spec: GuardSpec, why: str, error: str = "") -> str:
        """What a guard found, or its error: a row must show that a check was left out."""
        if error:
            return clean_text(f"{spec.label}{FAILED_OPEN if spec.fails == 'open' else ': failed: '}{error}")
        return clean_text(f"{spec.label}: {why}")


class _Stream:
    """The requests that pass to the engine, and the replies of those that do not."""

    def __init__(self, source: Iterator[Request | None], admit: Callable[[Request], _Admitted]) -> None:
        self._source, self._admit = source, admit
        self._asked: dict[int, _Admitted] = {}  # in the engine
        self._blocked: deque[Reply] = deque()
        self.is_over = False

    def passed(self) -> Iterator[Request | None]:
        """The requests for one call of the engine. It ends early to let blocked questions be answered."""
        for request in self._source:
            if request is None:
                if self._blocked and not self._asked:
                    return
                yield None
                continue
            admitted = self._admit(request)
            if admitted.blocked is None:
                self._asked[request.key] = admitted
                yield admitted.prepared
                continue
            self._blocked.append(admitted.blocked)
            if len(self._blocked) >= _AT_ONCE and not self._asked:
                return
        self.is_over = True

    def asked(self, key: int) -> _Admitted:
        """The request of a reply of the engine. Raises EngineFailure for one that was not asked."""
        if (found := self._asked.pop(key, None)) is None:
            raise EngineFailure(
                f"the engine answered request {key}, which was not asked", code="reply-not-asked"
            )
        return found

    def blocked(self) -> Iterator[Reply]:
        """The replies of blocked questions so far."""
        while self._blocked:
            yield self._blocked.popleft()


def _generator(replies: Iterator[Reply]) -> Generator[Reply, None, None]:
    """The replies as a generator, which can be closed."""
    yield from replies


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


def _without(text: str, spans: Sequence[GuardSpan]) -> str:
    """A text with REMOVED in place of the spans."""
    found, at = "", 0
    for span in spans:
        found += text[at : span.start] + REMOVED
        at = span.end
    return found + text[at:]
