"""Gopher's repetition rules: repeated lines, paragraphs and word n-grams.

Rules and defaults: Rae et al. 2021 (2112.11446, table A1), as in datatrove's GopherRepetitionFilter. The
characters of the most frequent n-gram include its spaces; those of repeated, non-overlapping n-grams do
not.

Most documents repeat little. A repeated n-gram consists of repeated shorter ones, so that few must be
compared. The share of text that repeated 5-grams cover bounds that of longer ones. n-grams are counted one
by one only if this bound exceeds a limit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import BadArgument
from heredity.corpus import _tables as tables
from heredity.corpus.steps import Filter
from heredity.corpus.steps._words import own, repeated, share
from heredity.corpus.text import Hashes, Ints, Mask, Spans, TextBatch

Limits = tuple[tuple[int, float], ...]


class GopherRepetitionFilter(Filter, frozen=True, kw_only=True):
    """A limit of 0, or an empty list of limits, disables a rule."""

    dup_line_frac: float = 0.3
    dup_para_frac: float = 0.3
    dup_line_char_frac: float = 0.2
    dup_para_char_frac: float = 0.2
    top_n_grams: Limits = ((2, 0.2), (3, 0.18), (4, 0.16))
    dup_n_grams: Limits = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))

    def check(self) -> None:
        if any(n < 2 for n, _ in (*self.top_n_grams, *self.dup_n_grams)):
            raise BadArgument("an n-gram has at least 2 words")

    def verdicts(self, batch: TextBatch) -> list[tuple[str, Mask]]:
        verdicts = _repeats(batch, _paragraphs(batch), "para", self.dup_para_frac, self.dup_para_char_frac)
        verdicts += _repeats(batch, batch.full_lines, "line", self.dup_line_frac, self.dup_line_char_frac)
        if not (sizes := [n for n, _ in (*self.top_n_grams, *self.dup_n_grams)]):
            return verdicts
        grams = _Grams(batch, min(sizes))
        for n, limit in sorted(self.top_n_grams):
            frequent = share(grams.top(n), batch.characters)
            verdicts.append((f"top_{n}_gram", frequent > (limit or np.inf)))
        limits = [limit for _, limit in self.dup_n_grams if limit]
        if limits:
            bound = share(grams.covered(min(n for n, _ in self.dup_n_grams)), batch.characters)
            suspects = (bound > min(limits)) & ~np.any([holds for _, holds in verdicts], axis=0)
            verdicts += self._count(grams, suspects, bound * batch.characters)
        return verdicts

    def _count(self, grams: _Grams, suspects: Mask, bound: NDArray[np.float64]) -> list[tuple[str, Mask]]:
        """Apply the rules one by one; a document that one of them drops is not checked further."""
        verdicts = []
        for n, limit in self.dup_n_grams:
            holds, most = np.zeros(len(suspects), np.bool_), limit * grams.batch.characters
            if limit and (may := suspects & (bound > most)).any():
                for i in np.flatnonzero(may & (grams.covered(n) > most)).tolist():
                    holds[i] = grams.n_repeated(i, n) > most[i]
                suspects = suspects & ~holds
            verdicts.append((f"duplicated_{n}_n_grams", holds))
        return verdicts


def _repeats(
    batch: TextBatch, spans: Spans, name: str, most: float, most_characters: float
) -> list[tuple[str, Mask]]:
    again = repeated(batch, spans)
    n_characters = spans.per_document(again * batch.n_characters(spans.start, spans.end))
    return [
        (f"dup_{name}_frac", share(spans.per_document(again), spans.n_each) > (most or np.inf)),
        (f"dup_{name}_char_frac", share(n_characters, batch.characters) > (most_characters or np.inf)),
    ]


def _paragraphs(batch: TextBatch) -> Spans:
    """Paragraphs: consecutive full lines, separated by empty ones."""
    lines = batch.full_lines
    if not len(lines):
        return lines
    starts = np.ones(len(lines), np.bool_)
    starts[1:] = lines.start[1:] > lines.end[:-1] + 1
    starts[lines.low[lines.n_each > 0]] = True  # of the first line of a document
    first = np.flatnonzero(starts)
    last = np.append(first[1:], len(lines)) - 1
    start = lines.start[first]
    low = np.searchsorted(start, batch.start)
    return Spans(start, lines.end[last], low, np.searchsorted(start, batch.end + 1))


class _Grams:
    """The repeated n-grams of a batch.

    Word hashes differ by document, so that n-grams of different documents, or across a boundary, never match.
    """

    def __init__(self, batch: TextBatch, least: int) -> None:
        self.batch, self.tokens, self._least = batch, batch.tokens, least
        self._hashes = batch.token_hashes ^ np.repeat(own(len(batch)), self.tokens.n_each)
        self._lengths = batch.token_lengths
        self._sums = np.concatenate(([0], np.cumsum(self._lengths)))
        self._shortest = tables.n_grams(self._hashes, least)
        self._twice = np.ones(len(self._shortest), np.bool_)
        keys, place = self._sorted(least)
        same = np.flatnonzero(keys[1:] == keys[:-1])
        self._twice = np.zeros(len(self._shortest), np.bool_)
        self._twice[place.take(same)] = self._twice[place.take(same + 1)] = True

    def _sorted(self, n: int) -> tuple[Hashes, Ints]:
        """The sorted keys of n-grams that may be repeated, and their places; equal keys in order of place.

        A key keeps the bits that the place does not need: 48 of a batch of 60,000 words.
        """
        may = self._twice[: max(0, len(self._hashes) - n + 1)]
        for k in range(1, n - self._least + 1):
            may = may & self._twice[k : k + len(may)]
        at = np.flatnonzero(may)
        grams = self._shortest[at]
        for k in range(self._least, n):
            grams = tables.followed(grams, self._hashes[at + k])
        bits = np.uint64(max(1, len(self._hashes)).bit_length())
        keys = np.sort((grams >> bits << bits) | at.astype(np.uint64))
        return keys >> bits, (keys & np.uint64((1 << int(bits)) - 1)).astype(np.int64)

    def top(self, n: int) -> Ints:
        """(document,) Characters of its most frequent n-gram; the first if there are several."""
        size = max(0, len(self._hashes) - n + 1)
        keys, place = self._sorted(n)
        first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
        count = np.diff(np.append(first, len(keys)))
        often = count > 1
        place, count = place[first[often]], count[often]
        document = np.searchsorted(self.tokens.high, place, "right")
        # One number orders by count, then by the earlier place.
        shift = size.bit_length()
        best = np.where(self.tokens.n_each >= n, (1 << shift) + size - self.tokens.low, 0)
        np.maximum.at(best, document, (count << shift) + size - place)
        at = np.where(best > 0, size - (best & ((1 << shift) - 1)), 0)
        characters = (
            self._sums[np.minimum(at + n, len(self._lengths))] - self._sums[at] + n - 1
        )  # with spaces
        ints: Ints = (best >> shift) * characters
        return ints

    def covered(self, n: int) -> Ints:
        """(document,) Characters of the words in an n-gram that occurred earlier."""
        keys, place = self._sorted(n)
        again = place[1:][keys[1:] == keys[:-1]]
        if not len(again):
            return np.zeros(len(self.batch), np.int64)
        edge = np.zeros(len(self._lengths) + 1, np.int64)
        np.add.at(edge, again, 1)
        np.subtract.at(edge, again + n, 1)
        return self.tokens.per_document(self._lengths * (np.cumsum(edge[:-1]) > 0))

    def n_repeated(self, document: int, n: int) -> int:
        """Characters of a document's n-grams that occurred earlier, without spaces, each counted once."""
        low, high = int(self.tokens.low[document]), int(self.tokens.high[document])
        hashes = tables.n_grams(self._hashes[low:high], n).tolist()
        seen: set[int] = set()
        total = at = 0
        while at < len(hashes):
            if hashes[at] in seen:
                total += int(self._sums[low + at + n] - self._sums[low + at])
                at += n
            else:
                seen.add(hashes[at])
                at += 1
        return total


STEP = GopherRepetitionFilter
