"""How many requests are in flight at a remote service: more while it answers, half after a rate limit.

Promises: additive increase and multiplicative decrease (Chiu and Jain 1989), with a doubling start. A burst
of refusals causes one cut. No request starts before the end of a pause that the service asked for.
Everything but `room` runs in the loop's thread.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from contextlib import suppress
from email.utils import parsedate_to_datetime

START = 4
_MAX_WAIT_SECONDS = 30.0  # seconds between two attempts, if the service names none


class TransportClosed(Exception):
    """The run has ended; waiting requests are abandoned."""


class ConcurrencyLimit:
    """Admits requests, up to a limit that follows the service."""

    def __init__(self, most: int) -> None:
        self._most, self._width = most, float(min(START, most))
        self._is_starting = True
        self._n_active, self._paused_until, self._cut_at = 0, 0.0, 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._ends = asyncio.Event()
        self.n_cuts = 0

    @property
    def room(self) -> int:
        """How many requests may be in flight now, including those that wait for a retry."""
        return max(1, int(self._width))

    async def enter(self) -> float:
        """Wait for admission; return its time. Raises TransportClosed once the run ends."""
        while not self._ends.is_set():
            now = time.monotonic()
            if now >= self._paused_until and self._n_active < self.room:
                self._n_active += 1
                return now
            await self._wait(self._paused_until - now)
        raise TransportClosed

    async def _wait(self, seconds: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(turn, seconds if seconds > 0 else None)
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    async def sleep(self, seconds: float) -> None:
        """Wait before a retry. Raises TransportClosed once the run ends."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ends.wait(), seconds)
        if self._ends.is_set():
            raise TransportClosed

    def leave(self) -> None:
        """Leave, so that another request can enter."""
        self._n_active -= 1
        self._wake()

    def grow(self) -> None:
        """Raise the limit: the service has answered."""
        self._width = min(self._most, self._width + (1 if self._is_starting else 1 / self._width))
        self._wake()

    def cut(self, started: float, seconds: float) -> None:
        """Halve the limit and pause: the service refused a request that was admitted at `started`."""
        now = time.monotonic()
        self._paused_until = max(self._paused_until, now + seconds)
        if started < self._cut_at:
            return  # it was in flight at the last cut: the same burst
        self._is_starting, self._cut_at = False, now
        self._width = max(1.0, self._width / 2)
        self.n_cuts += 1

    def close(self) -> None:
        """Abandon all requests that wait now or later."""
        self._ends.set()
        self._wake()

    def _wake(self) -> None:
        n_free = len(self._waiting) if self._ends.is_set() else self.room - self._n_active
        while self._waiting and n_free > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                n_free -= 1


def wait_seconds(n_failures: int, first: float) -> float:
    """Return the seconds before the next attempt: doubled each time, with jitter."""
    longest = min(_MAX_WAIT_SECONDS, first * 2.0 ** min(n_failures - 1, 30))
    return longest * random.uniform(0.5, 1.0)


def retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number or a date; None for anything else."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
