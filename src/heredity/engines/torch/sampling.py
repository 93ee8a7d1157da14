"""Which token is drawn from a row of logits.

Promises: a draw depends on that row's logits, its decoding and its own seed and step, on nothing else.
"""

from __future__ import annotations

import numpy as np
import torch

from heredity.core.records import Decoding


class Sampler:
    """Draws one row's tokens: greedy at temperature 0, else by inverse CDF from the row's own stream."""

    def __init__(self, decoding: Decoding, seed: int) -> None:
        self._decoding = decoding
        self._stream = np.random.Generator(np.random.PCG64(seed)) if decoding.temperature > 0 else None

    @property
    def is_greedy(self) -> bool:
        return self._stream is None

    def draw(self, logits: torch.Tensor) -> int:
        """One token from logits (vocabulary,)."""
        if self._stream is None:
            return int(logits.argmax())
        scaled = (wide := logits.to(torch.float64)) / self._decoding.temperature
        if not torch.isfinite(scaled).all():  # at a temperature next to nothing
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


def draw_all(logits: torch.Tensor, samplers: list[Sampler]) -> list[int]:
    """One token a row, for the first len(samplers) rows of logits (rows, vocabulary)."""
    greedy: list[int] = logits[: len(samplers)].argmax(-1).tolist()
    return [
        token if sampler.is_greedy else sampler.draw(logits[row])
        for row, (token, sampler) in enumerate(zip(greedy, samplers, strict=True))
    ]
