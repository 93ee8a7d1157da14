"""The steps of a long run, and the time that is left, as lines of text.

Promises: the time left follows the pace of this run. Work of an earlier run does not count.
Leaves to others: the steps (inheritance/run.py, adapt/run.py), and the arithmetic (core/progress.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from heredity.core.progress import PREPARE, Progress, Watch
from heredity.core.time_left import TimeLeft, TimeSpan, Work, time_words

Tell = Callable[[str], None]
_INSTANT = 0.05  # a share of the planned work or time under which a step says nothing of the pace
_SECOND = TimeSpan(0.5, 2.0)  # of a planned one


@dataclass
class Course:
    """The steps of a run, and the time left: planned minutes, at the pace of this run so far.

    Only work of this run counts for the pace: a step that an earlier run did, or a part of it, does not.

    minutes     planned for all steps; without any, no time left is reported
    is_resumed  an earlier run was stopped, so the first step that takes time may be half done
    """

    n_steps: int
    minutes: float
    tell: Tell
    is_resumed: bool = False
    _done: float = 0.0  # planned minutes of the work of this run
    _spent: float = 0.0  # seconds
    _step: int = 0
    _planned: float = 0.0  # minutes of the step that runs
    _open: float = 0.0  # those that are not done
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.left = TimeLeft({"": Work(60 * self.minutes, _SECOND)})

    def start(self, title: str, minutes: float, done: float = 0.0) -> None:
        """Report the next step, which is planned to take `minutes`. done: the share of it that is there."""
        self._step, self._started = self._step + 1, time.monotonic()
        self._planned, self._open = minutes, minutes * (1.0 - done)
        self.left.had("", 60 * minutes * done)
        span = self.left.estimate()
        left = f"; {time_words(span)} left" if self.minutes and span else ""
        self.tell(f"[{self._step}/{self.n_steps}] {title}{left}")

    def watching(self, watch: Watch | None) -> Watch | None:
        """The watch, whose events then have the time left of all steps, or none if no minutes are planned."""
        if watch is None:
            return None

        def show(progress: Progress) -> None:
            if progress.step != PREPARE and progress.n_total and self._open:
                share = min(1.0, progress.n_done / progress.n_total)
                done = self._open - self._planned * (1.0 - share)  # without that of earlier runs
                self._reached(max(0.0, done), time.monotonic() - self._started)
            watch(progress._replace(seconds_left=self.left.span() if self.minutes else None))

        return show

    def end(self, share: float | None = None) -> None:
        """End the step. share: of its work that this run did; None if that is not known."""
        spent = time.monotonic() - self._started
        if share is None and self._planned:
            has_worked = spent > 60 * _INSTANT * self._planned
            share = float(has_worked and not self.is_resumed)
            self.is_resumed = self.is_resumed and not has_worked
        done = self._planned * (share or 0.0) if share and share > _INSTANT else 0.0
        if done:
            self._done, self._spent = self._done + done, self._spent + spent
        self.left.had("", 60 * (self._open - done))
        self._open = 0.0
        self._reached(0.0, 0.0)

    def _reached(self, minutes: float, seconds: float) -> None:
        self.left.reached("", 60 * (self._done + minutes), self._spent + seconds)
