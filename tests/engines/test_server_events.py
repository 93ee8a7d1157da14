"""Server-sent events: the same data however the bytes are split, and none from an event that was cut off."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.engines import _workers
from heredity.engines._workers import EventReader

STREAM = (
    b": hello\r\n\r\ndata: one\n\ndata:two\r\rid: 3\r\n"
    b"data: three\r\ndata:\r\ndata: lines\r\n\r\n\r\ndata: cut\n"
)


@given(st.lists(st.integers(1, 9)))
def test_the_split_of_the_bytes_does_not_matter(sizes: list[int]) -> None:
    reader, found, at = EventReader(), list[bytes](), 0
    for size in [*sizes, len(STREAM)]:
        found += reader.feed(STREAM[at : at + size])
        at += size
    assert found == [b"one", b"two", b"three\n\nlines"]


class CountedPattern:
    """A pattern that counts the bytes that it reads."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self.pattern, self.n_read = pattern, 0

    def split(self, text: bytes) -> list[bytes]:
        self.n_read += len(text)
        return self.pattern.split(text)


def test_a_long_line_in_many_parts_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read again with each part, a line of 8 MB took a quarter of a second for each kilobyte."""
    counted = CountedPattern(_workers._LINE_END)
    monkeypatch.setattr(_workers, "_LINE_END", counted)
    reader, line = EventReader(), b"data: " + b"x" * 4000
    found = [data for at in range(0, len(line), 10) for data in reader.feed(line[at : at + 10])]
    assert found == [] and reader.feed(b"\n\n") == [b"x" * 4000]
    assert counted.n_read == len(line) + 2
