"""A decoder's weights that are read when they are multiplied and let go after: a layer at a time.

For one pass over one text that is as fast, and takes the memory of one layer instead of all of them; the
embedding and the head are widened where they are used, some rows at a time.

Promises: the numbers of `_weights.read`, to the order of sums.
Leaves to others: what is read and why (export/).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch

from heredity.engines.formats import weights
from heredity.engines.formats.weights import Block, DecoderShape, Weights

_ROWS = 16_384  # of the head, multiplied at once


def read_weights(folder: Path, dtype: torch.dtype) -> Weights:
    """The weights in `folder`, none of them in memory yet but the last norm. Raises as `_weights.read`."""
    shape, rope, rope_scale, is_tied = weights.outline(folder)
    take = weights.tensors(folder, dtype)
    embedding = take(weights.EMBEDDING, as_stored=True)
    weights.refuse_other_width(folder, shape, embedding)
    head = embedding if is_tied else take(weights.HEAD, as_stored=True)
    norm = weights.norm_of(shape, take)
    blocks = _Layers(shape, folder, dtype)
    rows = _Widened(embedding, dtype)
    return Weights(shape, rows, blocks, norm, _parts(head, dtype), rope, rope_scale, weights.how(take))


class _Layers(Sequence[Block]):
    """Every layer, each read anew whenever it is asked for."""

    def __init__(self, shape: DecoderShape, folder: Path, dtype: torch.dtype) -> None:
        self._shape, self._folder, self._dtype = shape, folder, dtype

    def __len__(self) -> int:
        return self._shape.n_layers

    @overload
    def __getitem__(self, at: int) -> Block: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Block]: ...
    def __getitem__(self, at: int | slice) -> Block | Sequence[Block]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not 0 <= at < len(self):
            raise IndexError(at)
        # Opened anew, so that what was read of the file for another layer does not stay mapped.
        take = weights.tensors(self._folder, self._dtype)
        return weights.block(self._shape, take, at, self._dtype)


class _Widened:
    """A matrix as it is stored, whose rows come out in another dtype."""

    def __init__(self, matrix: torch.Tensor, dtype: torch.dtype) -> None:
        self._matrix, self._dtype = matrix, dtype

    def __getitem__(self, at: torch.Tensor) -> torch.Tensor:
        return self._matrix[at].to(self._dtype)


def _parts(matrix: torch.Tensor, dtype: torch.dtype) -> weights.Linear:
    """x -> x W', some of W's rows at a time."""

    def multiply(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(*x.shape[:-1], len(matrix), dtype=dtype)
        for start in range(0, len(matrix), _ROWS):
            some = matrix[start : start + _ROWS].to(dtype)
            out[..., start : start + len(some)] = torch.nn.functional.linear(x, some)
        return out

    return multiply
