"""A mixture of experts: a router sends each row to a few of many MLPs, whose outputs are summed.

Other rows of a batch decide how many rows an expert gets, and a matmul of another number of rows may sum in
another order. So the rows of an expert are multiplied in tiles of one size, filled up with zeros.
`steady_tile` compares the bits of a row at every place of a tile, and takes a size at which they are equal.

Promises: a row's numbers depend only on that row, as far as the router's matmul gives it the same logits.
Where logits are equal, torch's topk chooses, as in transformers.
Leaves to others: reading the matrices (weights.py), and the widths at which the router's logits agree
(torch/autotune.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from heredity.formats.int8 import Linear

TILES = (8, 4, 2, 1)  # rows; more than 8 waste work where few rows share an expert
_STEADY: dict[tuple[int, int, str, torch.dtype, torch.device], int] = {}


@dataclass(frozen=True, slots=True)
class Routing:
    """How experts are chosen and weighted.

    is_normed: the weights of the chosen experts sum to 1. is_sigmoid: a weight is the sigmoid of the expert's
    own logit and scales the expert's input; otherwise it is its softmax and scales the output.
    """

    n_chosen: int
    is_normed: bool = False
    is_sigmoid: bool = False

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights and experts of each row: (rows, n_chosen) each. logits: (rows, experts)."""
        if self.is_sigmoid:
            best, chosen = torch.topk(logits, self.n_chosen, dim=-1)
            return torch.sigmoid(best.float()).to(logits.dtype), chosen
        best, chosen = torch.topk(torch.softmax(logits, dim=-1, dtype=torch.float32), self.n_chosen, dim=-1)
        if self.is_normed:
            best = best / best.sum(dim=-1, keepdim=True)
        return best.to(logits.dtype), chosen


@dataclass(frozen=True, slots=True)
class Expert:
    """One gated MLP: `gate_up` is a fused matmul."""

    gate_up: Linear
    down: Linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) -> (rows, hidden)"""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(functional.silu(gate) * up)


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of a layer. tile: rows of a matmul."""

    router: Linear
    each: Sequence[Expert]
    routing: Routing
    tile: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) -> (rows, hidden)"""
        weights, chosen = self.routing.choose(self.router(x))
        order = chosen.flatten().argsort(stable=True)  # by expert, then by row
        rows, scales = order // self.routing.n_chosen, weights.flatten()[order, None]
        n_rows = torch.bincount(chosen.flatten(), minlength=len(self.each)).tolist()
        out, start = torch.zeros_like(x), 0
        for expert, n in zip(self.each, n_rows, strict=True):
            for first in range(start, start + n, self.tile):
                at = slice(first, min(first + self.tile, start + n))
                # A row is once in a tile: the order of these sums is that of the experts.
                out.index_add_(0, rows[at], self._weighted(expert, x[rows[at]], scales[at]))
            start += n
        return out

    def _weighted(self, expert: Expert, x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Return the part of an expert in the sums of at most `tile` rows."""
        if self.routing.is_sigmoid:
            return expert(_filled(x * scales, self.tile))[: len(x)]
        return expert(_filled(x, self.tile))[: len(x)] * scales


def _filled(x: torch.Tensor, n: int) -> torch.Tensor:
    """Return x with rows of zeros appended up to n."""
    return x if len(x) == n else torch.cat([x, x.new_zeros(n - len(x), x.shape[1])])


def steady_tile(expert: Expert, router: torch.Tensor, how: str) -> int:
    """Return the largest tile in which a row has the same bits at every place, among rows and among zeros.

    router: its matrix (experts, hidden), of the dtype and on the device of the rows. how: the kind of matmul.
    Experts of one shape and kind share the result.
    """
    n_inner = expert.gate_up(router[:1]).shape[1] // 2
    key = (router.shape[1], n_inner, how, router.dtype, router.device)
    if key not in _STEADY:
        drawn = torch.randn((TILES[0], router.shape[1]), generator=torch.Generator().manual_seed(1))
        x = drawn.to(router.device, router.dtype)
        _STEADY[key] = next(tile for tile in TILES if tile == 1 or _is_steady(expert, x[:tile]))
    return _STEADY[key]


def _is_steady(expert: Expert, x: torch.Tensor) -> bool:
    usual = expert(x)
    for place in range(len(x)):
        alone = torch.zeros_like(x)
        alone[place] = x[0]
        turned = expert(x.roll(place, 0)).roll(-place, 0)
        if not (torch.equal(turned, usual) and torch.equal(expert(alone)[place], usual[0])):
            return False
    return True
