"""Masked-token prediction: cross-entropy in nats, summed over masked positions.

Source: Devlin et al. 2018 (1810.04805, section 3.1). The z-loss is that of causal.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from heredity.train.data.batching import PackedBatch
from heredity.train.models.causal_lm import CausalLM
from heredity.train.objectives import Loss
from heredity.train.objectives.causal import summed_cross_entropy

ACCURACY = "accuracy"


@dataclass(frozen=True)
class Masked:
    """The negative log-likelihood of masked tokens. A metric counts correct predictions."""

    z_loss: float = 0.0

    def loss(self, network: CausalLM, batch: PackedBatch) -> Loss:
        """Summed over the batch's masked positions."""

        def of_rows(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            targets = batch.targets[rows]
            sums[ACCURACY] += float((logits.detach().argmax(1) == targets).sum())
            return summed_cross_entropy(logits, targets, self.z_loss, sums)

        sums = {ACCURACY: 0.0}
        return Loss(network.loss(network.hidden(batch), of_rows), sums)

    def weight(self, batch: PackedBatch) -> float:
        """The number of masked positions."""
        return float(len(batch.targets))
