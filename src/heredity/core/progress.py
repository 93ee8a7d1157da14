"""The progress of a piece of work: one event, and the meter that counts.

Every function of heredity that takes long accepts a `Watch`, which is called with a `Progress`. An event of a
step counts its trials, tokens or bytes. An event of a phase names a preparation, such as "loading".

Promises: a meter calls its watch at most ten times a second, and once at the end of a step. A phase is
reported when it begins and when it is over.
Leaves to others: doing the work, the time left (time_left.py), and showing progress (terminal.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, TypeVar

from heredity.core.time_left import TimeLeft, TimeSpan, Work

EVERY_SECONDS = 0.1

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
    """The progress of a step. `n_done` includes what earlier runs did; `per_second` is of this run."""

    step: str  # "ask", "judge", "estimate"; "train"; "read", "write" (by a teacher); "download"
    model: str  # what the step is about: the model being asked, the file being fetched; "" if nothing
    n_done: int
    n_total: int  # 0: not known
    n_errors: int = 0
    n_cached: int = 0
    per_second: float = 0.0  # of `unit`; 0.0: not known
    seconds_left: TimeSpan | None = None  # until the whole run is over; None: not known yet
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
    """Counts trials, or the parts of a phase, and calls the watch.

    left: of the whole run; None: of this step. part: of the run, that the meter counts one by one; None: the
    parts are named with each item.
    """

    def __init__(
        self,
        watch: Watch | None,
        step: str,
        n_total: int,
        phase: str = "",
        unit: Unit = "trials",
        left: TimeLeft | None = None,
        part: Hashable = None,
    ) -> None:
        self._phase, self._unit = phase, unit
        self._watch, self._step, self._n_total = watch, step, n_total
        self._model = ""
        self._n_done = self._n_errors = self._n_cached = 0
        self._last = 0.0
        if left is None:
            left, part = TimeLeft({step: Work(n_total, None, (step,))}), step
        self.left, self._part = left, part
        self._n_workers, self._n_starting, self._models = 0, 0, tuple[ModelProgress, ...]()
        if part is not None:
            left.begin(part)

    def had(self, is_error: bool = False, is_cached: bool = False, part: Hashable = None) -> None:
        """Count one that an earlier run did. part: of the run, if the meter has none of its own."""
        self._count(is_error, is_cached)
        self.left.had(self._part if part is None else part)

    def of(self, model: str) -> None:
        """Count for this model from now on."""
        self._model = model
        self._report(time.monotonic())

    def tick(self, is_error: bool = False, is_cached: bool = False, part: Hashable = None) -> None:
        """Count one that was done now. part: of the run, if the meter has none of its own."""
        self._count(is_error, is_cached)
        if part is None:
            self.left.advance(self._part)
        else:
            self.left.end(part)
        if self._watch is not None:
            now = time.monotonic()
            if now - self._last >= EVERY_SECONDS:
                self._report(now)

    def reached(self, n_done: int) -> None:
        """Set the count to what is done by now."""
        if n_done > self._n_done:
            self.left.advance(self._part, n_done - 1 - self._n_done)  # `tick` counts the last one
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

    def spare(self, n: int) -> None:
        """Take `n` off the total: they are not needed."""
        self._n_total -= n
        if self._part is not None:
            self.left.had(self._part, n)

    def close(self) -> None:
        """Report the end of the step."""
        if self._part is not None:
            self.left.cancel(self._part)
        self._report(time.monotonic())

    def _count(self, is_error: bool, is_cached: bool) -> None:
        self._n_done += 1
        self._n_errors += is_error
        self._n_cached += is_cached

    def _report(self, now: float) -> None:
        if self._watch is None:
            return
        self._last = now
        self._watch(
            Progress(
                self._step,
                self._model,
                self._n_done,
                self._n_total,
                self._n_errors,
                self._n_cached,
                self.left.per_second(self._model if self._part is None and self._model else self._step),
                self.left.span(),
                self._unit,
                n_workers=self._n_workers,
                n_starting=self._n_starting,
                models=self._models,
                phase=self._phase,
            )
        )


class TrialMeter(Meter):
    """Counts the trials of a study, whose time left has a part for each `n_per_part` of them in a row."""

    def __init__(self, watch: Watch | None, n_total: int, left: TimeLeft, n_per_part: int) -> None:
        super().__init__(watch, "ask", n_total, left=left)
        self.n_per_part = n_per_part

    def begun(self, indices: Iterable[int]) -> Iterator[int]:
        """Trials that are about to be asked."""
        for index in indices:
            self.left.begin(index // self.n_per_part)
            yield index

    def answered(self, index: int, is_error: bool, is_cached: bool, is_outside: bool) -> None:
        """Count a trial; one outside of its attack's scope was not asked."""
        part = index // self.n_per_part
        if is_outside:
            self.left.cancel(part)
            return
        if is_cached:  # it took no work
            self.left.had(part)
            self.left.advance(part, -1)
        self.tick(is_error, is_cached, part)


class ByteRate:
    """The rate and the time left of a download, without the bytes that were there before."""

    def __init__(self) -> None:
        self._what, self._n, self._left = "", 0, TimeLeft({})

    def of(self, progress: Progress) -> tuple[float, TimeSpan | None]:
        """Bytes per second of this run, and the seconds left; 0.0 and None until they are known."""
        done = progress.n_done
        if progress.model != self._what or done < self._n:
            self._what, self._n = progress.model, done
            self._left = TimeLeft({"": Work(progress.n_total - done, None, ("",))})
            self._left.begin("")
        self._left.advance("", done - self._n)
        self._n = done
        return self._left.per_second(""), self._left.span()


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
