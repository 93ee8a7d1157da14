"""Tell which caption is of which picture, among all of a step.

Two with the same caption are neither a pair nor no pair: the picture of the one is left out for the other.

Sources: CLIP (2103.00020): cross-entropy over captions and over pictures, halved; SigLIP (2303.15343): each
picture and caption by itself. Unlike that of other objectives the sum is not the same over any cut of a step:
a pair is told from those of its own batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from heredity.train.dual import Dual
from heredity.train.network import Network
from heredity.train.objectives import Loss
from heredity.train.steps import Batch

PAIRED = "paired"


@dataclass(frozen=True)
class Contrastive:
    """The softmax of CLIP, or the sigmoid of SigLIP, as the network has it."""

    def loss(self, network: Network, batch: Batch) -> Loss:
        """Summed over the batch's pairs; beside it, how many pictures' likeliest caption is their own."""
        assert isinstance(network, Dual)
        scores = network.scores(network.arrows(batch))
        is_own = torch.eye(len(scores), dtype=torch.bool)
        is_open = (batch.targets[:, None] == batch.targets) & ~is_own
        of_scores = _sigmoid if network.is_sigmoid else _softmax
        hidden = scores.detach().masked_fill(is_open, -torch.inf)
        right = float((hidden.argmax(1) == torch.arange(len(scores))).sum())
        return Loss(of_scores(scores, is_own, is_open), {PAIRED: right})

    def weight(self, batch: Batch) -> float:
        """Pairs."""
        return float(batch.n_documents)


def _softmax(scores: torch.Tensor, is_own: torch.Tensor, is_open: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    scores, own = scores.masked_fill(is_open, -torch.inf), torch.arange(len(scores))
    over = [functional.cross_entropy(each, own, reduction="sum") for each in (scores, scores.T)]
    return (over[0] + over[1]) / 2


def _sigmoid(scores: torch.Tensor, is_own: torch.Tensor, is_open: torch.Tensor) -> torch.Tensor:
    each = -functional.logsigmoid(torch.where(is_own, scores, -scores))
    return each.masked_fill(is_open, 0.0).sum()
