"""The examples of each step, and their microbatches: a function of seed and step only.

Promises: every epoch is a permutation of all examples, so none is dropped or repeated. A run that resumes at
step n reads the same batches. A microbatch has examples of similar length, and no example is cropped. A
beginning that all documents of a microbatch have, such as a system message, is held and computed once.
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
from heredity.train.kernels import token_places

MICROBATCH_TOKENS = 2048  # in one forward pass of a tuning; a longer example is alone
PADDING_MULTIPLE = 32  # tokens; every new matmul size costs time and memory to set up
MIN_SHARED = 16  # tokens; a shorter shared beginning saves less than copying its keys and values costs


class PackedBatch(NamedTuple):
    """Documents packed end to end, with their targets.

    tokens, positions: (tokens,) int64; positions start at 0 in each document.
    lengths: tokens of each document, in order, with the shared ones.
    n_shared: the first tokens, which begin every document and are held once. The rest of each follows.
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
    n_shared: int = 0

    @property
    def n_documents(self) -> int:
        return len(self.lengths)

    @property
    def n_tokens(self) -> int:
        """Tokens of all documents: shared ones count in each."""
        return sum(self.lengths)

    @property
    def unshared(self) -> PackedBatch:
        """The same documents, each held whole."""
        if not self.n_shared:
            return self
        held = torch.tensor(token_places(self.lengths, self.n_shared), device=self.tokens.device)
        lengths = torch.tensor(self.lengths, device=self.at.device)
        n_before = torch.arange(self.n_documents, device=self.at.device) * self.n_shared
        starts = (lengths.cumsum(0) - lengths)[self.document]
        at = torch.where(self.at < self.n_shared, self.at + starts, self.at + n_before[self.document])
        return self._replace(
            tokens=self.tokens[held], positions=self.positions[held], at=at, n_shared=0,
            active=None if self.active is None else self.active[held],
        )  # fmt: skip

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
        """The batch padded to a multiple of PADDING_MULTIPLE tokens, by one document without targets.

        If tokens are shared, the last document is padded instead. So the network has to be causal then.
        """
        n = -len(self.tokens) % PADDING_MULTIPLE
        if not n:
            return self
        filler = torch.arange(n, device=self.positions.device)
        lengths = (*self.lengths, n)
        if self.n_shared:
            *others, last = self.lengths
            filler, lengths = filler + last, (*others, last + n)
        return self._replace(
            tokens=torch.cat([self.tokens, torch.zeros_like(filler)]),
            positions=torch.cat([self.positions, filler]),
            lengths=lengths,
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
    """Pack examples end to end. A beginning that all of them have is held once."""
    has_rejected = any(e.rejected is not None for e in examples)
    documents: list[Document] = []
    for example in examples:
        documents += [example.document, *([example.rejected] if example.rejected is not None else [])]
    n_shared = _shared_tokens(examples, documents)
    tokens = list(documents[0].tokens[:n_shared])
    positions = list(range(n_shared))
    at: list[int] = []
    targets: list[int] = []
    document: list[int] = []
    for number, (ids, is_learned) in enumerate(documents):
        offset = len(tokens) - n_shared
        learned = [i for i in range(1, len(ids)) if is_learned[i]]
        at += [i - 1 if i <= n_shared else offset + i - 1 for i in learned]
        targets += [ids[i] for i in learned]
        document += [number] * len(learned)
        tokens += ids[n_shared:]
        positions += range(n_shared, len(ids))
    columns = (tokens, positions, at, targets, document)
    t, p, a, y, d = (torch.tensor(each, dtype=torch.long) for each in columns)
    lengths = tuple(len(ids) for ids, _ in documents)
    active = _active(examples, n_shared)
    return PackedBatch(t, p, lengths, a, y, d, has_rejected, active=active, n_shared=n_shared)


def _shared_tokens(examples: Sequence[TokenizedExample], documents: Sequence[Document]) -> int:
    """How many tokens all documents begin with, those that an activated adapter changes excluded; or 0."""
    if len(documents) < 2:
        return 0
    low, high = min(each.tokens for each in documents), max(each.tokens for each in documents)
    n = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    if any(example.active_from is not None for example in examples):
        n = min(n, *(example.active_from or 0 for example in examples))
    return n if n >= MIN_SHARED else 0


def _active(examples: Sequence[TokenizedExample], n_shared: int) -> torch.Tensor | None:
    """The tokens that an activated adapter changes; None if no example is one of such an adapter."""
    if all(example.active_from is None for example in examples):
        return None
    starts = [(example.n_tokens, example.active_from or 0) for example in examples]
    parts = [torch.arange(n_shared, n) >= start for n, start in starts]
    return torch.cat([torch.zeros(n_shared, dtype=torch.bool), *parts])
