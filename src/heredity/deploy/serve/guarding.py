"""The guards of a served application: the same as in a study, around each answer.

Promises: a blocked question never reaches the engine, and no text is sent before it was checked. The caller
does not get the findings, which would help to get around a guard; the operator gets their number. A guard
that takes long, by its model or by the length of a text, delays no other caller.
Leaves to others: the checks (application/guarded.py), and sending (answers.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import TypeVar

from msgspec.structs import replace

from heredity.application.guarded import Admission, GuardChain
from heredity.application.guards import GuardReaders
from heredity.application.spec import Application
from heredity.core import host
from heredity.core.errors import Busy, HeredityError
from heredity.core.records import Reply, Request
from heredity.engines.protocols import Engine, capabilities

THREADS = 16  # texts that are read at once; the model of a guard reads them in one batch
MAX_WAITING = 256  # texts that are read or wait for it
T = TypeVar("T")


class ServedGuards:
    """The guards of an application, in threads.

    n_found: answers that each of them touched, by its label.
    """

    def __init__(self, chain: GuardChain) -> None:
        self._chain, self._n_open = chain, 0
        self._threads = ThreadPoolExecutor(THREADS, "guards")
        self.n_found: Counter[str] = Counter()

    @classmethod
    def of(cls, application: Application | None, readers: GuardReaders | None = None) -> ServedGuards | None:
        """The guards of an application that are on; None without any. readers: the models of guards."""
        specs = () if application is None else application.standing_guards
        if application is None or not specs:
            return None
        return cls(GuardChain(specs, application, readers))

    async def admit(self, request: Request) -> Admission:
        """The request for the engine, unless it is blocked. Raises Busy if too many wait."""
        if self._n_open >= MAX_WAITING:
            raise Busy(f"{self._n_open:,} requests are already open. Try again later.")
        return await self._in_thread(lambda: self._chain.admit(request))

    async def refused(self, admission: Admission, engine: Engine) -> Reply:
        """The reply to a blocked request. An engine that counts tokens counts its prompt, as of any other."""
        n_tokens = 0
        if (scorer := capabilities(engine).token_scorer) is not None:
            with suppress(HeredityError):
                n_tokens = await self._in_thread(lambda: len(scorer.prompt_tokens(admission.request)))
        return self._counted(replace(admission.refused(), n_prompt_tokens=n_tokens))

    async def check(self, admission: Admission, reply: Reply) -> Reply:
        """The reply as the guards let it pass."""
        return self._counted(await self._in_thread(lambda: self._chain.check(admission, reply)))

    async def _in_thread(self, read: Callable[[], T]) -> T:
        self._n_open += 1
        try:
            with_helpers = host.temporary_helpers()(read)
            as_caller = copy_context().run  # the model of a guard has the same caller
            return await asyncio.get_running_loop().run_in_executor(self._threads, as_caller, with_helpers)
        finally:
            self._n_open -= 1

    def _counted(self, reply: Reply) -> Reply:
        self.n_found.update({note.partition(": ")[0] for note in reply.guarded or ()})
        return reply
