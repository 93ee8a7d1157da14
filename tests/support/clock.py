"""A clock for code that times itself, so that a test decides how busy the machine is."""

from __future__ import annotations


class BusyClock:
    """Seconds on a machine that is busy until a moment: work takes 30 times as long before it."""

    def __init__(self, busy_until: float) -> None:
        self.now, self._busy_until = 0.0, busy_until

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        """Let work that takes `seconds` on an idle machine pass."""
        self.now += seconds * (30 if self.now < self._busy_until else 1)
