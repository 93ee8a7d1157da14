"""How a row draws its next token: on the processor and in float64, whatever computed the logits.

Promises: equal logits, decoding and seed draw the same tokens.
Leaves to others: the logits (decoder.py), and when an answer ends (batch.py).
"""

from __future__ import annotations

import numpy as np
import torch

from heredity.core.records import Decoding


class Sampler:
    """Draws the tokens of one row: greedy at temperature 0, else by inverse CDF with its own generator."""

    def __init__(self, decoding: Decoding, seed: int) -> None:
        self._decoding, self._seed = decoding, seed
        self._stream = np.random.Generator(np.random.PCG64(seed)) if decoding.temperature > 0 else None

    def restarted(self) -> Sampler:
        """Return a sampler that draws the same again."""
        return Sampler(self._decoding, self._seed)

    @property
    def is_greedy(self) -> bool:
        return self._stream is None

    def draw(self, logits: torch.Tensor) -> int:
        """Draw one token from logits (vocabulary,)."""
        if self._stream is None:
            return int(logits.argmax())
        scaled = (wide := logits.to(torch.float64)) / self._decoding.temperature
        if not torch.isfinite(scaled).all():  # at a temperature close to zero
            scaled = (wide - wide.max()) / self._decoding.temperature
        p = torch.softmax(scaled, dim=-1)
        order = None
        if self._decoding.top_p < 1:
            p, order = p.sort(descending=True, stable=True)
            before = p.cumsum(0) - p
            p = p[: max(1, int((before < self._decoding.top_p).sum()))]
        total = p.cumsum(0)
        u = self._stream.random() * float(total[-1])
        at = min(int(torch.searchsorted(total, torch.tensor(u, dtype=torch.float64), right=True)), len(p) - 1)
        return at if order is None else int(order[at])
