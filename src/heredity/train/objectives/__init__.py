"""What is learned. Each file is one objective: a frozen value with

    loss(network, batch) -> Loss     the sum over the batch, not yet divided, with its gradient to come
    weight(batch) -> float           what the sum of a step's batches is divided by: learned tokens, or pairs

Promises: the sum over any cut of a step into batches is the same, within rounding.
Leaves to others: dividing and stepping (loop.py).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from heredity.train.data.batching import PackedBatch
from heredity.train.models.causal_lm import CausalLM


class Loss(NamedTuple):
    """A sum to be minimized, and sums worth a column in the metrics."""

    total: torch.Tensor
    terms: dict[str, float]


class Objective(Protocol):
    """What a step minimizes."""

    def loss(self, network: CausalLM, batch: PackedBatch) -> Loss:
        """The sum over the batch."""

    def weight(self, batch: PackedBatch) -> float:
        """How much of it there is."""
