"""C4's rules: keep lines that end like sentences; drop pages of too few sentences, code or placeholder
text.

Rules and defaults: Raffel et al. 2020 (JMLR 21, section 2.2), settings as of datatrove's C4QualityFilter. A
sentence ends at . ! or ? before a space if no small letter follows, or at the end of a line.
"""

from __future__ import annotations

import re

import numpy as np

from heredity.corpus import _tables as tables
from heredity.corpus.steps import DocumentTransform, TransformedBatch
from heredity.corpus.steps._words import stripped
from heredity.corpus.text import Ints, Mask, Spans, TextBatch

_CITATION = re.compile(rb"\[\d*]|\[edit]|\[citation needed]")
_END = (b".", b"?", b"!", b'"', b"'")
_POLICY = (
    b"terms of use", b"privacy policy", b"cookie policy", b"uses cookies", b"use of cookies", b"use cookies",
)  # fmt: skip


class C4QualityFilter(DocumentTransform, frozen=True, kw_only=True):
    """Rewrite each document to the lines that it keeps. -1 disables the rule of a number."""

    remove_citations: bool = True
    filter_no_terminal_punct: bool = True
    min_num_sentences: int = 5
    min_words_per_line: int = 3
    max_word_length: int = 1000
    filter_lorem_ipsum: bool = True
    filter_javascript: bool = True
    filter_curly_bracket: bool = True
    filter_policy: bool = True

    def write(self, batch: TextBatch, alive: Mask) -> TransformedBatch:
        n_before = batch.lengths
        if self.remove_citations and b"[" in batch.raw:
            having = batch.documents_with(batch.data == ord("["))
            batch = batch.replace({i: _CITATION.sub(b"", batch[i]) for i in having})
        start, end = stripped(batch)
        stays = self._ends_well(batch, start, end) & self._has_words(batch, start, end)
        lorem = stays & _holds(batch, (b"lorem ipsum",), self.filter_lorem_ipsum)
        stays &= ~_holds(batch, (b"javascript",), self.filter_javascript)
        curly = stays & _holds(batch, (b"{",), self.filter_curly_bracket)
        words = {word: word in batch.lower for word in (b"use", b"policy", b"cookies")}
        stays &= ~_holds(
            batch,
            tuple(text for text in _POLICY if all(words.get(word, True) for word in text.split())),
            self.filter_policy,
        )
        lines = batch.lines
        data = batch.data
        is_stop = (data == 46) | (data == 33) | (data == 63)
        at = np.flatnonzero(is_stop[:-2] & (batch.classes[1:-1] == tables.SPACE))
        after = data[at + 2]
        at = at[~((after >= 97) & (after <= 122)) & (batch.classes[at + 2] != tables.SPACE)]
        # The last sentence of a line ends with the line, whatever its last character.
        last = np.maximum(end - 1, start)
        n_sentences = lines.per_document(
            ((np.searchsorted(at, last) - np.searchsorted(at, start) + 1) * (end > start)) * stays
        )
        written = _write(batch, start, end, stays)
        dropped = [
            ("lorem_ipsum", lines.per_document(lorem) > 0),
            ("curly_bracket", lines.per_document(curly) > 0),
            ("too_few_sentences", n_sentences < self.min_num_sentences),
        ]
        return TransformedBatch(
            written, int(np.count_nonzero((written.lengths != n_before) & alive)), dropped
        )

    def _ends_well(self, batch: TextBatch, start: Ints, end: Ints) -> Mask:
        if not self.filter_no_terminal_punct:
            return np.ones(len(start), np.bool_)
        ends = tables.ends_with(batch.data, start, end, _END)
        at = np.maximum(end, 3)
        is_point = batch.data == ord(".")
        mask: Mask = is_point[at - 1] & is_point[at - 2] & is_point[at - 3] & (end - start >= 3)
        return ends & ~mask

    def _has_words(self, batch: TextBatch, start: Ints, end: Ints) -> Mask:
        begins = batch.classes != tables.SPACE
        begins[1:] &= batch.classes[:-1] == tables.SPACE
        n_words = np.add.reduceat(begins, batch.lines.start, dtype=np.int64)
        stays: Mask = n_words >= self.min_words_per_line
        for i in np.flatnonzero(end - start > self.max_word_length) if self.max_word_length >= 0 else ():
            line = batch.raw[start[i] : end[i]].decode()
            stays[i] &= max(map(len, line.split())) <= self.max_word_length
        return stays


def _holds(batch: TextBatch, texts: tuple[bytes, ...], is_on: bool) -> Mask:
    """(line,) Whether one of the texts is in it, in any case."""
    lines: Spans = batch.lines
    mask = np.zeros(len(lines), np.bool_)
    for text in texts if is_on else ():
        at = batch.lower.find(text)
        while at >= 0:
            line = int(np.searchsorted(lines.start, at, "right")) - 1
            mask[line] = True
            at = batch.lower.find(text, int(lines.end[line]))
    return mask


def _write(batch: TextBatch, start: Ints, end: Ints, stays: Mask) -> TextBatch:
    """The lines that are kept, without the spaces around them."""
    n_each = batch.lines.per_document((end - start + 1) * stays)
    # A document without lines is only its line feed.
    low = np.concatenate((start[stays], batch.end[n_each == 0]))
    high = np.concatenate((end[stays], batch.end[n_each == 0]))
    order = np.argsort(low, kind="stable")
    low, high = low[order], high[order]
    # Consecutive lines are copied at once.
    is_cut = low[1:] != high[:-1] + 1
    firsts, lasts = low[np.append(True, is_cut)], high[np.append(is_cut, True)]
    pieces = [batch.raw[a:b] for a, b in zip(firsts.tolist(), lasts.tolist(), strict=True)]
    return TextBatch(b"\n".join([*pieces, b""]), np.maximum(n_each - 1, 0))


STEP = C4QualityFilter
