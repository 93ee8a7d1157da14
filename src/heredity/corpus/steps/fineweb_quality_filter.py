"""FineWeb's rules: lines that end like sentences, few short lines, few repeated ones, no bare lists.

Rules and defaults: Penedo et al. 2024 (2406.17557, section 3.6), as in datatrove's FineWebQualityFilter; of
its stop characters those of the larger scripts.
"""

from __future__ import annotations

from heredity.corpus import _tables as tables
from heredity.corpus.steps import Filter
from heredity.corpus.steps._words import repeated, share, stripped
from heredity.corpus.text import Mask, TextBatch

_STOPS = ("!", ".", "?", "։", "؟", "۔", "।", "॥", "።", "។", "‼", "⁇", "⁈", "⁉", "。", "．", "！", "？", "｡")


class FineWebQualityFilter(Filter, frozen=True, kw_only=True):
    """line_punct_exclude_zero keeps documents in which no line ends like a sentence."""

    line_punct_thr: float = 0.12
    line_punct_exclude_zero: bool = False
    stop_chars: tuple[str, ...] = _STOPS
    short_line_thr: float = 0.67
    short_line_length: int = 30
    char_duplicates_ratio: float = 0.01
    new_line_ratio: float = 0.3

    def verdicts(self, batch: TextBatch) -> list[tuple[str, Mask]]:
        all_lines = batch.lines
        first, last = stripped(batch)
        lines = batch.spans(all_lines.start[last > first], all_lines.end[last > first])
        n_lines = lines.n_each
        ends = tables.ends_with(
            batch.data, lines.start, lines.end, tuple(c.encode() for c in self.stop_chars)
        )
        ended = share(lines.per_document(ends), n_lines)
        length = batch.n_characters(lines.start, lines.end)
        n_feeds = batch.count(batch.data == 10)
        again = lines.per_document(repeated(batch, lines) * length)
        bad_ends = ended < self.line_punct_thr
        if self.line_punct_exclude_zero:
            bad_ends &= ended > 0
        short = share(lines.per_document(length <= self.short_line_length), n_lines)
        return [
            ("empty", n_lines == 0),
            ("line_punct_ratio", bad_ends),
            ("short_line_ratio", short > self.short_line_thr),
            ("char_dup_ratio", share(again, batch.characters - n_feeds) > self.char_duplicates_ratio),
            ("list_ratio", n_feeds > self.new_line_ratio * batch.tokens.n_each),
        ]  # fmt: skip


STEP = FineWebQualityFilter
