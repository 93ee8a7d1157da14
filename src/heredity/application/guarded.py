"""A model behind guards: an Engine that checks questions and answers.

Promises: a blocked question never reaches the model. The reply names each guard that found something, and has
the model's own text. A guard that raises an error blocks, unless its spec says "open"; then the reply names
the error. The same request gives the same reply.
Leaves to others: the checks of one question and its answer (guard_chain.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from typing import NamedTuple

from msgspec.structs import replace

from heredity.application.guard_chain import Admission, GuardChain
from heredity.application.guards import content, standing
from heredity.application.guards.protocols import GuardReaders, GuardSpec
from heredity.application.spec import Application
from heredity.core.cache import ResponseCache, cache_key
from heredity.core.errors import EngineFailure
from heredity.core.records import Decoding, Reply, Request, digest
from heredity.core.sanitize import clean, clean_text
from heredity.engines import is_batch_unverified
from heredity.engines.protocols import Accountant, DecodingAdapter, Engine

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
    guards = [*standing(application.all_guards), *more]
    return GuardedEngine(engine, application, guards, known, readers) if guards else engine


class _Admitted(NamedTuple):
    """A request behind guards. If the model is not asked: the reply to a blocked one, or the known answer."""

    found: Admission
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
        self.is_batch_unverified = is_batch_unverified(inner)
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

    def as_sent(self, decoding: Decoding) -> Decoding:
        """The decoding that the engine uses."""
        return self._inner.as_sent(decoding) if isinstance(self._inner, DecodingAdapter) else decoding

    def account(self) -> dict[str, object]:
        """The engine's account, with the seconds of the guards and the answers that they took."""
        own = self._inner.account() if isinstance(self._inner, Accountant) else {}
        return {**own, GUARD_SECONDS: round(self._guards.seconds, 3), GUARD_ANSWERS: self._n_answers}

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
                for found in replies:
                    admitted = stream.asked(found.key)
                    self._keep(admitted.prepared, found)
                    stream.answered.append((admitted, found))
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
        for admitted, found in answered:
            yield self._guards.check(admitted, found)

    def _admitted(self, request: Request) -> _Admitted:
        """The request for the model, or a reply in its place: a guard blocks it, or the answer is known."""
        found = self._guards.admit(request)
        if not found.is_blocked:
            return _Admitted(found, known=self._known(found.prepared))
        prompt = ""
        with suppress(EngineFailure):  # a prompt that does not fit, of a question that is not asked
            prompt = self._inner.render(found.prepared)
        return _Admitted(found, found.refused(prompt))

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
            found, refused, known = self._admit(request)
            if refused is not None:
                self._blocked.append(refused)
            elif known is not None:
                self.answered.append((found, known))
            else:
                self._asked[request.key] = found
                yield found.prepared
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
        if (found := self._asked.pop(key, None)) is None:
            raise EngineFailure(f"the engine answered request {key}, which was not asked")
        return found

    def blocked(self) -> Iterator[Reply]:
        """The replies of blocked questions so far."""
        while self._blocked:
            yield self._blocked.popleft()


def _generator(replies: Iterator[Reply]) -> Generator[Reply, None, None]:
    """The replies as a generator, which can be closed."""
    yield from replies
