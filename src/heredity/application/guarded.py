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
from heredity.application.guards import standing
from heredity.application.guards.protocols import GuardSpec
from heredity.application.spec import Application
from heredity.core.cache import ResponseCache, cache_key
from heredity.core.errors import EngineFailure
from heredity.core.records import Decoding, Reply, Request, digest
from heredity.core.sanitize import clean, clean_text
from heredity.engines import is_batch_unverified
from heredity.engines.protocols import Accountant, DecodingAdapter, Engine

GUARD_SECONDS = "guard_seconds"  # of an account
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
) -> Engine:
    """The engine behind the guards of an application that are on, and `more`; itself without any.

    known: the model's own answers. A guard that only checks answers then costs no further ones.
    """
    guards = [*standing(application), *more]
    return GuardedEngine(engine, application, guards, known) if guards else engine


class _Admitted(NamedTuple):
    """A request behind guards, and its reply if the model is not asked."""

    found: Admission
    reply: Reply | None


class GuardedEngine:
    """An engine behind guards. It does not stream, and has no access to weights."""

    def __init__(
        self,
        inner: Engine,
        application: Application,
        specs: Sequence[GuardSpec],
        known: KnownAnswers | None = None,
    ) -> None:
        self._inner, self._guards = inner, GuardChain(specs, application)
        self._answers = known if inner.numerics else None
        names = "+".join(spec.label for spec in specs)
        self.name = f"{inner.name} behind {names}"
        layer = digest([list(specs), application.digest])[:12]  # a guard knows its secrets and tools
        self.numerics = f"{inner.numerics} behind {layer}" if inner.numerics else ""
        self.is_batch_unverified = is_batch_unverified(inner)

    def render(self, request: Request) -> str:
        """The prompt that the model gets."""
        return self._inner.render(self.prepared(request))

    def prepared(self, request: Request) -> Request:
        """The request that the model gets in place of this one."""
        return self._guards.prepared(request)

    def as_sent(self, decoding: Decoding) -> Decoding:
        """The decoding that the engine uses."""
        return self._inner.as_sent(decoding) if isinstance(self._inner, DecodingAdapter) else decoding

    def account(self) -> dict[str, object]:
        """The engine's account, with the seconds of the guards."""
        own = self._inner.account() if isinstance(self._inner, Accountant) else {}
        return {**own, GUARD_SECONDS: round(self._guards.seconds, 3)}

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
                    yield self._guards.check(admitted, found)
                    yield from stream.blocked()
            yield from stream.blocked()

    def _admitted(self, request: Request) -> _Admitted:
        """The request for the model, or a reply in its place: a guard blocks it, or the answer is known."""
        found = self._guards.admit(request)
        if not found.is_blocked:
            known = self._known(found.prepared)
            return _Admitted(found, None if known is None else self._guards.check(found, known))
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
    """The requests that pass to the engine, and the replies of those that do not."""

    def __init__(self, source: Iterator[Request | None], admit: Callable[[Request], _Admitted]) -> None:
        self._source, self._admit = source, admit
        self._asked: dict[int, Admission] = {}  # in the engine
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
            found, reply = self._admit(request)
            if reply is None:
                self._asked[request.key] = found
                yield found.prepared
                continue
            self._blocked.append(reply)
            if len(self._blocked) >= _AT_ONCE and not self._asked:
                return
        self.is_over = True

    def asked(self, key: int) -> Admission:
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
