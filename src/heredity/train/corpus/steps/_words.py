"""What several filters count: shares that may be of nothing, lines without the spaces around them.

Promises: no share is a division by zero. Leaves to others: the rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heredity.train.corpus import _tables as tables
from heredity.train.corpus.batch import Batch, Hashes, Ints, Spans


def share(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """part / whole; 0 of nothing."""
    found: NDArray[np.float64] = np.divide(part, whole, out=np.zeros(len(part), np.float64), where=whole > 0)
    return found


def hash_words(words: Iterable[str]) -> Hashes:
    """The hash of each word, as a batch has it."""
    found = Batch.of([word.encode() for word in words])
    return found.hashes(found.start, found.end)


def stripped(batch: Batch, spans: Spans) -> tuple[Ints, Ints]:
    """Each stretch without the spaces around it; an empty one where there is nothing else."""
    is_space = batch.classes == tables.SPACE
    start, end = spans.start.copy(), spans.end.copy()
    at = np.flatnonzero(start < end)
    while len(at := at[is_space[start[at]]]):  # few lines begin with a space, and fewer with two
        start[at] += 1
        at = at[start[at] < end[at]]
    at = np.flatnonzero(start < end)
    while len(at := at[is_space[end[at] - 1]]):
        end[at] -= 1
    return start, end


def repeated(batch: Batch, spans: Spans) -> NDArray[np.bool_]:
    """(span,) Whether the same bytes stand before it in its document."""
    keys = batch.hashes(spans.start, spans.end) ^ own(len(batch))[spans.document]
    return tables.repeated(keys)


def own(n_documents: int) -> Hashes:
    """A number of its own for each document, so that equal words of two are not counted as repeated."""
    return tables.mix(np.arange(1, n_documents + 1, dtype=np.uint64) << np.uint64(20))


def simple_words(batch: Batch) -> tuple[Spans, Hashes]:
    """Words as they are compared across documents, with their hashes: small letters, a number is a number.

    A, B and C are told from a, b and c in ASCII alone: of É and é the bytes are compared.
    """
    words = batch.words
    first = batch.data[words.start]
    return words, np.where((first >= 48) & (first <= 57), _NUMBER, batch.lower_word_hashes)


_NUMBER = np.uint64(0x2545F4914F6CDD1D)
