"""Drop documents that contain texts of the probes or of evaluation sets.

A document is dropped if it shares `n_grams` consecutive words with one of those texts. Words are compared
in lower case, without symbols, and every number counts as the same. A shorter text is searched for as a
whole if it has at least `least_words` words; ordinary sentences contain even shorter ones by chance.

Source: Brown et al. 2020 (2005.14165, appendix C), 13-grams; as datatrove's NGramsDecontFilter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from heredity.core import readers as rows
from heredity.core.errors import BadArgument
from heredity.corpus import _tables as tables
from heredity.corpus.sources import input_of
from heredity.corpus.steps import Context, Filter, Judged
from heredity.corpus.steps._words import simple_words
from heredity.corpus.text import Hashes, Mask, TextBatch

_BITS = 20  # a table of 2^20 marks is checked first, because it fits into a core's cache
_SHIFT = np.uint64(64 - _BITS)


class Decontaminate(Filter, frozen=True, kw_only=True):
    """sets: files of rows or text, of which every text counts. probes: whether heredity's probes count."""

    probes: bool = True
    sets: tuple[str, ...] = ()
    n_grams: int = 13
    least_words: int = 8

    def check(self) -> None:
        if not 1 <= self.least_words <= self.n_grams:
            raise BadArgument("least_words must be at least 1 and at most n_grams", key="least_words")
        if not self.probes and not self.sets:
            raise BadArgument("name evaluation sets in `sets`, or leave probes = true", key="sets")

    def ready(self, context: Context) -> Callable[[TextBatch], Judged]:
        index = Index(self.texts(context), self.n_grams, self.least_words)
        return lambda batch: Judged([("contaminated", index.holds(batch))])

    def texts(self, context: Context) -> list[str]:
        """All texts to search for."""
        texts = list(context.unseen) if self.probes else []
        for name in self.sets:
            texts += texts_of(context.root / name)
        return texts

    def reads(self, context: Context) -> dict[str, str]:
        return {name: input_of(str(context.root / name), name).sha256 for name in self.sets}


def texts_of(path: Path) -> list[str]:
    """Every text in a file: all strings of its rows, or else its paragraphs."""
    if path.suffix.lower() in rows.KNOWN or path.is_dir():
        return [text for _, row in rows.rows(path) for text in _texts_in(row)]
    return rows.text_of(path).split("\n\n")


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts_in(each)


class Index:
    """Hashes of the n-grams of texts, by their number of words, and of the first words of each n-gram.

    The whole n-gram is compared only if its first words are found, so that one pass over a document serves
    all lengths.
    """

    def __init__(self, texts: Sequence[str], n: int, least: int) -> None:
        batch = TextBatch.from_documents([text.encode() for text in texts])
        words, hashes = batch.words, simple_words(batch, batch.lower_word_hashes)
        size = np.minimum(words.n_each, n)
        self._n_doublings = least.bit_length() - 1
        first = self._first_words(hashes)
        self._wanted: dict[int, Hashes] = {}
        heads = [np.zeros(0, np.uint64)]
        for each in np.unique(size[size >= least]).tolist():
            documents = np.flatnonzero(size == each)
            parts = [np.arange(words.low[i], words.high[i] - each + 1) for i in documents]
            at = np.concatenate([np.zeros(0, np.int64), *parts])
            self._wanted[each] = np.unique(tables.n_grams(hashes, each)[at])
            heads.append(first[at])
        self._heads = np.unique(np.concatenate(heads))
        self._marks = np.zeros(1 << _BITS, np.bool_)
        self._marks[self._heads >> _SHIFT] = True

    def _first_words(self, hashes: Hashes) -> Hashes:
        """Index the first words of each n-gram: the largest power of two up to the shortest n-gram."""
        hashed = hashes
        for k in range(self._n_doublings):
            hashed = tables.doubled(hashed, 1 << k)
        return hashed

    def holds(self, batch: TextBatch) -> Mask:
        """(document,) Whether it contains one of the n-grams."""
        words, hashes = batch.words, simple_words(batch, batch.lower_word_hashes)
        first = self._first_words(hashes)
        at = np.flatnonzero(self._marks.take((first >> _SHIFT).view(np.int64)))
        at = at[_is_in(first[at], self._heads)]
        document = np.searchsorted(words.high, at, "right")
        mask = np.zeros(len(batch), np.bool_)
        for place, owner in zip(at.tolist(), document.tolist(), strict=True):
            mask[owner] = mask[owner] or self._is_whole(hashes[place : words.high[owner]])
        return mask

    def _is_whole(self, hashes: Hashes) -> bool:
        """Whether these words begin with an n-gram."""
        return any(
            len(hashes) >= n and bool(_is_in(tables.n_grams(hashes[:n], n), wanted)[0])
            for n, wanted in self._wanted.items()
        )


def _is_in(hashes: Hashes, ordered: Hashes) -> Mask:
    mask: Mask = ordered[np.minimum(np.searchsorted(ordered, hashes), max(0, len(ordered) - 1))] == hashes
    return mask


STEP = Decontaminate
