"""A stream of requests as an engine pulls it.

Promises: it is pulled by whoever calls `next`, and not any more once it has ended.
Leaves to others: what is done with none ready: ask again (_crew.py), or after the next step (_session.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from heredity.errors import EngineFailure
from heredity.records import Request


class Source:
    """is_open: whether there may be more."""

    def __init__(self, requests: Iterable[Request | None]) -> None:
        self._left = iter(requests)
        self.is_open = True

    def next(self) -> Request | None:
        """The next request; None where none is ready, or none will come."""
        if self.is_open:
            try:
                return next(self._left)
            except StopIteration:
                self.is_open = False
        return None

    def refuse_idle(self) -> None:
        """Raise EngineFailure where more is to come, and nothing under way could bring it."""
        if self.is_open:
            raise EngineFailure(
                "the stream of requests has nothing ready and nothing under way", code="stream-stuck"
            )
