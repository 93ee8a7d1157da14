"""An engine that several threads may ask at once: their requests enter one batch.

Promises: an answer is the engine's own. The engine works in one thread, that of its worker.
Leaves to others: the worker (worker.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from heredity.core.errors import EngineFailure
from heredity.core.records import Reply, Request
from heredity.deploy.serve.worker import EngineWorker
from heredity.engines.protocols import Completer, Engine, Scorer

MOST = 4096  # open requests: threads wait for their answers, so there are few


def shared(engine: Engine) -> SharedEngine:
    """The engine in a worker, with the capabilities to complete and to score that it has."""
    worker = EngineWorker(engine, MOST)
    if not isinstance(engine, Completer):
        return SharedEngine(worker)
    return SharedScorer(worker) if isinstance(engine, Scorer) else SharedCompleter(worker)


class SharedEngine:
    """An Engine that waits for its worker."""

    def __init__(self, worker: EngineWorker) -> None:
        self._worker = worker
        self.name, self.numerics = worker.engine.name, worker.engine.numerics

    def render(self, request: Request) -> str:
        """The prompt of a request."""
        return self._worker.compute(lambda engine: engine.render(request)).result()

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Answer requests, all of which are known (protocols.Engine)."""
        asked = [(each.key, self._worker.ask(each)) for each in requests if each is not None]
        for key, ticket in asked:
            yield replace(ticket.reply.result(), key=key)

    def close(self) -> None:
        """End the worker and free the engine."""
        self._worker.close()


class SharedCompleter(SharedEngine):
    """A Completer."""

    @property
    def is_base(self) -> bool:
        """Whether the model has no chat template."""
        engine = self._worker.engine
        return isinstance(engine, Completer) and engine.is_base


class SharedScorer(SharedCompleter):
    """A Completer and a Scorer."""

    def score(self, request: Request, continuations: Sequence[str]) -> list[list[float]]:
        """The log-probabilities of the tokens of each continuation (protocols.Scorer)."""

        def score(engine: Engine) -> list[list[float]]:
            if not isinstance(engine, Scorer):
                raise EngineFailure("this engine scores no texts")
            return engine.score(request, continuations)

        return self._worker.compute(score).result()
