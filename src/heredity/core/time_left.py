"""The time left of a run: what was expected of each part of its work, corrected by what was seen.

Promises: numbers and a clock in, a range out. A model's time moves the estimate of the next one a little.
Leaves to others: the expected times (study/duration.py), and counting (progress.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

PATIENCE_SECONDS = 60.0  # of running, before which no time left is given
_ITEM, _PART = 0.35, 0.1  # logarithmic spread: of the times of items, of the mean time of many
_SHARES = (2, 2, 4, 1)  # of the variance: of the machine and of each cause; a part by itself has 1
_SWEEPS = 12
_NEWEST = 0.2  # of the mean time of an answer
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

    seconds: expected for one item; None: not known. causes: what this time depends on, such as a model and an
    attack. The parts with the same cause share what was measured of one.
    n_answers: the most that one item takes, one after the other.
    """

    n: float
    seconds: TimeSpan | None = None
    causes: tuple[str, ...] = ()
    n_answers: int = 1


@dataclass
class _OpenItem:
    """An item in progress. since: when its last answer came, or it began."""

    part: _Part
    since: float
    n_turns: int = 0  # that are over


@dataclass
class _Part:
    work: Work
    n: float  # left of `work.n` when this run began
    n_done: float = 0.0
    n_open: int = 0
    spent: float = 0.0
    n_answers: int = 0

    @property
    def worked(self) -> float:
        """Items; one in progress is half done, on average."""
        return min(self.n, self.n_done + self.n_open / 2)

    @property
    def noise(self) -> float:
        """The variance of the logarithm of the mean time that was seen."""
        return _ITEM**2 / max(self.worked, 1e-9) + _PART**2

    @property
    def waiting(self) -> float:
        """Items that have not begun."""
        return max(0.0, self.n - self.n_done - self.n_open)

    @property
    def expected(self) -> float:
        """Seconds of an item."""
        known = self.work.seconds
        return math.sqrt(known.low * known.high) if known else self.spent / max(self.worked, 1e-9)


class TimeLeft:
    """The time left of a run: what was expected of each part of its work, corrected by what was seen.

    left = TimeLeft({"a": Work(300, TimeSpan(0.1, 0.9), ("a",)), "b": Work(300, TimeSpan(0.4, 3.0), ("b",))})
    left.begin("a"); left.end("a"); left.span()

    Time is shared among the items in progress. The time of an item is the expected one, moved by each of its
    causes (`_effects`). The items in progress take at least as long as the answers that one of them still
    needs, because these come one after the other.
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
        self._items = dict[Hashable, _OpenItem]()  # in progress, of those that have a name
        self._paced = 0.0  # seconds over the square root of the items in progress: an answer's own time
        self._turn = 0.0  # of an answer, of the last ones, by this clock

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
        if key is None:
            for item in self._items.values():
                item.since = self._paced  # they waited
        else:
            self.begin(key)
            self._turn = 0.0

    def begin(self, key: Hashable, item: Hashable = None) -> None:
        """Note that an item is in progress. item: its name, for `answered`."""
        self._charge()
        part = self._open[key] = self._parts[key]
        part.n_open += 1
        if item is not None:
            self._items[item] = _OpenItem(part, self._paced)

    def answered(self, item: Hashable) -> None:
        """Note that an item has one more of its answers."""
        if (found := self._items.get(item)) is None:
            return
        self._charge()
        seconds, found.since = self._paced - found.since, self._paced
        self._turn += (seconds - self._turn) * (_NEWEST if self._turn else 1.0)
        found.n_turns += 1
        found.part.n_answers += 1

    def end(self, key: Hashable, item: Hashable = None) -> None:
        """Note that an item is done. If nobody noted its beginning, it took the time since the last event."""
        part = self._parts[key]
        self.cancel(key, item)
        part.n_done, part.spent = part.n_done + 1, part.spent + self._idle
        self._idle = 0.0

    def advance(self, key: Hashable, n: float = 1) -> None:
        """Note that items are done, of a part that is always in progress."""
        self._charge()
        self._parts[key].n_done += n

    def cancel(self, key: Hashable, item: Hashable = None) -> None:
        """Note that an item is no longer in progress."""
        self._charge()
        self._items.pop(item, None)
        part = self._parts[key]
        part.n_open = max(0, part.n_open - 1)
        if not part.n_open:
            self._open.pop(key, None)

    def reached(self, key: Hashable, n_done: float, spent: float) -> None:
        """Set what this run did of a part, and the seconds that it took."""
        self._parts[key].n_done, self._parts[key].spent = n_done, spent

    def keep(self, causes: Iterable[str]) -> None:
        """Note that of the parts with causes in common, only those with one of these are still worked on."""
        wanted = {*causes}
        for part in self._parts.values():
            if len(part.work.causes) > 1 and not wanted & {*part.work.causes}:
                part.n = part.n_done

    def per_second(self, cause: str) -> float:
        """The items with this cause that a second gets done, in this run so far; 0.0 if none was done."""
        self._charge()
        some = self._having(cause)
        spent = sum(part.spent for part in some)
        return sum(part.worked for part in some) / spent if spent and any(p.n_done for p in some) else 0.0

    def _having(self, cause: str) -> list[_Part]:
        return [part for part in self._parts.values() if cause in part.work.causes]

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
        left, begun, variance = _ahead(parts)
        low, high = self._longest()
        if (tail := math.sqrt(low * high)) > max(begun, 0.0):
            left += tail - begun
            variance += (tail * math.log(high / low) / (2 * _WIDE)) ** 2 + (tail * _ITEM) ** 2
        spread = _WIDE * math.hypot(_DRIFT, math.sqrt(variance) / left if left else 0.0)
        return TimeSpan(left * math.exp(-spread), left * math.exp(spread))

    def _longest(self) -> TimeSpan:
        """Seconds until all items in progress are done: the answers of one come one after the other."""
        slow = self._turn * math.sqrt(len(self._items))  # fewer and fewer share the engine
        open_parts = {id(item.part): item.part for item in self._items.values()}.values()
        n_answers = sum(part.n_answers for part in open_parts)
        n_over = min(n_answers, sum(part.n_done for part in open_parts))
        goes_on = (n_answers - n_over + 0.5) / (
            n_answers + 1
        )  # the share of answers that are not an item's last
        low = high = 0.0
        for item in self._items.values():
            part, is_last = item.part, not item.part.waiting
            at_most = max(0, part.work.n_answers - 1 - item.n_turns * is_last)
            more = min(at_most, math.log(part.n_open + 1) / -math.log(goes_on))
            now = abs(1 - (self._paced - item.since) / self._turn) if is_last and self._turn else 1.0
            low = max(low, slow * (now + more / 2))
            high = max(high, slow * (now + min(at_most, 1.5 * more)))
        return TimeSpan(low, high)

    def _charge(self) -> None:
        """Share the time since the last event out among the items in progress."""
        now = self._clock()
        seconds, self._now = now - self._now, now
        self._paced += seconds / math.sqrt(max(1, len(self._items)))
        if self._alone is not None:
            self._parts[self._alone].spent += seconds
            return
        n_open = sum(part.n_open for part in self._open.values())
        if not n_open:
            self._idle += seconds
        for part in self._open.values():
            part.spent += seconds * part.n_open / n_open


def _causes(place: int, part: _Part) -> dict[str, float]:
    """The causes of a part's time, and the spread that each gives to its logarithm."""
    causes = ("", *part.work.causes, f"\0{place}")  # "": the machine; the last: this part by itself
    known = part.work.seconds
    shares = (*_SHARES[: len(causes) - 1], 1)
    spread = math.log(known.high / known.low) / (2 * _WIDE) if known else 0.0
    return {
        cause: spread * math.sqrt(share / sum(shares)) for cause, share in zip(causes, shares, strict=True)
    }


def _effects(parts: list[_Part]) -> dict[str, tuple[float, float]]:
    """By cause: its effect on the logarithm of a time, and the variance of this; (0, 1) if unseen.

    This is ridge regression of the logarithms of the mean times that were seen, by Gauss-Seidel iteration.
    """
    effects = dict[str, tuple[float, float]]()
    having = dict[str, list[tuple[float, float, dict[str, float]]]]()
    for place, part in enumerate(parts):
        causes = _causes(place, part)
        effects.update(dict.fromkeys(causes, (0.0, 1.0)))
        if part.work.seconds and part.worked and part.spent:
            seen = math.log(part.spent / part.worked / part.expected)
            for each in causes:
                having.setdefault(each, []).append((seen, part.noise, causes))
    for _ in range(_SWEEPS):
        for cause, some in having.items():
            pull = weight = certain = 0.0
            for seen, noise, causes in some:
                others = [(share, effects[each][0]) for each, share in causes.items() if each != cause]
                pull += causes[cause] * (seen - sum(share * effect for share, effect in others)) / noise
                weight += causes[cause] ** 2 / noise
                certain += causes[cause] ** 2 / (noise + sum(share**2 for share, _ in others))
            effects[cause] = pull / (1 + weight), 1 / (1 + certain)
    return effects


def _ahead(parts: list[_Part]) -> tuple[float, float, float]:
    """Seconds left of all items, and of those that have begun; and the variance of the first."""
    effects = _effects(parts)
    left, begun, variance, by_cause = 0.0, 0.0, 0.0, dict[str, float]()
    for place, part in enumerate(parts):
        causes = _causes(place, part)
        seconds = part.expected * math.exp(sum(share * effects[each][0] for each, share in causes.items()))
        ahead = max(0.0, part.n - part.worked) * seconds
        left += ahead
        begun += ahead - part.waiting * seconds
        variance += (ahead * _ITEM) ** 2 / (1 + part.worked)
        own = math.sqrt(part.noise / (part.noise + sum(share**2 for share in causes.values())))
        for each, share in causes.items():  # what the part itself has shown leaves little open
            by_cause[each] = by_cause.get(each, 0.0) + ahead * share * own
    variance += sum(ahead**2 * effects[each][1] for each, ahead in by_cause.items())
    return left, begun, variance
