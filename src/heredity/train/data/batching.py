"""The examples of each step, and their microbatches: a function of seed and step only.

Promises: every epoch is a permutation of all examples, so none is dropped or repeated. A run that resumes at
step n reads the same batches. A microbatch has examples of similar length, and no example is cropped.
Leaves to others: the loss (objectives/) and the steps (loop.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from heredity.engines.chat.documents import Document
from heredity.train.data.chat import TokenizedExample
from heredity.train.resources import MICROBATCH_TOKENS

PADDING_MULTIPLE = 32  # tokens; every new matmul size costs time and memory to set up


class PackedBatch(NamedTuple):
    """Documents packed end to end, with their targets.

    tokens, positions: (tokens,) int64; positions start at 0 in each document.
    lengths: tokens of each document, in order.
    at: (targets,) the positions whose output predicts a target. targets: (targets,) token ids.
    document: (targets,) the document of each target.
    has_rejected: each document is followed by its rejected version.
    images: (documents, 3, side, side) float; the documents are their captions.
    active: (tokens,) bool, those that an activated adapter changes; None for all.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    lengths: tuple[int, ...]
    at: torch.Tensor
    targets: torch.Tensor
    document: torch.Tensor
    has_rejected: bool = False
    images: torch.Tensor | None = None
    active: torch.Tensor | None = None

    @property
    def n_documents(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> PackedBatch:
        """The batch on a device."""
        images, active = (None if each is None else each.to(device) for each in (self.images, self.active))
        tokens, positions, at, targets, document = (
            each.to(device) for each in (self.tokens, self.positions, self.at, self.targets, self.document)
        )
        return self._replace(
            tokens=tokens, positions=positions, at=at, targets=targets, document=document,
            images=images, active=active,
        )  # fmt: skip

    @property
    def padded(self) -> PackedBatch:
        """The batch padded to a multiple of PADDING_MULTIPLE tokens, by one document without targets."""
        n = -len(self.tokens) % PADDING_MULTIPLE
        if not n:
            return self
        filler = torch.arange(n, device=self.positions.device)
        return self._replace(
            tokens=torch.cat([self.tokens, torch.zeros_like(filler)]),
            positions=torch.cat([self.positions, filler]),
            lengths=(*self.lengths, n),
            active=None if self.active is None else functional.pad(self.active, (0, n)),
        )


@dataclass(frozen=True)
class BatchSampler:
    """`batch` examples per step, in microbatches of at most `microbatch_tokens`.

    A longer example has a microbatch of its own.
    """

    examples: Sequence[TokenizedExample]
    batch: int
    seed: int
    microbatch_tokens: int = MICROBATCH_TOKENS

    def batches(self, step: int) -> list[PackedBatch]:
        """The batches of a step, counted from 0."""
        picked = [
            self.examples[self.at(place)] for place in range(step * self.batch, (step + 1) * self.batch)
        ]
        return [collate(group) for group in group_by_length(picked, self.microbatch_tokens)]

    def at(self, place: int) -> int:
        """The index of the example at a place of the endless order. The epoch is place // n_examples."""
        n = len(self.examples)
        return int(epoch_permutation(self.seed, place // n, n)[place % n])


def group_by_length(
    examples: Sequence[TokenizedExample], microbatch_tokens: int
) -> list[list[TokenizedExample]]:
    """Group examples of similar length, at most `microbatch_tokens` per group; a longer one has its own."""
    groups: list[list[TokenizedExample]] = []
    n_tokens = 0
    for example in sorted(examples, key=lambda e: -e.n_tokens):
        if groups and n_tokens + example.n_tokens <= microbatch_tokens:
            groups[-1].append(example)
            n_tokens += example.n_tokens
        else:
            groups.append([example])
            n_tokens = example.n_tokens
    return groups


@lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, n: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The order of an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def collate(examples: Sequence[TokenizedExample]) -> PackedBatch:
    """Pack examples end to end."""
    has_rejected = any(e.rejected is not None for e in examples)
    documents: list[Document] = []
    for example in examples:
        documents += [example.document, *([example.rejected] if example.rejected is not None else [])]
    tokens: list[int] = []
    positions: list[int] = []
    at: list[int] = []
    targets: list[int] = []
    document: list[int] = []
    for number, (ids, is_learned) in enumerate(documents):
        start = len(tokens)
        learned = [i for i in range(1, len(ids)) if is_learned[i]]
        at += [start + i - 1 for i in learned]
        targets += [ids[i] for i in learned]
        document += [number] * len(learned)
        tokens += ids
        positions += range(len(ids))
    columns = (tokens, positions, at, targets, document)
    t, p, a, y, d = (torch.tensor(each, dtype=torch.long) for each in columns)
    lengths = tuple(len(ids) for ids, _ in documents)
    return PackedBatch(t, p, lengths, a, y, d, has_rejected, active=_active(examples))


def _active(examples: Sequence[TokenizedExample]) -> torch.Tensor | None:
    """The tokens that an activated adapter changes; None if no example is one of such an adapter."""
    if all(example.active_from is None for example in examples):
        return None
    starts = [(example.n_tokens, example.active_from or 0) for example in examples]
    return torch.cat([torch.arange(n) >= start for n, start in starts])
