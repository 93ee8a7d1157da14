"""Tell which caption is of which picture, among all of a step.

Two with the same caption are neither a pair nor no pair: the picture of the one is left out for the other.

In several processes each has a share of the pairs: it tells its pictures from the captions of all, and its
captions from the pictures of all.

Sources: CLIP (2103.00020): cross-entropy over captions and over pictures, halved; SigLIP (2303.15343): each
picture and caption by itself. Unlike that of other objectives the sum is not the same over any cut of a step:
a pair is told from those of its own batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from heredity.train.data.batching import PackedBatch
from heredity.train.distributed import SINGLE_PROCESS, DistContext, all_gather
from heredity.train.models.causal_lm import CausalLM
from heredity.train.models.dual import DualEncoder, PairEmbeddings
from heredity.train.objectives import Loss

CORRECT_PAIRS = "paired"


@dataclass(frozen=True)
class Contrastive:
    """The softmax of CLIP, or the sigmoid of SigLIP, as the network has it."""

    together: DistContext = SINGLE_PROCESS

    def loss(self, network: CausalLM, batch: PackedBatch) -> Loss:
        """Summed over the batch's pairs; beside it, how many pictures' likeliest caption is their own."""
        assert isinstance(network, DualEncoder)
        own, mine, n = batch.at, network.arrows(batch), len(batch.targets)
        captions = all_gather(mine.captions, n, self.together)
        scores = network.scores(PairEmbeddings(mine.pictures, captions))
        is_own = torch.arange(n, device=own.device) == own[:, None]
        is_open = (batch.targets[own, None] == batch.targets) & ~is_own
        right = float((scores.detach().masked_fill(is_open, -torch.inf).argmax(1) == own).sum())
        if network.is_sigmoid:
            return Loss(_sigmoid_loss(scores, is_own, is_open), {CORRECT_PAIRS: right})
        back = scores.T
        if not self.together.is_alone:
            pictures = all_gather(mine.pictures, n, self.together)
            back = network.scores(PairEmbeddings(pictures, mine.captions)).T
        over = [each.masked_fill(is_open, -torch.inf) for each in (scores, back)]
        total = sum(functional.cross_entropy(each, own, reduction="sum") for each in over)
        return Loss(torch.as_tensor(total) / 2, {CORRECT_PAIRS: right})

    def weight(self, batch: PackedBatch) -> float:
        """Pairs."""
        return float(batch.n_documents)


def _sigmoid_loss(scores: torch.Tensor, is_own: torch.Tensor, is_open: torch.Tensor) -> torch.Tensor:
    each = -functional.logsigmoid(torch.where(is_own, scores, -scores))
    return each.masked_fill(is_open, 0.0).sum()
