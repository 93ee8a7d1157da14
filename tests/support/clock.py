"""Clocks that do not depend on how busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class BusyClock:
    """For code that times itself: seconds on a machine whose work takes 30 times as long until a moment."""

    def __init__(self, busy_until: float) -> None:
        self.now, self._busy_until = 0.0, busy_until

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        """Let work that takes `seconds` on an idle machine pass."""
        self.now += seconds * (30 if self.now < self._busy_until else 1)


@contextmanager
def computing_within(seconds: float) -> Iterator[None]:
    """Fail if the block computes for longer than `seconds` of this thread's own processor time.

    Other threads, processes and waiting do not count. A bound is at least twenty times the need of today. The
    input is so large that a quadratic or endless search exceeds it many times.
    """
    start = time.thread_time()
    yield
    assert time.thread_time() - start < seconds
