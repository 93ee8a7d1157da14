"""Bits per byte of held-out text, so that models with different tokenizers are comparable.

Promises: every evaluation reads the same documents from their beginning. No gradient and no random number is
used.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from heredity.train.data.packed import PackedChunk, PackedDataset, TokenizedDocuments, split_microbatches
from heredity.train.loop import SINGLE_PROCESS, DistContext
from heredity.train.models.causal_lm import CausalLM, PackedBatch
from heredity.train.objectives.causal import Causal

BITS_PER_BYTE = "bits per byte"


@dataclass(frozen=True)
class PerplexityCheck:
    """Evaluates the first `n_tokens` of held-out documents (the last one whole), every `every` steps."""

    documents: TokenizedDocuments
    end: int
    context: int
    token_bytes: np.ndarray[tuple[int], np.dtype[np.int64]]  # bytes of each token
    n_tokens: int
    every: int
    dist: DistContext = SINGLE_PROCESS

    def evaluate(self, network: CausalLM) -> dict[str, float]:
        """Bits per byte of the held-out text."""
        nats = n_bytes = 0.0
        with torch.no_grad():
            for batch in self._batches:
                nats += float(Causal().loss(network, self.dist.to_device(batch)).total)
                n_bytes += float(self.token_bytes[batch.targets.numpy()].sum())
        nats, n_bytes = self.dist.sum([nats, n_bytes])
        return {BITS_PER_BYTE: nats / math.log(2) / n_bytes}

    @cached_property
    def _batches(self) -> list[PackedBatch]:
        dataset = PackedDataset(self.documents, self.end, self.context, self.context, 0)
        chunks = first_chunks(self.documents, self.context, self.n_tokens)
        return [
            dataset.collate(each) for each in rank_microbatches(chunks, dataset.microbatch_tokens, self.dist)
        ]


def rank_microbatches(
    chunks: list[PackedChunk], microbatch_tokens: int, dist: DistContext
) -> list[list[PackedChunk]]:
    """This process's microbatches; all of them if there are fewer chunks than processes."""
    world_size, rank = (dist.world_size, dist.rank) if len(chunks) >= dist.world_size else (1, 0)
    return split_microbatches(chunks, microbatch_tokens, world_size)[rank::world_size]


def first_chunks(documents: TokenizedDocuments, context: int, n_tokens: int) -> list[PackedChunk]:
    """The chunks of the first documents that together have `n_tokens` (the last one whole)."""
    lengths = documents.lengths
    n = int(np.searchsorted(np.cumsum(lengths), n_tokens)) + 1
    return [
        PackedChunk(number, start, min(context, int(lengths[number]) - start))
        for number in range(min(n, len(lengths)))
        for start in range(0, int(lengths[number]), context)
    ]


def token_bytes(tokenizer: Path) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The bytes of each token of a byte-level tokenizer.json; 0 for special tokens."""
    content = json.loads(tokenizer.read_text("utf-8"))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    special = {token["id"]: 0 for token in content.get("added_tokens", [])}
    n_bytes = np.zeros(max([*vocabulary.values(), *special]) + 1, dtype=np.int64)
    for text, number in vocabulary.items():
        n_bytes[number] = len(text)  # byte-level: one character of the file is one byte
    for number in special:
        n_bytes[number] = 0
    return n_bytes
