"""Packed documents for pre-training: chunks of documents, in an order drawn from the seed, also masked.

A document longer than the context is split into chunks. Every token is a target exactly once per epoch. A
document's first token is predicted from the token that ends a document; a later chunk's first token from the
token before it. Nothing is cropped or padded. Chunks are packed end to end, and each attends only to itself.

For encoders, each chunk is between two end tokens, and a share of its tokens is masked. It is the same number
for equal lengths, and at least one. Positions are drawn from the seed, the step and the chunk. Special tokens
are never masked.

Sources: Devlin et al. 2018 (1810.04805): 80 % of the masked tokens become the mask; the rest become another
token or stay, in equal parts. Wettig et al. 2022 (2202.08005): the mask only works as well, and 15 % is too
little.

Promises: what a step reads and masks is a function of seed and step, for any number of processes. Every epoch
is a permutation of all chunks. The size of a step differs from its share of tokens by at most one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch

from heredity.core.errors import UsageError
from heredity.train.models.causal_lm import PackedBatch
from heredity.train.models.shapes import PRETRAIN_MICROBATCH_TOKENS

Noise = Literal["mask", "80-10-10"]
END_TOKENS = 2  # around a chunk


@dataclass(frozen=True)
class TokenMasking:
    """How tokens are masked. special: ids that are never masked and never drawn as noise."""

    mask: int
    end: int
    n_vocabulary: int
    special: frozenset[int]
    share: float = 0.3
    noise: Noise = "mask"

    def apply(self, ids: IntArray, draws: np.random.Generator) -> tuple[IntArray, IntArray]:
        """(tokens,) -> the masked tokens, and the masked positions in order."""
        open_ones = np.flatnonzero(~np.isin(ids, sorted(self.special)))
        n = min(len(open_ones), max(1, round(self.share * len(ids))))
        at = np.sort(draws.permutation(open_ones)[:n])
        shown = ids.copy()
        shown[at] = self._put(ids[at], draws)
        return shown, at

    def _put(self, hidden: IntArray, draws: np.random.Generator) -> IntArray:
        """The tokens at the masked positions."""
        masks = np.full(len(hidden), self.mask, dtype=np.int64)
        if self.noise == "mask":
            return masks
        which = draws.random(len(hidden))
        others = self._words[draws.integers(len(self._words), size=len(hidden))]
        return np.where(which < 0.8, masks, np.where(which < 0.9, others, hidden))

    @cached_property
    def _words(self) -> IntArray:
        return np.setdiff1d(np.arange(self.n_vocabulary), sorted(self.special))


class _MaskedChunk(NamedTuple):
    """A chunk between two end tokens: its input, its masked positions, and their targets."""

    shown: IntArray
    at: IntArray
    hidden: IntArray


@dataclass(frozen=True)
class MaskedDataset:
    """The chunks of a PackedDataset with masked positions."""

    dataset: PackedDataset
    masking: TokenMasking

    def batches(self, step: int) -> list[PackedBatch]:
        """The batches of a step, counted from 0; as many for every process."""
        at = self.dataset
        bins = split_microbatches(at.chunks(step), max(at.microbatch_tokens, at.context), at.world_size)
        return [self.collate(each, step) for each in bins[at.rank :: at.world_size]]

    def collate(self, chunks: Sequence[PackedChunk], step: int) -> PackedBatch:
        """Pack chunks end to end, masked as in this step."""
        return collate_masked([self._masked(chunk, step) for chunk in chunks])

    def _masked(self, chunk: PackedChunk, step: int) -> _MaskedChunk:
        ids = self.dataset.documents.tokens(chunk.document)[chunk.start : chunk.start + chunk.n]
        return mask_chunk(ids.astype(np.int64), self.masking, [self.dataset.seed, step, *chunk[:2]])


def mask_chunk(ids: IntArray, masking: TokenMasking, seed: Sequence[int]) -> _MaskedChunk:
    """Mask a chunk and put it between two end tokens. Its own end token is one of them."""
    text = ids[:-1] if len(ids) and ids[-1] == masking.end else ids
    shown, at = masking.apply(text, np.random.default_rng(seed))
    return _MaskedChunk(np.concatenate([[masking.end], shown, [masking.end]]), at + 1, text[at])


def collate_masked(chunks: Sequence[_MaskedChunk]) -> PackedBatch:
    """Pack masked chunks end to end."""
    lengths = tuple(len(chunk.shown) for chunk in chunks)
    starts = np.cumsum([0, *lengths[:-1]])
    at = [start + chunk.at for start, chunk in zip(starts, chunks, strict=True)]
    counts = torch.tensor([len(chunk.at) for chunk in chunks])
    return PackedBatch(
        torch.from_numpy(np.concatenate([chunk.shown for chunk in chunks])),
        torch.cat([torch.arange(n) for n in lengths]),
        lengths,
        torch.from_numpy(np.concatenate(at)),
        torch.from_numpy(np.concatenate([chunk.hidden for chunk in chunks])),
        torch.repeat_interleave(torch.arange(len(lengths)), counts),
    )


_OVERSHOOT = 1.05  # of a microbatch, if that saves one: a step exceeds its share by part of a chunk
IntArray = np.ndarray[tuple[int], np.dtype[np.int64]]


class TokenizedDocuments(Protocol):
    """Documents as tokens, each with its end token."""

    @property
    def lengths(self) -> IntArray:
        """Tokens of each document: (documents,)."""

    def tokens(self, number: int) -> Any:
        """The tokens of one document, as an array of integers."""


class PackedChunk(NamedTuple):
    """Part of a document: tokens `start` to `start + n` are targets."""

    document: int
    start: int
    n: int


class _EpochOrder(NamedTuple):
    """The order of an epoch: chunk numbers, and the tokens before each."""

    chunks: IntArray
    starts: IntArray


@dataclass(frozen=True, eq=False)  # hashed by identity: documents are large
class PackedDataset:
    """About `batch` tokens per step, in microbatches of about `microbatch_tokens`.

    Each process gets its share.
    """

    documents: TokenizedDocuments
    end: int  # the token that ends a document
    batch: int
    context: int
    seed: int
    microbatch_tokens: int = PRETRAIN_MICROBATCH_TOKENS
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch < self.context:
            raise UsageError(f"A step of {self.batch} tokens is smaller than one context of {self.context}.")

    @property
    def n_tokens(self) -> int:
        """Tokens of an epoch."""
        return int(self.documents.lengths.sum())

    def batches(self, step: int) -> list[PackedBatch]:
        """The batches of a step, counted from 0; as many for every process."""
        bins = split_microbatches(
            self.chunks(step), max(self.microbatch_tokens, self.context), self.world_size
        )
        return [self.collate(each) for each in bins[self.rank :: self.world_size]]

    def chunks(self, step: int) -> list[PackedChunk]:
        """The chunks of a step, for all processes: those that start among its tokens."""
        low, high = step * self.batch, (step + 1) * self.batch
        chunks_of_ranks: list[PackedChunk] = []
        for epoch in range(low // self.n_tokens, (high - 1) // self.n_tokens + 1):
            order, before = _epoch_order(self, epoch), epoch * self.n_tokens
            first, last = np.searchsorted(order.starts, (low - before, high - before))
            chunks_of_ranks += [self._chunk(int(number)) for number in order.chunks[first:last]]
        return chunks_of_ranks

    @cached_property
    def _n_before(self) -> IntArray:
        """Chunks before each document, and in total: (documents + 1,)."""
        each = -(-self.documents.lengths // self.context)
        return np.concatenate([[0], np.cumsum(each)])

    def _chunk(self, number: int) -> PackedChunk:
        document = int(np.searchsorted(self._n_before, number, side="right")) - 1
        start = (number - int(self._n_before[document])) * self.context
        return PackedChunk(document, start, min(self.context, int(self.documents.lengths[document]) - start))

    @cached_property
    def _sizes(self) -> IntArray:
        """Tokens of each chunk."""
        sizes = np.full(int(self._n_before[-1]), self.context, dtype=np.int64)
        sizes[self._n_before[1:] - 1] = (self.documents.lengths - 1) % self.context + 1
        return sizes

    def collate(self, chunks: list[PackedChunk]) -> PackedBatch:
        """Pack chunks end to end."""
        read, learned = [], []
        for chunk in chunks:
            ids = self.documents.tokens(chunk.document).astype(np.int64)
            before = ids[chunk.start - 1] if chunk.start else self.end
            learned.append(ids[chunk.start : chunk.start + chunk.n])
            read.append(np.concatenate([[before], learned[-1][:-1]]))
        lengths = tuple(chunk.n for chunk in chunks)
        targets = torch.from_numpy(np.concatenate(learned))
        return PackedBatch(
            torch.from_numpy(np.concatenate(read)),
            torch.cat([torch.arange(n) for n in lengths]),
            lengths,
            torch.arange(len(targets)),
            targets,
            torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        )


@lru_cache(maxsize=2)
def _epoch_order(dataset: PackedDataset, epoch: int) -> _EpochOrder:
    chunks = np.random.default_rng([dataset.seed, epoch]).permutation(len(dataset._sizes))
    sizes = dataset._sizes[chunks]
    return _EpochOrder(chunks, np.cumsum(sizes) - sizes)


def split_microbatches(
    chunks: list[PackedChunk], microbatch_tokens: int, world_size: int
) -> list[list[PackedChunk]]:
    """Group chunks of similar length into microbatches, the same number for each process.

    Raises UsageError if there are fewer chunks than processes.
    """
    if len(chunks) < world_size:
        raise UsageError(
            f"A step of {len(chunks)} chunks is too small for {world_size} processes. Raise batch."
        )
    ordered = sorted(chunks, key=lambda chunk: (-chunk.n, chunk.document, chunk.start))
    total = sum(chunk.n for chunk in ordered)
    n_bins = min(
        world_size * math.ceil(total / (world_size * _OVERSHOOT * microbatch_tokens)),
        len(chunks) // world_size * world_size,
    )
    sizes = np.array([chunk.n for chunk in ordered])
    which = np.minimum(n_bins - 1, ((np.cumsum(sizes) - sizes / 2) * n_bins / total).astype(np.int64))
    if len(set(which.tolist())) < n_bins:  # a long chunk took the place of two microbatches
        which = np.arange(len(ordered)) * n_bins // len(ordered)
    return [[ordered[at] for at in np.flatnonzero(which == number)] for number in range(n_bins)]
