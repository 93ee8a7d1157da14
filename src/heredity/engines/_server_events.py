"""Server-sent events: the data of each event in a stream of bytes, as the HTML standard defines it.

Promises: how the bytes are split does not matter. An event without the empty line at its end is
dropped. The time is linear in the number of bytes, also if a line of megabytes comes in small parts.
Leaves to others: receiving the bytes, and the meaning of the data.
"""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventReader:
    """Splits a stream of bytes into the data of its events. Comments and other fields are skipped."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []  # the parts of a line without its end
        self._is_held = False  # a carriage return, which may be half of a line's end
        self._data: list[bytes] = []

    def feed(self, more: bytes) -> list[bytes]:
        """Receive the next bytes; return the data of the events that are complete with them."""
        text = b"\r" * self._is_held + more
        self._is_held = text.endswith(b"\r")
        first, *others = _LINE_END.split(text[: len(text) - self._is_held])
        self._begun.append(first)
        if not others:
            return []
        *lines, rest = b"".join(self._begun), *others
        self._begun = [rest]
        return [data for line in lines if (data := self._end_line(line)) is not None]

    def _end_line(self, line: bytes) -> bytes | None:
        """Take a line; return the data of the event that it ends."""
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            return None
        found, self._data = self._data, []
        return b"\n".join(found) if found else None
