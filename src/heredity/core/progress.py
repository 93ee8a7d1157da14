"""The progress of a piece of work: one event, and the meter that counts.

Every function of heredity that takes long accepts a `Watch`, which is called with a `Progress`. An event of a
step counts its trials, tokens or bytes. An event of a phase names a preparation, such as "loading".

Promises: a meter calls its watch at most ten times a second, and once at the end of a step. A phase is
reported when it begins and when it is over.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

# --- the time left ------------------------------------------------------------------------------------
# The time left of a run: what was expected of each part of its work, corrected by what was seen.
#
# Promises: numbers and a clock in, a range out. The time of a model moves the estimate of the next one.

PATIENCE_SECONDS = 60.0  # of running, before which no time left is given
_ITEM, _MEAN = 0.8, 0.3  # logarithmic spread: of the times of items, of the mean time of many
_STEADY = 0.1  # the same of work without an expected time, such as a download or the steps of a training
_APART = 0.4  # variance of the logarithm: how differently two models' expected times are wrong
_BEGUN = 0.4  # of an item in progress that is done
_FRESH_SECONDS = 5.0  # for which a time left is shown: to compute it takes 0.1 ms for each part of the work
_DRIFT, _WIDE = 0.12, 1.28  # the load of a machine changes; eight in ten runs end within the range


class TimeSpan(NamedTuple):
    """Seconds, at best and at worst."""

    low: float
    high: float


def time_words(seconds: tuple[float, float]) -> str:
    """Seconds at best and at worst in words: `2 to 9 min`."""
    low, high = seconds
    if high < 60:
        return "under 1 min"
    if high < 5400:
        least, most = math.floor(low / 60), math.ceil(high / 60)
        return f"{least} to {most} min" if least else f"under {most} min"
    return f"{low / 3600:.1f} to {high / 3600:.1f} h"


class Work(NamedTuple):
    """Items of a run that take about the same time each.

    seconds: expected for one item; None: not known. causes: the kind of the work, then a model, then more.
    The parts of one model are worked on together, and models of one kind tell of each other.
    """

    n: float
    seconds: TimeSpan | None = None
    causes: tuple[str, ...] = ()


@dataclass
class _Part:
    work: Work
    n: float  # left of `work.n` when this run began
    n_done: float = 0.0
    n_open: int = 0
    spent: float = 0.0
    effort: float = 0.0  # seconds times the square root of the items in progress


class TimeLeft:
    """The time left of a run: what was expected of each part of its work, corrected by what was seen.

    left = TimeLeft({"a": Work(300, TimeSpan(0.1, 0.9), ("a",)), "b": Work(300, TimeSpan(0.4, 3.0), ("b",))})
    left.begin("a"); left.end("a"); left.span()

    Time is shared among the items in progress. The pace of a batch is that of the square root of its items,
    so the last ones of a model take longer. The expected time of a model is moved towards the pace of other
    models, and then towards its own (`_ModelWork`).
    """

    def __init__(
        self, work: Mapping[Hashable, Work], clock: Callable[[], float] = lambda: time.monotonic()
    ) -> None:
        self._parts = {key: _Part(each, each.n) for key, each in work.items()}
        self._clock = clock
        self._start = self._now = clock()
        self._open = dict[Hashable, _Part]()  # the parts with an item in progress
        self._shown: TimeSpan | None = None
        self._due = self._start + PATIENCE_SECONDS  # when it is computed next
        self._alone: Hashable | None = None
        self._idle = 0.0  # seconds in which nothing was in progress, since the last item

    def had(self, key: Hashable, n: float = 1) -> None:
        """Count items that this run has not to do."""
        self._parts[key].n -= n

    def only(self, key: Hashable | None) -> None:
        """Charge all time to this part from now on: one item of it is in progress. None: this is over."""
        self._charge()
        self._idle = 0.0
        if self._alone is not None:
            self.end(self._alone)
        self._alone = key
        if key is not None:
            self.begin(key)

    def begin(self, key: Hashable) -> None:
        """Note that an item is in progress."""
        self._charge()
        part = self._open[key] = self._parts[key]
        part.n_open += 1

    def end(self, key: Hashable) -> None:
        """Note that an item is done. If nobody noted its beginning, it took the time since the last event."""
        part = self._parts[key]
        self.cancel(key)
        part.n_done += 1
        part.spent, part.effort = part.spent + self._idle, part.effort + self._idle
        self._idle = 0.0

    def advance(self, key: Hashable, n: float = 1) -> None:
        """Note that items are done, of a part that is always in progress."""
        self._charge()
        self._parts[key].n_done += n

    def cancel(self, key: Hashable) -> None:
        """Note that an item is no longer in progress."""
        self._charge()
        part = self._parts[key]
        part.n_open = max(0, part.n_open - 1)
        if not part.n_open:
            self._open.pop(key, None)

    def reached(self, key: Hashable, n_done: float, spent: float) -> None:
        """Set what this run did of a part, and the seconds that it took."""
        part = self._parts[key]
        part.n_done, part.spent, part.effort = n_done, spent, spent

    def keep(self, causes: Iterable[str]) -> None:
        """Note that of the parts with causes in common, only those with one of these are still worked on."""
        wanted = {*causes}
        for part in self._parts.values():
            if len(part.work.causes) > 1 and not wanted & {*part.work.causes}:
                part.n = part.n_done

    def per_second(self, cause: str) -> float:
        """The items with this cause that a second gets done, in this run so far; 0.0 if none was done."""
        self._charge()
        some = [part for part in self._parts.values() if cause in part.work.causes]
        spent = sum(part.spent for part in some)
        return sum(part.n_done for part in some) / spent if spent else 0.0

    def span(self) -> TimeSpan | None:
        """The seconds left, for a reader; None in the first minute, and while nothing is known of a part.

        It is computed every few seconds, not for each event.
        """
        self._charge()
        if self._now >= self._due:
            self._shown = self.estimate()
            self._due = self._now + (_FRESH_SECONDS if self._shown else 0.0)
        return self._shown

    def estimate(self) -> TimeSpan | None:
        """The seconds left, at best and at worst; None while nothing is known of a part."""
        parts = [part for part in self._parts.values() if part.n > 0]
        if any(part.work.seconds is None and not part.n_done for part in parts):
            return None
        groups = dict[Hashable, list[_Part]]()
        for place, part in enumerate(parts):
            groups.setdefault(part.work.causes[:2] or place, []).append(part)
        each = [_ModelWork(some) for some in groups.values()]
        left = [group.left(each) for group in each]
        total = sum(seconds for seconds, _ in left)
        spread = sum(seconds * math.sqrt(variance) for seconds, variance in left)
        spread = _WIDE * math.hypot(_DRIFT, spread / total if total else 0.0)
        return TimeSpan(total * math.exp(-spread), total * math.exp(spread))

    def _charge(self) -> None:
        """Share the time since the last event out among the items in progress."""
        now = self._clock()
        seconds, self._now = now - self._now, now
        if self._alone is not None:
            self._parts[self._alone].spent += seconds
            self._parts[self._alone].effort += seconds
            return
        n_open = sum(part.n_open for part in self._open.values())
        if not n_open:
            self._idle += seconds
        for part in self._open.values():
            part.spent += seconds * part.n_open / n_open
            part.effort += seconds * part.n_open / math.sqrt(n_open)


class _ModelWork:
    """The parts of a run that one model works on together."""

    def __init__(self, parts: list[_Part]) -> None:
        self.kind = parts[0].work.causes[:1]
        spans = [part.work.seconds or TimeSpan(1.0, 1.0) for part in parts]
        each = [math.sqrt(span.low * span.high) for span in spans]  # seconds of an item
        self.expected, done, begun = (
            sum(seconds * getattr(part, of) for part, seconds in zip(parts, each, strict=True))
            for of in ("n", "n_done", "n_open")
        )
        self.is_known = all(part.work.seconds for part in parts)
        self.spread = max(math.log(span.high / span.low) / (2 * _WIDE) for span in spans)
        self.n_done, n_open = sum(part.n_done for part in parts), sum(part.n_open for part in parts)
        self.spent, effort = (sum(getattr(part, of) for part in parts) for of in ("spent", "effort"))
        # The root of the items in progress; between two batches, that of the batches so far.
        width = math.sqrt(n_open) if n_open else effort / self.spent if self.spent else 1.0
        ahead = max(0.0, self.expected - done - begun) / width
        if n_open:
            ahead += (1 - _BEGUN) * begun / n_open * sum(1 / math.sqrt(n) for n in range(1, n_open + 1))
        self.is_over = not ahead
        self.paced = ahead * effort / (done + _BEGUN * begun) if done else 0.0
        self.noise = _ITEM**2 / self.n_done if self.n_done else math.inf

    def left(self, groups: list[_ModelWork]) -> tuple[float, float]:
        """Seconds left, and the variance of their logarithm."""
        if self.is_over or not self.is_known:
            return self.paced, self.noise + _STEADY**2
        factor, variance = 0.0, self.spread**2
        for other in [*(each for each in groups if each is not self), self]:  # its own pace counts last
            if other.kind == self.kind and other.n_done and other.spent and other.is_known:
                noise = other.noise + (_APART if other is not self else 0.0)
                share = variance / (variance + noise)
                factor += share * (math.log((other.spent + other.paced) / other.expected) - factor)
                variance *= 1 - share
        whole = self.expected * math.exp(factor)
        if not self.n_done or not self.spent:
            return max(whole - self.spent, self.spent), variance
        return whole * self.paced / (self.spent + self.paced), variance + _MEAN**2


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
