"""How well held-out captions are found by their pictures and pictures by their captions, and classes by name.

recall@k: how often one that fits is among the k nearest; all with the same caption fit. zero-shot: how often
the name of a picture's class is nearer than those of all others, of the classes that are held out.

Promises: the same pairs at every look, unshifted; nothing is learned and nothing drawn.
Leaves to others: which pairs are held out (pictures/).
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
    """The first `most` held-out pairs, looked at every `every` steps.

    classes: number of a class -> the tokens of its name, as a caption.
    """

    steps: PairSampler
    classes: dict[int, NDArray[np.int64]]
    every: int
    most: int = 2000
    together: DistContext = SINGLE_PROCESS

    def of(self, network: CausalLM) -> dict[str, float]:
        """Recall at 1 and 5, both ways, and of classes by name where pictures have any."""
        assert isinstance(network, DualEncoder)
        n = min(self.most, len(self.steps.pairs))
        with torch.no_grad():
            arrows = self._arrows(network, n)
            near = arrows.pictures @ arrows.captions.T
            fits = torch.from_numpy(self.steps.same[:n, None] == self.steps.same[None, :n])
            return (
                _recall(near, fits, TO_CAPTION) | _recall(near.T, fits, TO_PICTURE)
                | self._zero_shot(network, arrows.pictures)
            )  # fmt: skip

    def _arrows(self, network: DualEncoder, n: int) -> PairEmbeddings:
        parts = [
            network.arrows(self.together.here(self.steps.collate(list(rows))))
            for rows in rank_rows(n, self.together)
        ]
        mine = [torch.cat(each) for each in zip(*parts, strict=True)]
        whole = mine if n < self.together.world else [all_gather(each, n, self.together) for each in mine]
        return PairEmbeddings(*(each.cpu() for each in whole))

    def _zero_shot(self, network: DualEncoder, pictures: torch.Tensor) -> dict[str, float]:
        labels = torch.from_numpy(self.steps.pairs.labels[: len(pictures)])
        names = sorted(set(labels.tolist()) & set(self.classes))
        if len(names) < 2:
            return {}
        rows = torch.from_numpy(np.stack([self.steps.captions.row(self.classes[name]) for name in names]))
        has_class = torch.isin(labels, torch.tensor(names))
        nearest = (pictures[has_class] @ network.of_captions(rows.to(self.together.device)).cpu().T).argmax(1)
        return {ZERO_SHOT: float((torch.tensor(names)[nearest] == labels[has_class]).float().mean())}


def rank_rows(n: int, together: DistContext) -> list[range]:
    """The rows of `n` that this process looks at, some at once; all of them where there is less than one for
    each. As many times in every process: where weights lie in pieces, all compute or none."""
    rank, world = (together.rank, together.world) if n >= together.world else (0, 1)
    low, high = rank_span(n, rank, world)
    times = -(-n // (world * _ROWS))
    cuts = [rank_span(high - low, i, times) for i in range(times)]
    return [range(low + first, low + behind) for first, behind in cuts]


def _recall(near: torch.Tensor, fits: torch.Tensor, what: str) -> dict[str, float]:
    """(rows, columns) -> shares of rows."""
    found = {}
    for k in (1, 5):
        best = near.topk(min(k, near.shape[1]), dim=1).indices
        found[f"{what} @{k}"] = float(fits.gather(1, best).any(1).float().mean())
    return found
