"""How far a study is: counted for whoever watches, shown by no one here.

Promises: the watcher is called at most ten times a second, and once at the end of a step.
Leaves to others: drawing it (cli/).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

EVERY_SECONDS = 0.1
WINDOW_SECONDS = 30.0  # the rate is that of the last half minute: models differ in speed
ENOUGH = 10  # trials seen before the time left is told


class Progress(NamedTuple):
    """Where a step stands. `n_done` counts earlier runs too; `per_second` is recent."""

    step: str  # "ask", "judge", "estimate"
    model: str  # the name of the model being asked; "" in the other steps
    n_done: int
    n_total: int
    n_errors: int
    n_cached: int
    per_second: float
    seconds_left: float | None  # None: not known yet


class Meter:
    """Counts trials and tells the watcher."""

    def __init__(self, watch: Callable[[Progress], None] | None, step: str, n_total: int) -> None:
        self._watch, self._step, self._n_total = watch, step, n_total
        self._model = ""
        self._n_done = self._n_errors = self._n_cached = 0
        self._last = 0.0
        self._recent: deque[tuple[float, int]] = deque()

    def had(self, is_error: bool = False, is_cached: bool = False) -> None:
        """One more that an earlier run did."""
        self._n_done += 1
        self._n_errors += is_error
        self._n_cached += is_cached

    def of(self, model: str) -> None:
        """From here on it is this model; the rate starts anew."""
        self._model = model
        self._recent.clear()
        self._tell(time.monotonic())

    def tick(self, is_error: bool = False, is_cached: bool = False) -> None:
        """One more is done."""
        self.had(is_error, is_cached)
        if self._watch is not None:
            now = time.monotonic()
            if now - self._last >= EVERY_SECONDS:
                self._tell(now)

    def spare(self, n: int) -> None:
        """So many of the total are not needed after all."""
        self._n_total -= n

    def close(self) -> None:
        """The step is over."""
        self._tell(time.monotonic())

    def _tell(self, now: float) -> None:
        if self._watch is None:
            return
        self._last = now
        self._recent.append((now, self._n_done))
        while len(self._recent) > 2 and now - self._recent[0][0] > WINDOW_SECONDS:
            self._recent.popleft()
        then, n_then = self._recent[0]
        n_seen = self._n_done - n_then
        rate = n_seen / (now - then) if now > then else 0.0
        # the first answers come late and together: a rate from a few of them would promise hours
        left = (self._n_total - self._n_done) / rate if n_seen >= ENOUGH else None
        self._watch(
            Progress(
                self._step,
                self._model,
                self._n_done,
                self._n_total,
                self._n_errors,
                self._n_cached,
                rate,
                left,
            )
        )
