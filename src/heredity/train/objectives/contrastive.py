"""Contrastive learning: match images and captions among all pairs of a step.

Pairs that share a caption are masked: neither positives nor negatives. With several processes, embeddings are
all-gathered, so that the loss uses the global batch.

Sources: CLIP (2103.00020): cross-entropy over captions and over images, halved. SigLIP (2303.15343): a binary
decision per image and caption. Unlike other objectives, the sum depends on how a step is split into batches.
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
    """The softmax loss of CLIP, or the sigmoid loss of SigLIP, depending on the network."""

    dist: DistContext = SINGLE_PROCESS

    def loss(self, network: CausalLM, batch: PackedBatch) -> Loss:
        """Summed over the batch's pairs. A metric counts images whose nearest caption is their own."""
        assert isinstance(network, DualEncoder)
        own, mine, n = batch.at, network.embed(batch), len(batch.targets)
        captions = all_gather(mine.captions, n, self.dist)
        scores = network.similarities(PairEmbeddings(mine.images, captions))
        is_own = torch.arange(n, device=own.device) == own[:, None]
        is_open = (batch.targets[own, None] == batch.targets) & ~is_own
        right = float((scores.detach().masked_fill(is_open, -torch.inf).argmax(1) == own).sum())
        if network.is_sigmoid:
            return Loss(_sigmoid_loss(scores, is_own, is_open), {CORRECT_PAIRS: right})
        back = scores.T
        if not self.dist.is_single_process:
            images = all_gather(mine.images, n, self.dist)
            back = network.similarities(PairEmbeddings(images, mine.captions)).T
        over = [each.masked_fill(is_open, -torch.inf) for each in (scores, back)]
        total = sum(functional.cross_entropy(each, own, reduction="sum") for each in over)
        return Loss(torch.as_tensor(total) / 2, {CORRECT_PAIRS: right})

    def weight(self, batch: PackedBatch) -> float:
        """The number of pairs."""
        return float(batch.n_documents)


def _sigmoid_loss(scores: torch.Tensor, is_own: torch.Tensor, is_open: torch.Tensor) -> torch.Tensor:
    each = -functional.logsigmoid(torch.where(is_own, scores, -scores))
    return each.masked_fill(is_open, 0.0).sum()
