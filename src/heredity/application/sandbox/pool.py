"""The processes of one source of tools: calls share the first, and another starts while that is slow.

Promises: a process runs one call at a time, unless it is the only one. Another starts only while the calls of
all are slow, so that quick tools keep to one process.
Leaves to others: the process (process.py), and which tools may share one (toolbox.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Lock, Semaphore

from heredity.application.sandbox.process import ToolProcess
from heredity.core.files import Closable

PATIENCE = 0.1  # seconds: a call that has lasted so long is slow


class ToolProcessPool(Closable):
    """Up to `most` processes of `make`. open: starts one. places: of all calls that may run at once.

    is_single: all calls run at once in one process, which can do that.
    """

    def __init__(
        self,
        make: Callable[[], ToolProcess],
        open: Callable[[ToolProcess], None],
        most: int,
        places: Semaphore,
        is_single: bool = False,
    ) -> None:
        self._make, self._open, self._most, self._places = make, open, most, places
        self._is_single, self._opening = is_single, Lock()
        self._all: list[ToolProcess] = []
        self._free: list[ToolProcess] = []
        self._since: dict[ToolProcess, float] = {}  # when the call of a process began; inf: not yet
        self._changed = Condition()

    @contextmanager
    def process(self) -> Iterator[ToolProcess]:
        """A process for one call, started. Raises ToolFailure."""
        if self._is_single:
            with self._places:
                with self._opening:
                    self._all = self._all or [self._make()]
                    self._open(self._all[0])
                yield self._all[0]
            return
        process = self._take()
        try:
            with self._places:
                self._open(process)
                self._since[process] = time.monotonic()
                yield process
        finally:
            with self._changed:
                del self._since[process]
                self._free.append(process)
                self._changed.notify_all()

    def close(self) -> None:
        """End all processes."""
        for process in self._all:
            process.close()

    def _take(self) -> ToolProcess:
        with self._changed:
            while not self._free:
                if self._may_start():
                    self._all.append(self._make())
                    self._free.append(self._all[-1])
                else:
                    self._changed.wait(PATIENCE)
            found = next((each for each in self._free if each.opened is not None), self._free[-1])
            self._free.remove(found)
            self._since[found] = math.inf
            return found

    def _may_start(self) -> bool:
        """Whether another process may start: the calls of all are slow, and none of them starts now."""
        slow = time.monotonic() - PATIENCE
        return len(self._all) < self._most and all(since <= slow for since in self._since.values())
