"""Rows that lie in several processes, seen whole by each, with the gradient back to where they lie.

Source: how contrastive pairs are told from those of all processes, OpenCLIP's `gather_with_grad`.

Promises: a gradient of the whole is the sum of what every process asked of it; alone, nothing happens.
Leaves to others: what is asked of the rows (objectives/contrastive.py), processes (processes.py).
"""

from __future__ import annotations

from typing import Any

import torch

from heredity.train._quick import applied
from heredity.train.processes import Processes


def share(n: int, rank: int, world: int) -> tuple[int, int]:
    """The first of a process's share of `n` rows, and the one behind the last; shares differ by one row.

    FSDP's cut (processes.span) would leave the last of 4 processes none of 9 rows.
    """
    return n * rank // world, n * (rank + 1) // world


def gathered(mine: torch.Tensor, n: int, together: Processes) -> torch.Tensor:
    """(rows of this process, width) -> (n, width), by `share`."""
    return mine if together.is_alone else applied(_Gathered, mine, n, together)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor, n: int, together: Processes) -> torch.Tensor:
        spans = [share(n, rank, together.world) for rank in range(together.world)]
        ctx.span = spans[together.rank]
        most = max(high - low for low, high in spans)
        filled = torch.nn.functional.pad(mine, (0, 0, 0, most - len(mine)))  # gloo sends rows of one number
        got = [torch.empty_like(filled) for _ in spans]
        torch.distributed.all_gather(got, filled)
        return torch.cat([each[: high - low] for each, (low, high) in zip(got, spans, strict=True)])

    @staticmethod
    def backward(ctx: Any, whole: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        whole = whole.contiguous()
        torch.distributed.all_reduce(whole)
        return whole[slice(*ctx.span)], None, None
