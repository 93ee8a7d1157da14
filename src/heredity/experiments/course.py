"""The steps of a long run, and the time that is left, as lines of text.

Promises: the time left follows the pace of this run. Work of an earlier run does not count.
Leaves to others: the steps themselves (inheritance/run.py, adapt/run.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from heredity.core.terminal import clock

Tell = Callable[[str], None]
_INSTANT = 0.05  # a share of the planned work or time under which a step says nothing of the pace


@dataclass
class Course:
    """The steps of a run, and the time left: planned minutes, scaled by the pace of this run so far.

    Only work of this run counts for the pace: a step that an earlier run did, or a part of it, does not.

    minutes_left  planned for all steps; without any, no time left is reported
    is_resumed    an earlier run was stopped, so the first step that takes time may be half done
    """

    n_steps: int
    minutes_left: float
    tell: Tell
    is_resumed: bool = False
    _done: float = 0.0  # planned minutes of the work of this run
    _spent: float = 0.0
    _step: int = 0
    _minutes: float = 0.0  # planned, of the step that runs
    _left: float = 0.0  # those that are not done
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._is_timed = self.minutes_left > 0

    def start(self, title: str, minutes: float, done: float = 0.0) -> None:
        """Report the next step, which is planned to take `minutes`. done: the share of it that is there."""
        self._step, self._started = self._step + 1, time.monotonic()
        self._minutes, self._left = minutes, minutes * (1.0 - done)
        self.minutes_left = max(0.0, self.minutes_left - minutes * done)
        pace = self._spent / self._done if self._done else 1.0
        left = f"; about {clock(60 * self.minutes_left * pace)} left" if self._is_timed else ""
        self.tell(f"[{self._step}/{self.n_steps}] {title}{left}")

    def end(self, share: float | None = None) -> None:
        """End the step. share: of its work that this run did; None if that is not known."""
        spent = (time.monotonic() - self._started) / 60
        self.minutes_left = max(0.0, self.minutes_left - self._left)
        if share is None and self._minutes:
            has_worked = spent > _INSTANT * self._minutes
            share = float(has_worked and not self.is_resumed)
            self.is_resumed = self.is_resumed and not has_worked
        if self._minutes and share and share > _INSTANT:
            self._done, self._spent = self._done + share * self._minutes, self._spent + spent
