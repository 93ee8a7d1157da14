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

    masked: MaskedDataset  # of held-out documents; its seed is ignored
    token_bytes: IntArray  # bytes of each token
    n_tokens: int
    every: int
    dist: DistContext = SINGLE_PROCESS

    def evaluate(self, network: CausalLM) -> dict[str, float]:
        """Bits per masked byte, and the share of masked positions whose most likely token is correct."""
        nats = right = n_bytes = n_masked = 0.0
        with torch.no_grad():
            for batch in self._batches:
                loss = Masked().loss(network, self.dist.to_device(batch))
                nats += float(loss.total)
                right += loss.terms[ACCURACY]
                n_masked += len(batch.targets)
                n_bytes += float(self.token_bytes[batch.targets.numpy()].sum())
        nats, right, n_masked, n_bytes = self.dist.sum([nats, right, n_masked, n_bytes])
        return {BITS_PER_BYTE: nats / math.log(2) / n_bytes, MASKED_ACCURACY: right / n_masked}

    @cached_property
    def _batches(self) -> list[PackedBatch]:
        of: PackedDataset = dataclasses.replace(self.masked.dataset, seed=0, rank=0, world_size=1)
        masked = MaskedDataset(of, dataclasses.replace(self.masked.masking, noise="mask"))
        chunks = first_chunks(of.documents, of.context, self.n_tokens)
        mine = rank_microbatches(chunks, max(of.microbatch_tokens, of.context), self.dist)
        return [masked.collate(each, 0) for each in mine]
