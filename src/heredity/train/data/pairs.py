"""Image-caption pairs for contrastive training: all pairs of a step in one batch.

A step is one batch, since every caption is compared with every image of it. An image is shifted by a few
pixels each time, drawn from seed and step.

Promises: every epoch is a permutation of all pairs; what a step reads is a function of seed and step.
Leaves to others: storing pairs (corpus/images/), and the loss (objectives/contrastive.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from heredity.corpus.images.reader import ImageSplit
from heredity.train.data.batching import PackedBatch, epoch_permutation
from heredity.train.distributed import rank_span

MEAN = STD = 0.5  # of pixels, which are from 0 to 1


@dataclass(frozen=True)
class CaptionLayout:
    """How captions become rows: cut at `longest` tokens, the last one the end token; padded with `pad`."""

    end: int
    pad: int
    longest: int

    def row(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of one caption, which ends with its end token: (longest,)."""
        row = np.full(self.longest, self.pad, dtype=np.int64)
        kept = ids[: self.longest]
        row[: len(kept)] = kept
        row[len(kept) - 1] = self.end
        return row


@dataclass(frozen=True)
class PairSampler:
    """`batch` pairs per step, their images shifted by up to `shift` pixels.

    rank, world_size: each process gets its share of a step.
    """

    pairs: ImageSplit
    captions: CaptionLayout
    batch: int
    seed: int
    shift: int = 0
    rank: int = 0
    world_size: int = 1
    same: NDArray[np.int64] = field(init=False)  # (pairs,) the first pair with the same caption

    def __post_init__(self) -> None:
        first: dict[bytes, int] = {}
        rows = [self.pairs.caption(i).tobytes() for i in range(len(self.pairs))]
        same = np.array([first.setdefault(row, i) for i, row in enumerate(rows)], np.int64)
        object.__setattr__(self, "same", same)

    def batches(self, step: int) -> list[PackedBatch]:
        """The batch of a step, counted from 0."""
        n, places = len(self.pairs), range(step * self.batch, (step + 1) * self.batch)
        numbers = [int(epoch_permutation(self.seed, place // n, n)[place % n]) for place in places]
        draws = np.random.default_rng([self.seed, step])
        moves = draws.integers(-self.shift, self.shift + 1, size=(len(numbers), 2))
        low, high = rank_span(self.batch, self.rank, self.world_size)
        mine = self.collate(numbers[low:high], moves[low:high])
        same = torch.from_numpy(self.same[numbers])
        return [mine._replace(targets=same, at=torch.arange(low, high))]

    def collate(self, numbers: Sequence[int], moves: NDArray[np.int64] | None = None) -> PackedBatch:
        """Pairs as one batch. targets: equal for equal captions. at: the places of these pairs."""
        moves = np.zeros((len(numbers), 2), np.int64) if moves is None else moves
        images = [shift_image(self.pairs.image(i), *m) for i, m in zip(numbers, moves.tolist(), strict=True)]
        rows = np.stack([self.captions.row(self.pairs.caption(i)) for i in numbers])
        n, longest = rows.shape
        return PackedBatch(
            torch.from_numpy(rows.reshape(-1)),
            torch.arange(longest).repeat(n),
            (longest,) * n,
            torch.arange(n),
            torch.from_numpy(self.same[list(numbers)]),
            torch.arange(n),
            images=to_pixels(np.stack(images)),
        )


def shift_image(image: NDArray[np.uint8], down: int, right: int) -> NDArray[np.uint8]:
    """Shift an image (side, side, 3) and repeat its edge."""
    if not down and not right:
        return image
    side = np.arange(len(image))
    rows, columns = (np.clip(side - by, 0, len(image) - 1) for by in (down, right))
    return image[rows][:, columns]


def to_pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    """Images as network input: uint8 (images, side, side, 3) -> float (images, 3, side, side)."""
    found = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()
    return (found / 255 - MEAN) / STD
