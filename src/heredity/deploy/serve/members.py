"""Models that share one engine and its worker: a base and its adapters, each with its own name and counts.

Promises: an adapter that is dropped answers what it has begun, and is freed afterwards.
Leaves to others: batching their requests (engines/torch/adapters.py), and loading them (adapters.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cached_property
from typing import TypeVar

import msgspec

from heredity.core.errors import EngineFailure, HeredityError
from heredity.core.records import Reply, Request
from heredity.deploy.serve.worker import EngineWorker, Hears, Ticket, shows_tools
from heredity.engines.protocols import AddressedRequest, Engine

T = TypeVar("T")


class MemberService:
    """One of the models of a worker.

    engine: its own view of the shared engine. number: of its adapter there; 0: the base. free: frees the
    adapter in the worker's thread, once it was dropped and nothing of it is in flight.
    """

    def __init__(
        self, worker: EngineWorker, engine: Engine, number: int, free: Callable[[], None] | None = None
    ) -> None:
        self._worker, self.engine, self.number, self._free = worker, engine, number, free
        self.n_open = self.n_prompt_tokens = self.n_tokens = 0
        self._n_held, self._is_dropped, self._lock = 0, False, threading.Lock()

    @property
    def most(self) -> int:
        """The most requests that may be open, for all models of the worker."""
        return self._worker.most

    @property
    def failure(self) -> HeredityError | None:
        """The last failure of the worker, until an answer succeeds."""
        return self._worker.failure

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the model's chat template shows tools."""
        return shows_tools(self.engine)

    def ask(self, request: Request, hears: Hears | None = None) -> Ticket:
        """Queue a request. Raises Busy if too many are open, EngineFailure if the worker is closed."""
        addressed = AddressedRequest(**msgspec.structs.asdict(request) | {"adapter": self.number})
        self._count(1)
        try:
            return self._worker.ask(addressed, hears, self._settled)
        except BaseException:
            self._count(-1)
            raise

    def compute(self, function: Callable[[Engine], T]) -> Future[T]:
        """Queue a function of this model's engine, which runs between two steps.

        Raises as `ask` does.
        """
        self._count(1)
        try:
            result = self._worker.compute(lambda _: function(self.engine))
        except BaseException:
            self._count(-1)
            raise
        result.add_done_callback(lambda _: self._count(-1))
        return result

    def hold(self) -> None:
        """Keep the adapter until `release`. Raises EngineFailure once it was dropped and nothing keeps it."""
        with self._lock:
            if self._is_last:
                raise EngineFailure("this adapter was unloaded", code="adapter-dropped")
            self._n_held += 1

    def release(self) -> None:
        """End a `hold`."""
        with self._lock:
            self._n_held -= 1
            is_last = self._is_last
        if is_last:
            self._let_go()

    def close(self) -> None:
        """Drop the adapter: what has begun is answered, and then it is freed."""
        with self._lock:
            is_last = not self._is_dropped and not self._n_held and not self.n_open
            self._is_dropped = True
        if is_last:
            self._let_go()

    @property
    def _is_last(self) -> bool:
        return self._is_dropped and not self._n_held and not self.n_open

    def _count(self, n: int) -> None:
        with self._lock:
            self.n_open += n
            is_last = n < 0 and self._is_last
        if is_last:
            self._let_go()

    def _settled(self, outcome: Reply | HeredityError) -> None:
        if isinstance(outcome, Reply):
            with self._lock:
                self.n_prompt_tokens += outcome.n_prompt_tokens
                self.n_tokens += outcome.n_answer_tokens
        self._count(-1)

    def _let_go(self) -> None:
        if (free := self._free) is not None:
            self._free = None
            self._worker.post(lambda _: free())
