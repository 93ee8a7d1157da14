"""A batch of documents as one array of bytes, and the counts that filters share, each computed once.

A filter that loops over words reads a few MB per second. These arrays cover the bytes of a whole batch,
which is about ten times as fast. A document is UTF-8, followed by a line feed that is not part of it.

Words are runs of letters, digits and underscores, with apostrophes and decimal points inside. A run of
other characters is a symbol; each Chinese or Japanese character is a word. datatrove tokenizes words by
language, so its counts differ; the rules are the same.

Promises: the counts of a document do not depend on the rest of the batch, except for collisions of 64-bit
hashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heredity.corpus import _tables as tables

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Mask = NDArray[np.bool_]

TARGET = 1 << 18  # bytes of a batch: smaller batches cost more calls, larger ones exceed a core's cache
NEWLINE = 10


class Spans(NamedTuple):
    """Spans of bytes. The spans of a document are those from `low` up to `high`, exclusive."""

    start: Ints
    end: Ints
    low: Ints
    high: Ints

    def __len__(self) -> int:
        return len(self.start)

    def per_document(self, values: NDArray[Any]) -> Ints:
        """(document,) The sum of `values`, one per span. Every span lies in a document."""
        counts = np.zeros(len(self.low), np.int64)
        has = np.flatnonzero(self.high > self.low)
        if len(has):
            counts[has] = np.add.reduceat(values, self.low[has], dtype=np.int64)
        return counts

    @property
    def document(self) -> Ints:
        """(span,) The document of each span."""
        return np.repeat(np.arange(len(self.low)), self.high - self.low)

    @property
    def n_each(self) -> Ints:
        """(document,) The number of its spans."""
        return self.high - self.low


class TextBatch:
    """Documents as one array of bytes. Immutable: a step that changes text makes a new batch."""

    def __init__(self, raw: bytes, lengths: Ints) -> None:
        """raw: each document and a line feed; lengths: bytes of each, without it."""
        self.raw = raw
        self.lengths = lengths
        self.data: Bytes = np.frombuffer(raw, np.uint8)
        self.end: Ints = np.cumsum(lengths + 1) - 1
        self.start: Ints = self.end - lengths

    @classmethod
    def from_documents(cls, documents: Sequence[bytes]) -> TextBatch:
        """A batch of these documents."""
        raw = b"".join(part for document in documents for part in (document, b"\n"))
        return cls(raw, np.fromiter(map(len, documents), np.int64, len(documents)))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> bytes:
        return self.raw[self.start[index] : self.end[index]]

    def __iter__(self) -> Iterator[bytes]:
        return (self.raw[a:b] for a, b in zip(self.start.tolist(), self.end.tolist(), strict=True))

    @property
    def n_bytes(self) -> int:
        return int(self.lengths.sum())

    def keep(self, kept: Mask) -> TextBatch:
        """A batch of the documents in the mask."""
        if kept.all():
            return self
        rows = zip(self.start[kept].tolist(), self.end[kept].tolist(), strict=True)
        return TextBatch(b"".join([self.raw[start : end + 1] for start, end in rows]), self.lengths[kept])

    def replace(self, changed: dict[int, bytes]) -> TextBatch:
        """A batch with some documents replaced, by their index."""
        if not changed:
            return self
        return TextBatch.from_documents([changed.get(i, document) for i, document in enumerate(self)])

    def documents_with(self, hits: Mask) -> list[int]:
        """The indices of the documents that contain one of these bytes."""
        if not hits.any():
            return []
        at = np.searchsorted(self.start, np.flatnonzero(hits), "right") - 1
        documents: list[int] = np.unique(at).tolist()
        return documents

    def count(self, hits: Mask) -> Ints:
        """(document,) The number of its bytes in the mask; the line feed after it does not count."""
        at = np.flatnonzero(hits)
        return np.searchsorted(at, self.end) - np.searchsorted(at, self.start)

    # --- characters -----------------------------------------------------------------------------

    @cached_property
    def is_ascii(self) -> bool:
        return self.raw.isascii()

    @cached_property
    def _characters_before(self) -> NDArray[np.int32]:
        """(byte + 1,) The number of characters that begin before it."""
        sums = np.zeros(len(self.data) + 1, np.int32)
        np.cumsum(((self.data & 0xC0) != 0x80).astype(np.int32), out=sums[1:])
        return sums

    def n_characters(self, start: Ints, end: Ints) -> Ints:
        """(span,) The number of its characters."""
        if self.is_ascii:
            return end - start
        before = self._characters_before
        return (before[end] - before[start]).astype(np.int64)

    @cached_property
    def characters(self) -> Ints:
        """(document,) The number of its characters."""
        return self.n_characters(self.start, self.end)

    # --- hashes ---------------------------------------------------------------------------------

    @cached_property
    def lower(self) -> bytes:
        """The bytes with A to Z as a to z."""
        return self.raw.lower()

    # --- words and lines ------------------------------------------------------------------------

    @cached_property
    def classes(self) -> Bytes:
        """(byte,) Space, word, symbol or ideograph."""
        return tables.classes(self.raw, self.data, self.is_ascii)

    @cached_property
    def tokens(self) -> Spans:
        """Words and symbols."""
        start, end = tables.runs(self.classes, self.data, self.is_ascii)
        return self.spans(start, end)

    @cached_property
    def is_word(self) -> Mask:
        """(token,) Whether it is a word."""
        mask: Mask = (self.classes[self.tokens.start] & tables.WORD) != 0
        return mask

    @cached_property
    def words(self) -> Spans:
        """The tokens that are words."""
        at = self.word_places
        return self.spans(self.tokens.start.take(at), self.tokens.end.take(at))

    @cached_property
    def word_places(self) -> Ints:
        """(word,) Which token it is."""
        return np.flatnonzero(self.is_word)

    @cached_property
    def token_hashes(self) -> Hashes:
        return tables.word_hashes(self.raw, self.tokens.start, self.tokens.end)

    @cached_property
    def word_hashes(self) -> Hashes:
        """(word,) Those of the tokens that are words."""
        return self.token_hashes.take(self.word_places)

    @cached_property
    def token_lengths(self) -> Ints:
        """(token,) Its characters."""
        return self.n_characters(self.tokens.start, self.tokens.end)

    @cached_property
    def lower_word_hashes(self) -> Hashes:
        """(word,) Its hash with A to Z as a to z."""
        return tables.word_hashes(self.lower, self.words.start, self.words.end)

    @cached_property
    def lines(self) -> Spans:
        """Every line, empty ones too, without its line feed."""
        end = np.flatnonzero(self.data == NEWLINE)
        start = np.empty_like(end)
        start[:1] = 0
        start[1:] = end[:-1] + 1
        return self.spans(start, end)

    @cached_property
    def full_lines(self) -> Spans:
        """The lines that are not empty."""
        chosen = self.lines.end > self.lines.start
        return self.spans(self.lines.start[chosen], self.lines.end[chosen])

    def spans(self, start: Ints, end: Ints) -> Spans:
        low = np.searchsorted(start, self.start)
        # An empty document's only line begins at its end; a word never does.
        return Spans(start, end, low, np.searchsorted(start, self.end + 1, "left"))

    def endings(self, spans: Spans, texts: Iterable[bytes]) -> Mask:
        """(span,) Whether it ends with one of these texts, each of 1 to 4 bytes."""
        return tables.ends_with(self.data, spans.start, spans.end, tuple(texts))


def batches(documents: Iterable[bytes], target: int = TARGET) -> Iterator[TextBatch]:
    """Documents in batches of about `target` bytes; a longer document is a batch of its own."""
    held: list[bytes] = []
    size = 0
    for document in documents:
        held.append(document)
        size += len(document)
        if size >= target:
            yield TextBatch.from_documents(held)
            held, size = [], 0
    if held:
        yield TextBatch.from_documents(held)
