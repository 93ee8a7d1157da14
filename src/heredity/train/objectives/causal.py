"""Say the next token of what is learned: cross-entropy in nats, summed over learned tokens.

Source of the z-loss, which keeps the logits' normalizer near 1: PaLM (2204.02311, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from heredity.train.network import Network
from heredity.train.objectives import Loss
from heredity.train.steps import Batch


@dataclass(frozen=True)
class Causal:
    """The negative log-likelihood of what is learned, and `z_loss` times the square of log Z."""

    z_loss: float = 0.0

    def loss(self, network: Network, batch: Batch) -> Loss:
        """Summed over the batch's learned tokens."""

        def of_rows(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            said = functional.cross_entropy(logits, batch.targets[rows], reduction="sum")
            if not self.z_loss:
                return said
            far = self.z_loss * logits.logsumexp(1).square().sum()
            sums["z-loss"] += float(far.detach())
            return said + far

        sums = {"z-loss": 0.0} if self.z_loss else {}
        return Loss(network.loss(network.hidden(batch), of_rows), sums)

    def weight(self, batch: Batch) -> float:
        """Learned tokens."""
        return float(len(batch.targets))
