"""Say the next token of what is learned: cross-entropy in nats, summed over learned tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from heredity.train.network import Network
from heredity.train.objectives import Loss
from heredity.train.steps import Batch


@dataclass(frozen=True)
class Causal:
    """The negative log-likelihood of the answers."""

    def loss(self, network: Network, batch: Batch) -> Loss:
        """Summed over the batch's learned tokens."""

        def of_rows(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            return functional.cross_entropy(logits, batch.targets[rows], reduction="sum")

        return Loss(network.loss(network.hidden(batch), of_rows), {})

    def weight(self, batch: Batch) -> float:
        """Learned tokens."""
        return float(len(batch.targets))
