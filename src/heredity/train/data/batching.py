"""Which examples a step learns from, and in which products: a function of seed and step, of nothing else.

Promises: every epoch is a permutation of all examples, so none is dropped or seen twice; a training that goes
on at step n sees what it would have seen; rows that go together are of like length, and none is cropped.
Leaves to others: what is done with them (objectives/, loop.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from heredity.engines.chat.documents import Document
from heredity.train.data.chat import TokenizedExample
from heredity.train.memory import MICROBATCH_TOKENS

PADDING_MULTIPLE = 32  # tokens; every new size of a product costs the time and the memory of making it ready


class PackedBatch(NamedTuple):
    """Documents laid end to end, and what is to be told of them.

    tokens, positions: (tokens,) int64, a document's positions from 0; lengths: of each document, in order.
    at: (learned,) the places whose next token is learned; targets: (learned,) those tokens; document:
    (learned,) which document each belongs to. With rejected answers, each follows the document it is worse
    than. pictures: (documents, 3, side, side) float, each the picture of a document that is its caption.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    lengths: tuple[int, ...]
    at: torch.Tensor
    targets: torch.Tensor
    document: torch.Tensor
    has_rejected: bool = False
    pictures: torch.Tensor | None = None

    @property
    def n_documents(self) -> int:
        return len(self.lengths)

    @property
    def filled(self) -> PackedBatch:
        """The same with a document of filler behind it, of which nothing is learned, up to whole BLOCKs."""
        n = -len(self.tokens) % PADDING_MULTIPLE
        if not n:
            return self
        filler = torch.arange(n, device=self.positions.device)
        return self._replace(
            tokens=torch.cat([self.tokens, torch.zeros_like(filler)]),
            positions=torch.cat([self.positions, filler]),
            lengths=(*self.lengths, n),
        )


@dataclass(frozen=True)
class BatchSampler:
    """Batches of a step: `batch` examples, in products of at most `product` tokens; a longer one is alone."""

    examples: Sequence[TokenizedExample]
    batch: int
    seed: int
    product: int = MICROBATCH_TOKENS

    def of(self, step: int) -> list[PackedBatch]:
        """The batches of a step, counted from 0."""
        picked = [
            self.examples[self.at(place)] for place in range(step * self.batch, (step + 1) * self.batch)
        ]
        return [collate(group) for group in group_by_length(picked, self.product)]

    def at(self, place: int) -> int:
        """The example at a place of the whole order: place // n is the epoch."""
        n = len(self.examples)
        return int(epoch_permutation(self.seed, place // n, n)[place % n])


def group_by_length(examples: Sequence[TokenizedExample], product: int) -> list[list[TokenizedExample]]:
    """Those of like length together, at most `product` tokens a group; a longer one is alone."""
    groups: list[list[TokenizedExample]] = []
    n_tokens = 0
    for example in sorted(examples, key=lambda e: -e.n_tokens):
        if groups and n_tokens + example.n_tokens <= product:
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
    """Lay examples end to end."""
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
    return PackedBatch(t, p, tuple(len(ids) for ids, _ in documents), a, y, d, has_rejected)
