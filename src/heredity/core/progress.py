"""The progress of a piece of work: one event, and the meter that counts.

Every function of heredity that takes long accepts a `Watch`, which is called with a `Progress`. An event of a
step counts its trials, tokens or bytes. An event of a phase names a preparation, such as "loading".

Promises: a meter calls its watch at most ten times a second, and once at the end of a step. A phase is
reported when it begins and when it is over.
Leaves to others: doing the work, and showing its progress (terminal.py).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, TypeVar

EVERY_SECONDS = 0.1
WINDOW_SECONDS = 30.0  # the rate is that of the last half minute: models differ in speed ...
ENOUGH = 10  # ... or of as many items, if they took longer; before them no rate is known

PREPARE = "prepare"  # the step of all phases

Unit = Literal["trials", "answers", "tokens", "bytes", "tensors", "rows", "steps", "parts"]


class ModelProgress(NamedTuple):
    """The trials of one model of a study with several workers.

    n_failed: errors of this run. n_loading: workers that load the model now. phase: of one of them, with its
    count; None if it reports none, or another worker has the model.
    """

    name: str
    n_done: int
    n_leased: int
    n_failed: int
    n_loading: int = 0
    phase: Progress | None = None


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
    n_starting: int = 0  # of these workers, those that have not reported yet
    models: tuple[ModelProgress, ...] = ()  # with workers: by model
    phase: str = ""  # of the step "prepare": "loading", "measuring widths"; "" once it is over


Watch = Callable[[Progress], None]
_Item = TypeVar("_Item")
_Done = TypeVar("_Done")


class Meter:
    """Counts trials, or the parts of a phase, and calls the watch."""

    def __init__(
        self, watch: Watch | None, step: str, n_total: int, phase: str = "", unit: Unit = "trials"
    ) -> None:
        self._phase, self._unit = phase, unit
        self._watch, self._step, self._n_total = watch, step, n_total
        self._model = ""
        self._n_done = self._n_errors = self._n_cached = 0
        self._last = 0.0
        self._recent: deque[tuple[float, int]] = deque()
        self._n_workers, self._n_starting, self._models = 0, 0, tuple[ModelProgress, ...]()

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

    def begin(self) -> None:
        """Count the rate from now on, if none was done yet: the first one begins, and all is loaded."""
        if not self._n_recent:
            self._recent.clear()
            self._report(time.monotonic())

    def tick(self, is_error: bool = False, is_cached: bool = False) -> None:
        """Count one that was done now."""
        self.had(is_error, is_cached)
        if self._watch is not None:
            now = time.monotonic()
            if now - self._last >= EVERY_SECONDS:
                self._report(now)

    def reached(self, n_done: int) -> None:
        """Set the count to what is done by now."""
        if n_done > self._n_done:
            self._n_done = n_done - 1
            self.tick()

    def each(self, items: Iterable[_Item], work: Callable[[_Item], _Done]) -> Iterator[_Done]:
        """Yield the result of `work` on each item, and count it."""
        for item in items:
            yield work(item)
            self.tick()

    def workers(self, n: int, models: tuple[ModelProgress, ...], n_starting: int = 0) -> None:
        """Note how many workers there are, how many of them start, and the state of the models.

        A change of what they start or load is reported at once.
        """
        before = self._doing
        self._n_workers, self._models, self._n_starting = n, models, n_starting
        is_news = before != self._doing or time.monotonic() - self._last >= EVERY_SECONDS
        if self._watch is not None and is_news:
            self._report(time.monotonic())

    @property
    def _doing(self) -> tuple[int, ...]:
        return (self._n_starting, *(model.n_loading for model in self._models))

    @property
    def _n_recent(self) -> int:
        """The items that the rate is of."""
        return self._n_done - self._recent[0][1] if self._recent else 0

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
        if not self._recent or self._n_done > self._recent[-1][1]:
            self._recent.append((now, self._n_done))
        while len(self._recent) > 1 and self._is_enough(now, *self._recent[1]):
            self._recent.popleft()
        seconds, n_recent = now - self._recent[0][0], self._n_recent
        # The first answers come late and together: a rate from a few of them would promise hours.
        rate = n_recent / seconds if n_recent >= ENOUGH and seconds else 0.0
        left = (self._n_total - self._n_done) / rate if rate else None
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
                self._unit,
                n_workers=self._n_workers,
                n_starting=self._n_starting,
                models=self._models,
                phase=self._phase,
            )
        )

    def _is_enough(self, now: float, then: float, n_then: int) -> bool:
        """Whether what was done since `then` gives a rate."""
        return now - then >= WINDOW_SECONDS and self._n_done - n_then >= ENOUGH


class ByteRate:
    """The rate of a download over the last half minute."""

    def __init__(self) -> None:
        self._what, self._marks = "", list[tuple[float, int]]()

    def of(self, progress: Progress) -> float:
        """Bytes per second of this run; 0.0 until it is known."""
        done, now = progress.n_done, time.monotonic()
        if progress.model != self._what or (self._marks and done < self._marks[-1][1]):
            self._what, self._marks = progress.model, []
        if not self._marks or now - self._marks[-1][0] >= 0.5:
            self._marks.append((now, done))
            while len(self._marks) > 2 and now - self._marks[1][0] > WINDOW_SECONDS:
                del self._marks[0]
        then, was = self._marks[0]
        return (done - was) / (now - then) if now - then >= 0.5 else 0.0


@contextmanager
def phase(
    watch: Watch | None, name: str, model: str = "", n_total: int = 0, unit: Unit = "parts"
) -> Iterator[Meter]:
    """Report a phase when it begins and when it is over; the meter counts its parts. Phases may nest.

    name: what happens, in a word or two: "loading". model: what it happens to.
    n_total: the number of parts; 0: not known.
    """
    meter = Meter(watch, PREPARE, n_total, name, unit)
    meter.of(model)
    try:
        yield meter
    finally:
        if watch is not None:
            watch(Progress(PREPARE, model, 0, 0))


class _Watching(threading.local):
    """The watch of each thread."""

    watch: Watch | None = None


class Reporter:
    """A watch that passes events on to the watch of the thread that calls it, if that has set one."""

    def __init__(self) -> None:
        self._local = _Watching()

    def __call__(self, progress: Progress) -> None:
        """Pass an event on."""
        if (watch := self._local.watch) is not None:
            watch(progress)

    @property
    def is_watched(self) -> bool:
        """Whether this thread has set a watch."""
        return self._local.watch is not None

    @contextmanager
    def to(self, watch: Watch | None) -> Iterator[None]:
        """Inside, `watch` gets the events of this thread. None: an outer watch stays."""
        before = self._local.watch
        self._local.watch = watch or before
        try:
            yield
        finally:
            self._local.watch = before


def about(watch: Watch | None, model: str) -> Watch | None:
    """Return the watch, which then gets `model` with each event of a phase that names none."""
    if watch is None:
        return None

    def named(progress: Progress) -> None:
        is_nameless = progress.step == PREPARE and not progress.model
        watch(progress._replace(model=model) if is_nameless else progress)

    return named
