"""The progress of a piece of work: one event, and the meter that counts.

Every function of heredity that takes long accepts a `Watch`, which is called with a `Progress`.

Promises: a meter calls its watch at most ten times a second, and once at the end of a step.
Leaves to others: doing the work, and showing its progress (terminal.py).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

EVERY_SECONDS = 0.1
WINDOW_SECONDS = 30.0  # the rate is that of the last half minute: models differ in speed
ENOUGH = 10  # items done before the time left is estimated

Unit = Literal["trials", "answers", "tokens", "bytes"]


class ModelProgress(NamedTuple):
    """The trials of one model of a study with several workers. `n_failed` are errors of this run."""

    name: str
    n_done: int
    n_leased: int
    n_failed: int


class Progress(NamedTuple):
    """The progress of a step. `n_done` includes what earlier runs did; `per_second` is recent."""

    step: str  # "ask", "judge", "estimate"; "train"; "read", "write" (by a teacher); "download"
    model: str  # what the step is about: the model being asked, the file being fetched; "" if nothing
    n_done: int
    n_total: int  # 0: not known
    n_errors: int = 0
    n_cached: int = 0
    per_second: float = 0.0  # of `unit`; 0.0: not known
    seconds_left: float | None = None  # None: not known yet
    unit: Unit = "trials"
    loss: float | None = None  # of a training's last step
    n_workers: int = 0  # 0: this process does the work
    models: tuple[ModelProgress, ...] = ()  # with workers: by model


Watch = Callable[[Progress], None]


class Meter:
    """Counts trials and calls the watch."""

    def __init__(self, watch: Watch | None, step: str, n_total: int) -> None:
        self._watch, self._step, self._n_total = watch, step, n_total
        self._model = ""
        self._n_done = self._n_errors = self._n_cached = 0
        self._last = 0.0
        self._recent: deque[tuple[float, int]] = deque()
        self._n_workers, self._models = 0, tuple[ModelProgress, ...]()

    def had(self, is_error: bool = False, is_cached: bool = False) -> None:
        """Count one that an earlier run did."""
        self._n_done += 1
        self._n_errors += is_error
        self._n_cached += is_cached

    def of(self, model: str) -> None:
        """Count for this model from now on; the rate starts again."""
        self._model = model
        self._recent.clear()
        self._report(time.monotonic())

    def tick(self, is_error: bool = False, is_cached: bool = False) -> None:
        """Count one that was done now."""
        self.had(is_error, is_cached)
        if self._watch is not None:
            now = time.monotonic()
            if now - self._last >= EVERY_SECONDS:
                self._report(now)

    def workers(self, n: int, models: tuple[ModelProgress, ...]) -> None:
        """Note how many workers there are, and the state of the models."""
        self._n_workers, self._models = n, models
        if self._watch is not None and time.monotonic() - self._last >= EVERY_SECONDS:
            self._report(time.monotonic())

    def spare(self, n: int) -> None:
        """Take `n` off the total: they are not needed."""
        self._n_total -= n

    def close(self) -> None:
        """Report the end of the step."""
        self._report(time.monotonic())

    def _report(self, now: float) -> None:
        if self._watch is None:
            return
        self._last = now
        self._recent.append((now, self._n_done))
        while len(self._recent) > 2 and now - self._recent[0][0] > WINDOW_SECONDS:
            self._recent.popleft()
        then, n_then = self._recent[0]
        n_recent = self._n_done - n_then
        rate = n_recent / (now - then) if now > then else 0.0
        # The first answers come late and together: a rate from a few of them would promise hours.
        left = (self._n_total - self._n_done) / rate if n_recent >= ENOUGH else None
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
                n_workers=self._n_workers,
                models=self._models,
            )
        )
