"""A file of groups of bytes that grows while something long goes on, and is read again after a kill.

Promises: a group is there whole or not at all: what a crash tore is cut off when the file is opened.
Leaves to others: what the bytes are, and whose (scores.py).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

_HEAD = struct.Struct("<QI")  # bytes of the group, and their CRC-32


class Groups:
    """The groups of a file in their order, and room for more."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("a+b")
        self.there = list(_whole(path.read_bytes()))
        self._file.truncate(sum(_HEAD.size + len(group) for group in self.there))

    def append(self, group: bytes) -> None:
        """Put a group behind the others; it outlives this process from then on."""
        self._file.write(_HEAD.pack(len(group), zlib.crc32(group)) + group)
        self._file.flush()
        self.there.append(group)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _whole(data: bytes) -> Iterator[bytes]:
    """Up to the first that is torn."""
    start = 0
    while start + _HEAD.size <= len(data):
        size, crc = _HEAD.unpack_from(data, start)
        start += _HEAD.size
        group = data[start : start + size]
        if len(group) != size or zlib.crc32(group) != crc:
            return
        yield group
        start += size
