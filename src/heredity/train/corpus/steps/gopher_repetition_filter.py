"""Gopher's rules of repetition: lines, paragraphs and n-grams of words that come again and again.

Rules and defaults: Rae et al. 2021 (2112.11446, table A1), as in datatrove's GopherRepetitionFilter: the
most frequent n-gram's characters with the spaces in it; of repeated n-grams that do not overlap, without.

Most documents repeat little. What five words in a row that come again cover is a bound on what longer ones
can; only where the bound is above a limit are the n-grams counted one by one.
"""

from __future__ import annotations

import numpy as np

from heredity.train.corpus import _tables as tables
from heredity.train.corpus.batch import Batch, Hashes, Ints, Mask, Spans
from heredity.train.corpus.steps import Filter
from heredity.train.corpus.steps._words import own, repeated, share

Limits = tuple[tuple[int, float], ...]


class GopherRepetitionFilter(Filter, frozen=True, kw_only=True):
    """A limit of 0, or an empty list of limits, turns a rule off."""

    dup_line_frac: float = 0.3
    dup_para_frac: float = 0.3
    dup_line_char_frac: float = 0.2
    dup_para_char_frac: float = 0.2
    top_n_grams: Limits = ((2, 0.2), (3, 0.18), (4, 0.16))
    dup_n_grams: Limits = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))

    def check(self) -> None:
        if any(n < 2 for n, _ in (*self.top_n_grams, *self.dup_n_grams)):
            raise ValueError("an n-gram has at least 2 words")

    def verdicts(self, batch: Batch) -> list[tuple[str, Mask]]:
        found = _repeats(batch, _paragraphs(batch), "para", self.dup_para_frac, self.dup_para_char_frac)
        found += _repeats(batch, batch.full_lines, "line", self.dup_line_frac, self.dup_line_char_frac)
        grams = _Grams(batch)
        for n, limit in sorted(self.top_n_grams):
            frequent = share(grams.top(n, limit), batch.characters)
            found.append((f"top_{n}_gram", frequent > (limit or np.inf)))
        limits = [limit for _, limit in self.dup_n_grams if limit]
        if limits:
            bound = share(grams.covered(min(n for n, _ in self.dup_n_grams)), batch.characters)
            suspects = (bound > min(limits)) & ~np.any([holds for _, holds in found], axis=0)
            found += self._count(grams, np.flatnonzero(suspects).tolist())
        return found

    def _count(self, grams: _Grams, suspects: list[int]) -> list[tuple[str, Mask]]:
        """The rules one by one over these documents; the first that holds is enough."""
        n_documents, characters = len(grams.batch), grams.batch.characters
        found = [(f"duplicated_{n}_n_grams", np.zeros(n_documents, np.bool_)) for n, _ in self.dup_n_grams]
        for i in suspects:
            for (n, limit), (_, holds) in zip(self.dup_n_grams, found, strict=True):
                if limit and grams.n_repeated(i, n) > limit * characters[i]:
                    holds[i] = True
                    break
        return found


def _repeats(
    batch: Batch, spans: Spans, name: str, most: float, most_characters: float
) -> list[tuple[str, Mask]]:
    again = repeated(batch, spans)
    n_characters = spans.per_document(again * batch.n_characters(spans.start, spans.end))
    return [
        (f"dup_{name}_frac", share(spans.per_document(again), spans.n_each) > (most or np.inf)),
        (f"dup_{name}_char_frac", share(n_characters, batch.characters) > (most_characters or np.inf)),
    ]


def _paragraphs(batch: Batch) -> Spans:
    """Full lines that follow one another; an empty line or more lies between two."""
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
    """The n-grams of a batch. Each document's words have hashes of its own, so that no n-gram of one is equal
    to one of another, and one that reaches from one into the next is equal to none at all."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.tokens = batch, batch.tokens
        self._hashes = batch.token_hashes ^ np.repeat(own(len(batch)), self.tokens.n_each)
        self._lengths = batch.token_lengths
        self._made: dict[int, Hashes] = {1: self._hashes}
        self._sums = np.concatenate(([0], np.cumsum(self._lengths)))
        self._runs: tuple[int, Ints, Ints, Ints] | None = None  # of the shortest: n, whose, how often, length

    def _of(self, n: int) -> Hashes:
        if n not in self._made:
            self._made[n] = tables.longer(self._of(n - 1), self._hashes)
        return self._made[n]

    def _sorted(self, n: int) -> tuple[Hashes, Ints]:
        """Keys of the n-grams in order, and the place of each; of equal ones the earlier first.

        A key keeps the bits that the place does not need: 49 of a batch of 30,000 words.
        """
        grams = self._of(n)
        bits = np.uint64(max(1, len(grams)).bit_length())
        keys = np.sort((grams >> bits << bits) | np.arange(len(grams), dtype=np.uint64))
        return keys >> bits, (keys & np.uint64((1 << int(bits)) - 1)).astype(np.int64)

    def top(self, n: int, limit: float) -> Ints:
        """For each document the characters of its most frequent n-gram, of equally frequent ones the first;
        0 for all where a shorter n-gram says that no document comes near the limit."""
        if self._runs is not None and not self._may_reach(n, limit):
            return np.zeros(len(self.batch), np.int64)
        count, at = self._most_frequent(n)
        found: Ints = count * self._characters(at, n)
        return found

    def _characters(self, at: Ints, n: int) -> Ints:
        """Of the n-grams at these tokens, with the spaces in them."""
        found: Ints = self._sums[np.minimum(at + n, len(self._lengths))] - self._sums[at] + n - 1
        return found

    def _may_reach(self, n: int, limit: float) -> bool:
        """An n-gram is not more frequent than the shorter one that it begins with, and not longer than that
        with the longest of words behind it."""
        assert self._runs is not None
        shorter, document, count, characters = self._runs
        longest = np.zeros(len(self.batch), np.int64)
        has = self.tokens.n_each > 0
        if has.any():
            longest[has] = np.maximum.reduceat(self._lengths, self.tokens.low[has])
        most = n * (longest + 1)  # of an n-gram that is there once
        np.maximum.at(most, document, count * (characters + (n - shorter) * (longest[document] + 1)))
        return bool((most > limit * self.batch.characters).any())

    def _most_frequent(self, n: int) -> tuple[Ints, Ints]:
        """(document,) How often, and at which token first; 0 where it has no n-gram."""
        size = len(self._of(n))
        keys, place = self._sorted(n)
        first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
        count = np.diff(np.append(first, len(keys)))
        often = count > 1
        place, count = place[first[often]], count[often]
        document = np.searchsorted(self.tokens.high, place, "right")
        if self._runs is None:
            self._runs = (n, document, count, self._characters(place, n))
        # By how often, then the earlier: the largest of one number says both.
        shift = size.bit_length()
        best = np.where(self.tokens.n_each >= n, (1 << shift) + size - self.tokens.low, 0)
        np.maximum.at(best, document, (count << shift) + size - place)
        return best >> shift, np.where(best > 0, size - (best & ((1 << shift) - 1)), 0)

    def covered(self, n: int) -> Ints:
        """For each document the characters of the words that lie in an n-gram which stood before."""
        keys, place = self._sorted(n)
        again = place[1:][keys[1:] == keys[:-1]]
        edge = np.zeros(len(self._lengths) + 1, np.int64)
        np.add.at(edge, again, 1)
        np.subtract.at(edge, again + n, 1)
        return self.tokens.per_document(self._lengths * (np.cumsum(edge[:-1]) > 0))

    def n_repeated(self, document: int, n: int) -> int:
        """Characters of a document's n-grams that stood before, without spaces, none counted twice."""
        low, high = int(self.tokens.low[document]), int(self.tokens.high[document])
        hashes = self._of(n)[low : max(low, high - n + 1)].tolist()
        seen: set[int] = set()
        found = at = 0
        while at < len(hashes):
            if hashes[at] in seen:
                found += int(self._sums[low + at + n] - self._sums[low + at])
                at += n
            else:
                seen.add(hashes[at])
                at += 1
        return found


STEP = GopherRepetitionFilter
