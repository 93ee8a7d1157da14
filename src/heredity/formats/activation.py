"""An activated LoRA (aLoRA): its update acts on a text from the last occurrence of its invocation on.

The tokens of the invocation are among those that it changes. Keys, values and states before it are those of
the base. Without an invocation in the prompt the adapter stays off. An answer that repeats the invocation
moves nothing: the prompt decides, as in PEFT's `generate`.

Leaves to others: the files (peft.py), and which tokens of a pass are changed (engines/torch/session.py,
engines/transformers/engine.py, train/models/causal_lm.py).

Source: Greenewald et al. 2025 (2504.12397); the last occurrence as in PEFT 0.21.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch


def find_last(tokens: Sequence[int], part: Sequence[int]) -> int | None:
    """Return where the last occurrence of `part` in `tokens` begins; None if it has none."""
    part, n = tuple(part), len(part)
    for start in range(len(tokens) - n, -1, -1):
        if tuple(tokens[start : start + n]) == part:
            return start
    return None


class Gate(threading.local):
    """Which rows of this thread's pass an activated adapter changes: all of them, but in `only` some."""

    def __init__(self) -> None:
        self._rows: torch.Tensor | None = None
        self._is_shut = False

    @property
    def rows(self) -> torch.Tensor | None:
        """(..., 1) bool, the rows that are changed; None for all."""
        return self._rows

    def add(self, out: torch.Tensor, change: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return `out` plus a change where the gate is open; other rows keep every bit.

        The change is computed for all rows of a pass or for none. A smaller matmul could sum in another
        order, and a row's numbers would depend on its batch. `out` (..., rows, columns) may hold only the
        last of the rows, as a step behind a prompt does.
        """
        if self._is_shut:
            return out
        changed = out + change()
        if self._rows is None:
            return changed
        return torch.where(self._rows[..., -out.shape[-2] :, :], changed, out)

    @contextmanager
    def only(self, rows: torch.Tensor) -> Iterator[None]:
        """Open the gate for these rows (...) bool only, until the end of the block."""
        before = self._rows, self._is_shut
        self._rows, self._is_shut = rows[..., None], not bool(rows.any())
        try:
            yield
        finally:
            self._rows, self._is_shut = before
