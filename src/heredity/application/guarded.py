"""A model behind guards: an Engine that checks questions and answers.

Promises: a blocked question never reaches the model. The reply names each guard that found something, and has
the model's own text. A guard that raises an error blocks, unless its spec says "open"; then the reply names
the error. The same request gives the same reply.
A guard model is identified before an application with it has a digest, and refused under another identity. It
reads a text once, however often it comes.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from threading import Lock
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from heredity.application.guards import (
    FAILED,
    FAILED_OPEN,
    GuardReaders,
    GuardRule,
    GuardSpan,
    GuardSpec,
    ModelScore,
    ReadText,
    Side,
    apart,
    content,
    load_guard,
)
from heredity.application.guards.model import ModelGuard
from heredity.application.spec import Application
from heredity.core.cache import ResponseCache, cache_key
from heredity.core.errors import EngineFailure, NotComparable, UsageError
from heredity.core.records import Message, Reply, Request, ToolCall, digest
from heredity.core.sanitize import clean, clean_text
from heredity.engines import Capabilities, Engine, capabilities

_KEPT = 4096  # scores of the texts that were read last


def identified(application: Application, readers: GuardReaders) -> Application:
    """The application with the identity of each guard model; itself without any.

    Raises as GuardReaders.identify does, and NotComparable if the application names another identity.
    """
    if not application.has_guard_models:
        return application
    specs = tuple(_identified(spec, readers) for spec in application.all_guards)
    return msgspec.structs.replace(application, guards=specs)


def _identified(spec: GuardSpec, readers: GuardReaders) -> GuardSpec:
    if not isinstance(rule := load_guard(spec), ModelGuard):
        return spec
    return msgspec.structs.replace(spec, settings={**spec.settings, "identity": _identity(rule, readers)})


def _identity(rule: ModelGuard, readers: GuardReaders) -> str:
    identity = readers.identify(rule.model, rule.sides)
    if rule.identity not in ("", identity):
        raise NotComparable(
            f"The guard model '{rule.model}' is {identity} here, and the application has "
            f"{rule.identity[:40]!r}. Restore that model, or start a new study."
        )
    return identity


class ModelReads:
    """The scores of the models of some guards. Threads may share it if they may share the models."""

    def __init__(self, rules: Iterable[ModelGuard], readers: GuardReaders | None) -> None:
        """Raises UsageError without readers, and what they raise."""
        self._readers = {}
        for rule in rules:
            if readers is None:
                raise UsageError(f"The guard model '{rule.model}' cannot be loaded here.")
            _identity(rule, readers)
            self._readers[rule.model] = readers.reader(rule.model)
        self._kept: dict[str, ModelScore] = {}
        self._lock = Lock()

    def score(self, rule: ModelGuard, text: ReadText) -> ModelScore:
        """The score of one text."""
        return self.read(rule, [text])[0]

    def read(self, rule: ModelGuard, texts: Sequence[ReadText]) -> list[ModelScore]:
        """The scores of many texts, in order. Those that were not read yet are read together."""
        texts = [ReadText(each.side, clean_text(each.question), clean_text(each.text)) for each in texts]
        keys = [digest([rule.model, *text]) for text in texts]
        with self._lock:
            by_key = {key: self._kept[key] for key in keys if key in self._kept}
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in by_key}
        if new:
            scores = self._readers[rule.model].scores(list(new.values()))
            fresh = dict(zip(new, scores, strict=True))
            by_key |= fresh
            self._keep({key: score for key, score in fresh.items() if score.score is not None})
        return [by_key[key] for key in keys]

    def _keep(self, scores: dict[str, ModelScore]) -> None:
        with self._lock:
            self._kept |= scores
            while len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]


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
        parts = [self._filtered(text, side) for text, side in self._newest(request)]
        notes = tuple(dict.fromkeys(note for each in parts for note in each.notes))
        return Admission(request, self.prepared(request), notes, any(each.is_blocked for each in parts))

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
        answer = self._filtered(request.prefill + reply.text, "answer", start, asked, is_cut)
        text, calls, stop = answer.text[start:], reply.tool_calls, reply.stop
        is_blocked = called.is_blocked or answer.is_blocked or (text != reply.text and is_removed(text))
        notes = called.notes
        if not is_blocked and (
            left := self._application.calls(request.prefill, replace(reply, text=text), names)
        ):
            # A tool would get these values, which JSON may have spelt otherwise in the text.
            values = self._filtered("\n".join(_values(left)), "answer", 0, asked)
            is_blocked, notes = values.is_changed, (*notes, *values.notes)
        every = tuple(dict.fromkeys((*admitted.notes, *notes, *answer.notes)))
        if is_blocked:
            text, calls, stop = BLOCKED, (), "filter"
        elif not answer.is_changed:
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
            check = partial(self._findings, guard, text, side, question, is_cut)
            findings, error = self._tried(check, nothing)
            if error:
                notes.append(self._note(spec, "", error))
                if spec.fails == "closed":
                    return _Filtered(REMOVED, True, tuple(notes), True)
            spans = [span._replace(start=max(span.start, start)) for span in findings if span.end > start]
            if not spans:
                continue
            notes += dict.fromkeys(self._note(spec, span.why) for span in spans)
            if guard.acts == "block":
                return _Filtered(REMOVED, True, tuple(notes), True)
            text, is_changed = without_spans(text, spans), True
        return _Filtered(text, False, tuple(notes), is_changed)

    def _findings(
        self, guard: GuardRule, text: str, side: Side, question: str, is_cut: bool
    ) -> Sequence[GuardSpan]:
        """The findings of a guard in a text, by itself or by its model."""
        if not isinstance(guard, ModelGuard):
            spans = guard.find(text, side, self._application.facts)
            return apart([*spans, *guard.find_cut(text, self._application.facts)]) if is_cut else spans
        if side not in guard.sides or not text.strip():
            return ()
        return guard.spans(text, self._reads.score(guard, ReadText(side, question, text)))

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
    """A text with the words of each span in its place; REMOVED for a span without any."""
    kept, at = "", 0
    for span in spans:
        kept += text[at : span.start] + (span.instead or REMOVED)
        at = span.end
    return kept + text[at:]


GUARD_SECONDS, GUARD_ANSWERS = "guard_seconds", "n_guarded_answers"  # of an account
_AT_ONCE = 64  # blocked questions that are answered before the engine is asked again


class KnownAnswers(NamedTuple):
    """The cache of answers, and the id of the model whose answers without guards are in it."""

    cache: ResponseCache
    model: str


def guarded(
    engine: Engine,
    application: Application,
    more: Sequence[GuardSpec] = (),
    known: KnownAnswers | None = None,
    readers: GuardReaders | None = None,
) -> Engine:
    """The engine behind the guards of an application that are on, and `more`; itself without any.

    known: the model's own answers. A guard that only checks answers then costs no further ones.
    readers: the models of guards. Raises UsageError if a guard needs one and this is None.
    """
    guards = [*application.standing_guards, *more]
    return GuardedEngine(engine, application, guards, known, readers) if guards else engine


class _Admitted(NamedTuple):
    """A request behind guards. If the model is not asked: the reply to a blocked one, or the known answer."""

    admission: Admission
    refused: Reply | None = None
    known: Reply | None = None


class GuardedEngine:
    """An engine behind guards. It does not stream, and has no access to weights."""

    def __init__(
        self,
        inner: Engine,
        application: Application,
        specs: Sequence[GuardSpec],
        known: KnownAnswers | None = None,
        readers: GuardReaders | None = None,
    ) -> None:
        self._inner, self._guards = inner, GuardChain(specs, application, readers)
        self._answers = known if inner.numerics else None
        names = "+".join(spec.label for spec in specs)
        self.name = f"{inner.name} behind {names}"
        layer = digest([content(specs), application.digest])[:12]  # a guard knows its secrets and tools
        self.numerics = f"{inner.numerics} behind {layer}" if inner.numerics else ""
        self._n_answers = 0

    def render(self, request: Request) -> str:
        """The prompt that the model gets."""
        return self._inner.render(self.prepared(request))

    def prepared(self, request: Request) -> Request:
        """The request that the model gets in place of this one."""
        return self._guards.prepared(request)

    @property
    def retrieves(self) -> bool:
        """Whether `prepared` may add passages."""
        return self._guards.retrieves

    @property
    def capabilities(self) -> Capabilities:
        """Where the answers come from."""
        provenance = capabilities(self._inner).provenance
        return Capabilities(
            provenance=dataclasses.replace(provenance, account=self.account, base_numerics="")
        )

    def account(self) -> dict[str, object]:
        """The engine's account, with the seconds of the guards and the answers that they took."""
        return {
            **capabilities(self._inner).provenance.account(),
            GUARD_SECONDS: round(self._guards.seconds, 3),
            GUARD_ANSWERS: self._n_answers,
        }

    def close(self) -> None:
        """Close the engine."""
        self._inner.close()

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Answer a stream of requests (protocols.Engine)."""
        for reply in self._replies(requests):
            self._n_answers += 1
            yield reply

    def _replies(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        stream = _Stream(self._read(iter(requests)), self._admitted)
        n_at_once = self._guards.n_at_once("answer")
        while not stream.is_over:
            with closing(_generator(self._inner.reply(stream.passed()))) as replies:
                for reply in replies:
                    admitted = stream.asked(reply.key)
                    if self._answers is not None:
                        kept = clean(reply)
                        self._answers.cache.put(self._key(admitted.prepared, kept.prompt), kept)
                    stream.answered.append((admitted, reply))
                    if len(stream.answered) >= n_at_once:
                        yield from self._checked(stream)
                    yield from stream.blocked()
            yield from self._checked(stream)
            yield from stream.blocked()

    def _read(self, requests: Iterator[Request | None]) -> Iterator[Request | None]:
        """The same requests, of which the models of guards have read several together."""
        n_at_once, some = self._guards.n_at_once("user", "data"), list[Request]()
        for request in requests:
            some += [] if request is None else [request]
            if request is None or len(some) >= n_at_once:
                self._guards.read_requests(some)
                yield from some
                some = []
                if request is None:
                    yield None
        self._guards.read_requests(some)
        yield from some

    def _checked(self, stream: _Stream) -> Iterator[Reply]:
        """The answers so far, checked."""
        answered, stream.answered = stream.answered, []
        self._guards.read_replies(answered)
        for admitted, reply in answered:
            yield self._guards.check(admitted, reply)

    def _admitted(self, request: Request) -> _Admitted:
        """The request for the model, or a reply in its place: a guard blocks it, or the answer is known."""
        admission = self._guards.admit(request)
        if not admission.is_blocked:
            return _Admitted(admission, known=self._known(admission.prepared))
        prompt = ""
        with suppress(EngineFailure):  # a prompt that does not fit, of a question that is not asked
            prompt = self._inner.render(admission.prepared)
        return _Admitted(admission, admission.refused(prompt))

    # --- the model's own answers ---

    def _known(self, request: Request) -> Reply | None:
        """The model's answer from the cache."""
        if self._answers is None:
            return None
        try:
            prompt = clean_text(self._inner.render(request))
        except EngineFailure:  # the engine reports it
            return None
        reply = self._answers.cache.get(self._key(request, prompt))
        return None if reply is None else replace(reply, key=request.key)

    def _key(self, request: Request, prompt: str) -> str:
        """The key of the model without guards, as a study has it."""
        model = "" if self._answers is None else self._answers.model
        decoding = self.capabilities.provenance.as_sent(request.decoding)
        return cache_key(self._inner.numerics, model, prompt, decoding, request.seed)


class _Stream:
    """The requests that pass to the engine, and the replies of those that do not.

    answered: requests with their answers, which are to be checked.
    """

    def __init__(self, source: Iterator[Request | None], admit: Callable[[Request], _Admitted]) -> None:
        self._source, self._admit = source, admit
        self.answered: list[tuple[Admission, Reply]] = []
        self._asked: dict[int, Admission] = {}  # in the engine
        self._blocked: deque[Reply] = deque()
        self.is_over = False

    def passed(self) -> Iterator[Request | None]:
        """The requests for one call of the engine. It ends early to let blocked questions be answered."""
        for request in self._source:
            if request is None:
                if self._n_ready and not self._asked:
                    return
                yield None
                continue
            admission, refused, known = self._admit(request)
            if refused is not None:
                self._blocked.append(refused)
            elif known is not None:
                self.answered.append((admission, known))
            else:
                self._asked[request.key] = admission
                yield admission.prepared
                continue
            if self._n_ready >= _AT_ONCE and not self._asked:
                return
        self.is_over = True

    @property
    def _n_ready(self) -> int:
        """Requests that the engine is not asked, or has answered."""
        return len(self._blocked) + len(self.answered)

    def asked(self, key: int) -> Admission:
        """The request of a reply of the engine. Raises EngineFailure for one that was not asked."""
        if (admission := self._asked.pop(key, None)) is None:
            raise EngineFailure(f"the engine answered request {key}, which was not asked")
        return admission

    def blocked(self) -> Iterator[Reply]:
        """The replies of blocked questions so far."""
        while self._blocked:
            yield self._blocked.popleft()


def _generator(replies: Iterator[Reply]) -> Generator[Reply, None, None]:
    """The replies as a generator, which can be closed."""
    yield from replies
