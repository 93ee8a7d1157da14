"""Direct preference optimization (DPO): prefer the better of two answers, close to the reference model.

Source: Rafailov et al. 2023 (2305.18290, equation 7).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from heredity.core.errors import UsageError
from heredity.train.models.causal_lm import CausalLM, PackedBatch
from heredity.train.objectives import Loss


@dataclass(frozen=True)
class PreferenceObjective:
    """reference: the initial model. strength: beta of the paper, the cost of moving away from it."""

    reference: CausalLM
    strength: float = 0.1

    def loss(self, network: CausalLM, batch: PackedBatch) -> Loss:
        """Summed over the batch's pairs."""
        if not batch.has_rejected or batch.n_documents % 2:
            raise UsageError("Every example needs a rejected answer: rows of prompt, chosen and rejected.")
        with torch.no_grad():
            before = self._sums(self.reference, batch)
        now = self._sums(network, batch)
        gain = (now - before).view(-1, 2)  # (pairs, better and worse)
        margin = self.strength * (gain[:, 0] - gain[:, 1])
        return Loss(-functional.logsigmoid(margin).sum(), {"preferred": float((margin > 0).sum())})

    def _sums(self, network: CausalLM, batch: PackedBatch) -> torch.Tensor:
        """The log-probability of each document's targets: (documents,)."""
        logits = network.logits(network.hidden(batch)).float()
        each = -functional.cross_entropy(logits, batch.targets, reduction="none")
        return torch.zeros(batch.n_documents, device=each.device).index_add(0, batch.document, each)

    def weight(self, batch: PackedBatch) -> float:
        """The number of pairs."""
        return batch.n_documents / 2
