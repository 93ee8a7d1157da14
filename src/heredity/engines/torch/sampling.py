"""How a row draws its next token: on the processor and in float64, whatever computed the logits.

Promises: equal logits, decoding and seed draw the same tokens.
Leaves to others: the logits (decoder.py), and when an answer ends (session.py).
"""

from __future__ import annotations

import numpy as np
import torch

from heredity.core.records import Decoding
from heredity.engines.torch.constrained import Constraint


class Sampler:
    """Draws the tokens of one row: greedy at temperature 0, else by inverse CDF with its own generator.

    constraint: the tokens that may come next; None: every one.
    """

    def __init__(self, decoding: Decoding, seed: int, constraint: Constraint | None = None) -> None:
        self._decoding, self._seed, self._constraint = decoding, seed, constraint
        self._stream = np.random.Generator(np.random.PCG64(seed)) if decoding.temperature > 0 else None

    def restarted(self) -> Sampler:
        """Return a sampler that draws the same again."""
        constraint = None if self._constraint is None else self._constraint.restarted()
        return Sampler(self._decoding, self._seed, constraint)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is drawn, whatever it is."""
        return self._stream is None and self._constraint is None

    @property
    def is_lost(self) -> bool:
        """Whether the answer cannot go on as its constraint demands."""
        return self._constraint is not None and self._constraint.is_lost

    def draw(self, logits: torch.Tensor) -> int:
        """Draw one token from logits (vocabulary,)."""
        if self._constraint is None:
            return self._drawn(logits)
        token = self._drawn(self._constraint.mask(logits))
        self._constraint.accept(token)
        return token

    def _drawn(self, logits: torch.Tensor) -> int:
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
