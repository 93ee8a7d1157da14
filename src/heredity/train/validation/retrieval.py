"""Image-caption retrieval and zero-shot classification on held-out pairs.

recall@k: the share of queries with a match among the k nearest; all pairs with the same caption match.
zero-shot: the share of images whose own class name is the nearest, among held-out classes.

Promises: every evaluation has the same pairs, unshifted. No gradient and no random number is used.
Leaves to others: which pairs are held out (corpus/images/).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from heredity.train.data.pairs import PairSampler
from heredity.train.distributed import SINGLE_PROCESS, DistContext, all_gather, rank_span
from heredity.train.models.causal_lm import CausalLM
from heredity.train.models.dual import DualEncoder, PairEmbeddings

TO_CAPTION, TO_PICTURE, ZERO_SHOT = "picture to caption", "caption to picture", "zero-shot"
_ROWS = 256  # pairs at once


@dataclass(frozen=True)
class RetrievalCheck:
    """Evaluates the first `most` held-out pairs, every `every` steps.

    classes: class label -> the tokens of its name, as a caption.
    """

    steps: PairSampler
    classes: dict[int, NDArray[np.int64]]
    every: int
    most: int = 2000
    dist: DistContext = SINGLE_PROCESS

    def evaluate(self, network: CausalLM) -> dict[str, float]:
        """Recall at 1 and 5 in both directions, and zero-shot accuracy if the images have classes."""
        assert isinstance(network, DualEncoder)
        n = min(self.most, len(self.steps.pairs))
        with torch.no_grad():
            embeddings = self._arrows(network, n)
            near = embeddings.images @ embeddings.captions.T
            fits = torch.from_numpy(self.steps.same[:n, None] == self.steps.same[None, :n])
            return (
                _recall(near, fits, TO_CAPTION) | _recall(near.T, fits, TO_PICTURE)
                | self._zero_shot(network, embeddings.images)
            )  # fmt: skip

    def _arrows(self, network: DualEncoder, n: int) -> PairEmbeddings:
        parts = [
            network.embed(self.dist.to_device(self.steps.collate(list(rows))))
            for rows in rank_rows(n, self.dist)
        ]
        mine = [torch.cat(each) for each in zip(*parts, strict=True)]
        whole = mine if n < self.dist.world_size else [all_gather(each, n, self.dist) for each in mine]
        return PairEmbeddings(*(each.cpu() for each in whole))

    def _zero_shot(self, network: DualEncoder, images: torch.Tensor) -> dict[str, float]:
        labels = torch.from_numpy(self.steps.pairs.labels[: len(images)])
        names = sorted(set(labels.tolist()) & set(self.classes))
        if len(names) < 2:
            return {}
        rows = torch.from_numpy(np.stack([self.steps.captions.row(self.classes[name]) for name in names]))
        has_class = torch.isin(labels, torch.tensor(names))
        nearest = (images[has_class] @ network.embed_captions(rows.to(self.dist.device)).cpu().T).argmax(1)
        return {ZERO_SHOT: float((torch.tensor(names)[nearest] == labels[has_class]).float().mean())}


def rank_rows(n: int, dist: DistContext) -> list[range]:
    """This process's batches of `n` rows; all rows if there are fewer than processes.

    Every process has the same number of batches: with sharded weights all compute, or none.
    """
    rank, world_size = (dist.rank, dist.world_size) if n >= dist.world_size else (0, 1)
    low, high = rank_span(n, rank, world_size)
    times = -(-n // (world_size * _ROWS))
    cuts = [rank_span(high - low, i, times) for i in range(times)]
    return [range(low + first, low + behind) for first, behind in cuts]


def _recall(near: torch.Tensor, fits: torch.Tensor, what: str) -> dict[str, float]:
    """Recall at 1 and 5, from similarities and matches (rows, columns)."""
    found = {}
    for k in (1, 5):
        best = near.topk(min(k, near.shape[1]), dim=1).indices
        found[f"{what} @{k}"] = float(fits.gather(1, best).any(1).float().mean())
    return found
