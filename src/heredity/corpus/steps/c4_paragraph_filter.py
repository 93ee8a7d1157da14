"""mC4's rule: a page has at least three lines of 200 characters.

Rule and defaults: Xue et al. 2021 (2010.11934), as in datatrove's C4ParagraphFilter.
"""

from __future__ import annotations

from heredity.corpus.steps import Filter
from heredity.corpus.text import Mask, TextBatch


class C4ParagraphFilter(Filter, frozen=True, kw_only=True):
    """min_paragraphs lines of min_paragraph_len characters."""

    min_paragraphs: int = 3
    min_paragraph_len: int = 200

    def verdicts(self, batch: TextBatch) -> list[tuple[str, Mask]]:
        lines = batch.lines
        is_long = batch.n_characters(lines.start, lines.end) >= self.min_paragraph_len
        return [("too_few_paragraphs", lines.per_document(is_long) < self.min_paragraphs)]


STEP = C4ParagraphFilter
