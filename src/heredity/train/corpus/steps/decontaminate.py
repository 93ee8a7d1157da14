"""Documents that hold what a model is to be asked later are dropped: the probes, and evaluation sets.

A document goes where `n_grams` words in a row are also in one of those texts, in small letters and without
symbols; every number counts as the same. A text of fewer words is looked for whole, where it has at least
`least_words`; a shorter one is not looked for, since ordinary sentences hold it by chance: it is counted.

Source: Brown et al. 2020 (2005.14165, appendix C), 13-grams; as datatrove's NGramsDecontFilter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from heredity import tables as rows
from heredity.store import hash_file
from heredity.train.corpus import _tables as tables
from heredity.train.corpus.batch import Batch, Hashes, Mask
from heredity.train.corpus.steps import Context, Filter, Judged
from heredity.train.corpus.steps._words import simple_words

_BITS = 20  # a table of 2^20 marks is asked first: it lies in a core's cache


class Decontaminate(Filter, frozen=True, kw_only=True):
    """sets: files of rows or text whose every text counts. probes: whether the project's own count."""

    probes: bool = True
    sets: tuple[str, ...] = ()
    n_grams: int = 13
    least_words: int = 8

    def check(self) -> None:
        if not 1 <= self.least_words <= self.n_grams:
            raise ValueError("least_words must be at least 1 and at most n_grams")
        if not self.probes and not self.sets:
            raise ValueError("name evaluation sets in `sets`, or leave probes = true")

    def ready(self, context: Context) -> Callable[[Batch], Judged]:
        index = Index(self.texts(context), self.n_grams, self.least_words)
        return lambda batch: Judged([("contaminated", index.holds(batch))])

    def texts(self, context: Context) -> list[str]:
        """Everything that is looked for."""
        found = list(context.unseen) if self.probes else []
        for name in self.sets:
            found += texts_of(context.root / name)
        return found

    def reads(self, context: Context) -> dict[str, str]:
        return {name: hash_file(context.root / name) for name in self.sets}


def texts_of(path: Path) -> list[str]:
    """Every text in a file: of rows all their texts, however deep; of anything else its paragraphs."""
    if path.suffix.lower() in rows.KNOWN or path.is_dir():
        return [text for _, row in rows.rows(path) for text in _inside(row)]
    return rows.text_of(path).split("\n\n")


def _inside(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _inside(each)
    elif isinstance(value, list):
        for each in value:
            yield from _inside(each)


class Index:
    """Hashes of the n-grams of texts, by their number of words."""

    def __init__(self, texts: Sequence[str], n: int, least: int) -> None:
        batch = Batch.of([text.encode() for text in texts])
        words, hashes = simple_words(batch)
        found: dict[int, list[Hashes]] = {}
        self.n_short = 0
        for low, high in zip(words.low.tolist(), words.high.tolist(), strict=True):
            size = min(n, high - low)
            if size < least:
                self.n_short += 1
                continue
            found.setdefault(size, []).append(tables.n_grams(hashes[low:high], size))
        self.hashes = {size: np.unique(np.concatenate(parts)) for size, parts in sorted(found.items())}
        self._marks = {size: _marks(hashes) for size, hashes in self.hashes.items()}

    def holds(self, batch: Batch) -> Mask:
        """(document,) Whether one of the n-grams is in it."""
        words, hashes = simple_words(batch)
        found = np.zeros(len(batch), np.bool_)
        grams, n = hashes, 1
        for size, wanted in self.hashes.items():
            while n < size:
                grams, n = tables.longer(grams, hashes), n + 1
            at = np.flatnonzero(self._marks[size][grams >> np.uint64(64 - _BITS)])
            place = np.minimum(np.searchsorted(wanted, grams[at]), len(wanted) - 1)
            at = at[wanted[place] == grams[at]]
            document = np.searchsorted(words.high, at, "right")
            found[document[at + size <= words.high[document]]] = True
        return found


def _marks(hashes: Hashes) -> Mask:
    marks = np.zeros(1 << _BITS, np.bool_)
    marks[hashes >> np.uint64(64 - _BITS)] = True
    return marks


STEP = Decontaminate
