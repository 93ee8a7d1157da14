"""Server-sent events: the same data however the bytes are split, and none from an event that was cut off."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from heredity.engines._server_events import EventReader

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
