"""Helpers that several filters share: ratios, stripped lines, repeated spans, words as they are compared.

Promises: no ratio divides by zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heredity.corpus import _tables as tables
from heredity.corpus.text import Hashes, Ints, Spans, TextBatch


def share(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """part / whole; 0 if `whole` is 0."""
    shares: NDArray[np.float64] = np.divide(part, whole, out=np.zeros(len(part), np.float64), where=whole > 0)
    return shares


def hash_words(words: Iterable[str]) -> Hashes:
    """The hash of each word, as in a batch."""
    batch = TextBatch.from_documents([word.encode() for word in words])
    return tables.word_hashes(batch.raw, batch.start, batch.end)


def stripped(batch: TextBatch) -> tuple[Ints, Ints]:
    """(line,) Start and end of each line without the spaces around it."""
    start, end = batch.lines.start.copy(), batch.lines.end.copy()
    at = np.flatnonzero(start < end)
    while len(at := at[batch.classes[start[at]] == tables.SPACE]):  # few lines begin with a space
        start[at] += 1
        at = at[start[at] < end[at]]
    at = np.flatnonzero(start < end)
    while len(at := at[batch.classes[end[at] - 1] == tables.SPACE]):
        end[at] -= 1
    return start, end


def repeated(batch: TextBatch, spans: Spans) -> NDArray[np.bool_]:
    """(span,) Whether the same bytes occur earlier in its document.

    Only spans with equal length, first and last bytes are compared in full; these are few.
    """
    keys = tables.edge_hashes(batch.raw, spans.start, spans.end) ^ own(len(batch))[spans.document]
    is_repeated = np.zeros(len(keys), np.bool_)
    order = np.argsort(keys)
    same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    suspects = np.unique(order[np.concatenate((same, same + 1))])
    seen: set[tuple[int, bytes]] = set()
    rows = (suspects, keys[suspects], spans.start[suspects], spans.end[suspects])
    for i, key, start, end in zip(*(row.tolist() for row in rows), strict=True):
        text = (key, batch.raw[start:end])
        is_repeated[i] = text in seen
        seen.add(text)
    return is_repeated


def own(n_documents: int) -> Hashes:
    """A hash per document, so that equal words of two documents do not count as repeated."""
    return tables.mix(np.arange(1, n_documents + 1, dtype=np.uint64) << np.uint64(20))


def simple_words(batch: TextBatch, hashes: Hashes) -> Hashes:
    """(word,) Hashes of words as documents are compared: all numbers are equal. hashes: of lower-case words.

    Case is folded in ASCII only: É and é differ.
    """
    first = batch.data[batch.words.start]
    return np.where((first >= 48) & (first <= 57), _NUMBER, hashes)


_NUMBER = np.uint64(0x2545F4914F6CDD1D)
