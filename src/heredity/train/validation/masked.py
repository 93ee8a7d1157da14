"""Masked accuracy and bits per masked byte on held-out text.

Promises: every evaluation has the same documents and masked positions, all replaced by the mask token. No
gradient is computed.
Leaves to others: which documents are held out (corpus/), and masking (data/masking.py).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

import torch

from heredity.train.data.batching import PackedBatch
from heredity.train.data.masking import MaskedDataset
from heredity.train.data.packed import IntArray, PackedDataset
from heredity.train.distributed import SINGLE_PROCESS, DistContext
from heredity.train.models.causal_lm import CausalLM
from heredity.train.objectives.masked import ACCURACY, Masked
from heredity.train.validation.perplexity import first_chunks, rank_microbatches

BITS_PER_BYTE, MASKED_ACCURACY = "bits per masked byte", "right in held-out gaps"


@dataclass(frozen=True)
class MaskedCheck:
    """Evaluates the first `n_tokens` of held-out documents (the last one whole), every `every` steps."""

    gaps: MaskedDataset  # of held-out documents; its seed is ignored
    token_bytes: IntArray  # bytes of each token
    n_tokens: int
    every: int
    together: DistContext = SINGLE_PROCESS

    def evaluate(self, network: CausalLM) -> dict[str, float]:
        """Bits per masked byte, and the share of masked positions whose most likely token is correct."""
        nats = right = n_bytes = n_gaps = 0.0
        with torch.no_grad():
            for batch in self._batches:
                loss = Masked().loss(network, self.together.here(batch))
                nats += float(loss.total)
                right += loss.terms[ACCURACY]
                n_gaps += len(batch.targets)
                n_bytes += float(self.token_bytes[batch.targets.numpy()].sum())
        nats, right, n_gaps, n_bytes = self.together.sum([nats, right, n_gaps, n_bytes])
        return {BITS_PER_BYTE: nats / math.log(2) / n_bytes, MASKED_ACCURACY: right / n_gaps}

    @cached_property
    def _batches(self) -> list[PackedBatch]:
        of: PackedDataset = dataclasses.replace(self.gaps.stream, seed=0, rank=0, world=1)
        gaps = MaskedDataset(of, dataclasses.replace(self.gaps.hiding, noise="mask"))
        pieces = first_chunks(of.documents, of.context, self.n_tokens)
        mine = rank_microbatches(pieces, max(of.product, of.context), self.together)
        return [gaps.collate(each, 0) for each in mine]
