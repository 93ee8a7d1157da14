"""Continuous batching: finished rows leave, waiting ones enter at once, the others stay packed in front.

Promises: the width of a step is one of the proven widths, and so is the cache length it reads; a row is never
told apart by its slot.
Leaves to others: the arithmetic (_decoder.py), text (torch.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from heredity.engines.torch.decoder import CELL, CHUNK, Decoder, Prefix, Slots, padded, round_up
from heredity.engines.torch.prefix_cache import Chunks
from heredity.engines.torch.sampling import Sampler, draw_all


@dataclass(slots=True)
class Row:
    """One request under way. `own` is its prompt behind the prefix; `said` grows by a token a step."""

    key: int
    own: tuple[int, ...]
    max_tokens: int
    sampler: Sampler
    said: list[int] = field(default_factory=list)
    stop: str = ""

    @property
    def n_cells(self) -> int:
        """Cache positions it may come to fill, rounded up to a cell."""
        return round_up(len(self.own) + self.max_tokens, CELL)


class Batch:
    """Rows over one prefix. `widths` ascending; `is_over`: whether a row's last token ended its answer."""

    def __init__(
        self,
        decoder: Decoder,
        prefix: Prefix,
        widths: tuple[int, ...],
        is_over: Callable[[Row], bool],
        budget: int,
        chunks: Chunks | None = None,
    ) -> None:
        self._decoder, self._prefix, self._widths, self._is_over = decoder, prefix, widths, is_over
        self._budget = budget  # bytes that the slots may take
        self._chunks = chunks or Chunks(0)
        self._slots: Slots | None = None
        self.rows: list[Row] = []

    def has_room(self, new: Row) -> bool:
        """Whether this row fits in beside those under way; a lone row always does."""
        n_cells = max(row.n_cells for row in (new, *self.rows))
        return not self.rows or len(self.rows) + 1 <= self._width_for(n_cells)

    def admit(self, row: Row) -> None:
        """Prefill a row into the next slot; its last prompt token goes with a step."""
        held = self._slots.capacity if self._slots is not None else 0
        slots = self._fit(len(self.rows) + 1, max(held, round_up(padded(row.own[:-1]), CELL)))
        own, slot = row.own[:-1], len(self.rows)
        known = self._chunks.load(self._prefix, own, slots, slot)
        if known < len(own):
            self._decoder.prefill(self._prefix, slots, slot, own, known)
        if len(own) >= CHUNK:
            self._chunks.keep(self._prefix, own, slots, slot)
        self.rows.append(row)

    def step(self) -> list[Row]:
        """One token for every row; returns those that are finished, already taken out."""
        n = len(self.rows)
        width = round_width(n, self._widths)
        tokens, lengths = torch.zeros(width, dtype=torch.long), torch.zeros(width, dtype=torch.long)
        tokens[:n] = torch.tensor([row.said[-1] if row.said else row.own[-1] for row in self.rows])
        lengths[:n] = torch.tensor([len(row.own) - 1 + len(row.said) for row in self.rows])
        slots = self._fit(n, round_up(int(lengths.max()) + 1, CELL))
        logits = self._decoder.step(self._prefix, slots, tokens, lengths)
        for row, token in zip(self.rows, draw_all(logits, [row.sampler for row in self.rows]), strict=True):
            row.said.append(token)
            if self._is_over(row):
                row.stop = "end"
            elif len(row.said) == row.max_tokens:
                row.stop = "length"
        return self._take_finished(slots)

    def _take_finished(self, slots: Slots) -> list[Row]:
        finished = [row for row in self.rows if row.stop]
        for at in reversed(range(len(self.rows))):
            if self.rows[at].stop:
                last = self.rows.pop()
                if at < len(self.rows):  # the last row moves into the hole
                    slots.move(len(self.rows), at, len(last.own) + len(last.said))
                    self.rows[at] = last
        return finished

    def _width_for(self, n_cells: int) -> int:
        shape = self._decoder.shape
        a_row = (
            2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * n_cells * self._decoder.dtype.itemsize
        )
        fits = [w for w in self._widths if w * a_row <= self._budget]
        return fits[-1] if fits else self._widths[0]

    def _fit(self, n_rows: int, n_cells: int) -> Slots:
        """Slots for so many rows with exactly this capacity: a cache read in part is several times slower."""
        old = self._slots
        if old is not None and old.capacity == n_cells and old.width >= n_rows:
            return old
        width = max(round_width(n_rows, self._widths), old.width if old is not None else 0)
        self._slots = new = self._decoder.slots(width, n_cells)
        if old is not None:
            n_kept = min(old.capacity, n_cells)
            for was, now in zip((*old.keys, *old.values), (*new.keys, *new.values), strict=True):
                now[: len(self.rows), :, :n_kept] = was[: len(self.rows), :, :n_kept]
        return new


def round_width(n: int, widths: tuple[int, ...]) -> int:
    """The least proven width that holds n rows."""
    return next(w for w in widths if w >= n)
