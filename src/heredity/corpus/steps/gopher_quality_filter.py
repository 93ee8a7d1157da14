"""Gopher's quality rules: length, mean word length, few symbols, bullets and ellipses, stop words.

Rules and defaults: Rae et al. 2021 (2112.11446, appendix A), settings as of datatrove's GopherQualityFilter.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from heredity.corpus import _tables as tables
from heredity.corpus.steps import Filter
from heredity.corpus.steps._words import hash_words, share, stripped
from heredity.corpus.text import Hashes, Ints, Mask, TextBatch

_UPPER = np.uint64(48)
_ELLIPSIS = (b"...", "…".encode())


class GopherQualityFilter(Filter, frozen=True, kw_only=True):
    """A setting of 0 disables its rule."""

    min_doc_words: int = 50
    max_doc_words: int = 100_000
    min_avg_word_length: float = 3
    max_avg_word_length: float = 10
    max_symbol_word_ratio: float = 0.1
    max_bullet_lines_ratio: float = 0.9
    max_ellipsis_lines_ratio: float = 0.3
    max_non_alpha_words_ratio: float = 0.8  # datatrove's name: the least share of tokens with a letter
    min_stop_words: int = 2
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")

    def verdicts(self, batch: TextBatch) -> list[tuple[str, Mask]]:
        tokens, words = batch.tokens, batch.words
        n_tokens, n_words = tokens.n_each, words.n_each
        length = share(words.per_document(batch.token_lengths.take(batch.word_places)), n_words)
        verdicts = [
            ("gopher_short_doc", n_words < self.min_doc_words),
            ("gopher_long_doc", n_words > (self.max_doc_words or np.inf)),
            ("gopher_below_avg_threshold", length < self.min_avg_word_length),
            ("gopher_above_avg_threshold", length > (self.max_avg_word_length or np.inf)),
        ]
        most = self.max_symbol_word_ratio or np.inf
        verdicts += [
            ("gopher_too_many_hashes", share(batch.count(batch.data == ord("#")), n_tokens) > most),
            ("gopher_too_many_ellipsis", share(_n_ellipses(batch), n_tokens) > most),
        ]
        verdicts += self._lines(batch)
        lettered = tokens.per_document(_has_letter(batch))
        verdicts.append(
            ("gopher_below_alpha_threshold", share(lettered, n_tokens) < self.max_non_alpha_words_ratio)
        )
        if self.min_stop_words:
            n_stop = np.zeros(len(batch), np.int64)
            for at in _places(batch.word_hashes, hash_words(self.stop_words)):
                n_stop += np.searchsorted(at, words.high) > np.searchsorted(at, words.low)
            verdicts.append(("gopher_enough_stop_words", n_stop < self.min_stop_words))
        return verdicts

    def _lines(self, batch: TextBatch) -> list[tuple[str, Mask]]:
        lines = batch.lines
        first, last = stripped(batch)
        starts = np.zeros(len(lines), np.bool_)
        full = first < last
        starts[full] = batch.data[first[full]] == ord("-")
        bullet = np.frombuffer("•".encode(), np.uint8)
        at = np.flatnonzero(full & (last - first >= 3))
        starts[at] |= (batch.data[first[at][:, None] + np.arange(3)] == bullet).all(axis=1)
        ends = tables.ends_with(batch.data, first, last, _ELLIPSIS)
        # As in Python's splitlines, an empty line at the very end does not count.
        n_lines = np.maximum(lines.n_each - (batch.data[np.maximum(batch.end - 1, 0)] == 10), 1)
        bullets, ellipses = (share(lines.per_document(each), n_lines) for each in (starts, ends))
        return [
            ("gopher_too_many_bullets", bullets > (self.max_bullet_lines_ratio or np.inf)),
            ("gopher_too_many_end_ellipsis", ellipses > (self.max_ellipsis_lines_ratio or np.inf)),
        ]


def _places(hashes: Hashes, wanted: Hashes) -> Iterator[Ints]:
    """The places of each wanted hash. A table of upper bits first excludes most others."""
    marks = np.zeros(1 << 16, np.bool_)
    marks[wanted >> _UPPER] = True
    at = np.flatnonzero(marks.take((hashes >> _UPPER).view(np.int64)))
    held = hashes[at]
    return (at[held == each] for each in wanted)


def _n_ellipses(batch: TextBatch) -> Ints:
    """Count ellipses as str.count does: three points, not overlapping, and the single character."""
    counts = np.zeros(len(batch), np.int64)
    if b"..." in batch.raw:
        is_point = batch.data == ord(".")
        mask = np.zeros(len(batch.data), np.bool_)
        mask[2:] = is_point[2:] & is_point[1:-1] & is_point[:-2]
        for i in batch.documents_with(mask):
            counts[i] += batch[i].count(b"...")
    if not batch.is_ascii and (mark := _ELLIPSIS[1]) in batch.raw:
        for i in range(len(batch)):
            counts[i] += batch[i].count(mark)
    return counts


def _has_letter(batch: TextBatch) -> Mask:
    """(token,) Whether it contains a letter."""
    tokens = batch.tokens
    mask: Mask = tables.IS_ALPHA[batch.data[tokens.start]] & batch.is_word
    # Nearly every word begins with a letter; the others are searched up to the next token.
    if len(rest := np.flatnonzero(batch.is_word & ~mask)):
        following = np.append(tokens.start, len(batch.data) - 1)[rest + 1]
        edges = np.stack((tokens.start[rest], following), axis=1).ravel()
        mask[rest] = np.maximum.reduceat(tables.is_alpha(batch.raw), edges)[::2]
    return mask


STEP = GopherQualityFilter
