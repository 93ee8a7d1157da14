"""Conversations whose tools run: each waits for its calls in a thread, while the engine answers others.

Promises: a result that is recorded is there at once, so that what follows has the same order as without
threads. When a study ends early its calls are ended, and have no result.
Leaves to others: the calls (application/toolbox.py), and the conversations (scheduler.py).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Generic, Self, TypeVar

from heredity.application.toolbox import Toolbox
from heredity.core.files import Closable

MOST = 32  # conversations that wait for calls; another that begins would wait too
AT_ONCE = 0.01  # seconds in which a recorded result is there
Owner = TypeVar("Owner")
Step = TypeVar("Step")


class ToolThreads(Closable, Generic[Owner, Step]):
    """Takes steps of conversations, each in a thread. A step is returned as a function, which may raise."""

    def __init__(self, toolbox: Toolbox | None) -> None:
        self._toolbox = toolbox
        self._waiting: dict[Future[Step], Owner] = {}

    def take(self, owner: Owner, step: Callable[[], Step]) -> Callable[[], Step] | None:
        """Begin a step. Returns it if it is over at once; else None, and `over` has it later."""
        context = copy_context()  # with the store of a search
        future = self._executor.submit(lambda: context.run(step))
        self._waiting[future] = owner
        futures.wait([future], AT_ONCE)
        if not future.done():
            return None
        del self._waiting[future]
        return future.result

    def over(self, wait: bool) -> list[tuple[Owner, Callable[[], Step]]]:
        """The steps that are over, each with its conversation. wait: for the first."""
        if wait:
            futures.wait(self._waiting, return_when=futures.FIRST_COMPLETED)
        return [(self._waiting.pop(each), each.result) for each in list(self._waiting) if each.done()]

    @property
    def is_full(self) -> bool:
        """Whether no other conversation should begin."""
        return len(self._waiting) >= MOST

    def __len__(self) -> int:
        """The number of conversations that wait."""
        return len(self._waiting)

    def __enter__(self) -> Self:
        self._executor = ThreadPoolExecutor(MOST)  # a thread starts with its first step
        return self

    def close(self) -> None:
        """End what still runs."""
        if self._waiting and self._toolbox is not None:
            self._toolbox.stop()
        self._executor.shutdown(cancel_futures=True)
