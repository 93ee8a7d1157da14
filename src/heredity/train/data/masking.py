"""Masked text for encoders: chunks of documents with masked positions, each between two end tokens.

A share of the tokens of each chunk is masked: the same number for equal lengths, and at least one. Positions
are drawn from the seed, the step and the chunk. Special tokens are never masked.

Sources: Devlin et al. 2018 (1810.04805): 80 % of the masked tokens become the mask; the rest become another
token or stay, in equal parts. Wettig et al. 2022 (2202.08005): the mask only works as well, and 15 % is too
little.

Promises: what a step reads and masks is a function of seed and step, for any number of processes.
Leaves to others: the order of chunks (packed.py), and the loss (recipes/pretrain/masked.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch

from heredity.train.data.batching import PackedBatch
from heredity.train.data.packed import IntArray, PackedChunk, PackedDataset, split_microbatches

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
