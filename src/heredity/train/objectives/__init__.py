"""Training objectives. Each file has one: a frozen value with

    loss(network, batch) -> Loss     the sum over the batch, not divided, with its gradient
    weight(batch) -> float           the divisor of a step's sum: targets, or pairs

Promises: the sum does not depend on how a step is split into microbatches, within rounding.
Leaves to others: dividing and stepping (loop.py).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from heredity.train.models.causal_lm import CausalLM, PackedBatch


class Loss(NamedTuple):
    """The sum to minimize, and further sums for the metrics."""

    total: torch.Tensor
    terms: dict[str, float]


class Objective(Protocol):
    """The loss of a training."""

    def loss(self, network: CausalLM, batch: PackedBatch) -> Loss:
        """The sum over the batch."""

    def weight(self, batch: PackedBatch) -> float:
        """The number of targets, or of pairs."""
