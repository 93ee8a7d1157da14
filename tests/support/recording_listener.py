"""Someone who listens to answers while they grow."""

from __future__ import annotations

from collections.abc import Iterable


class RecordingListener:
    """A listener that keeps what it hears, and wants so many pieces of each answer."""

    def __init__(self, most: int = 1 << 30, deaf: Iterable[int] = ()) -> None:
        self.heard: dict[int, list[str]] = {}
        self._most, self._deaf = most, set(deaf)

    def is_heard(self, key: int) -> bool:
        return key not in self._deaf

    def hear(self, key: int, more: str) -> None:
        self.heard.setdefault(key, []).append(more)

    def is_wanted(self, key: int) -> bool:
        return len(self.heard.get(key, ())) < self._most
