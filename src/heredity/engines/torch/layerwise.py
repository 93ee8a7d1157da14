"""A decoder's weights that are read for each use and then freed, one layer at a time.

For one pass over one text this is as fast, and needs the memory of one layer instead of all layers. Embedding
and head are converted at each use, some rows at a time.

Promises: the numbers of `weights.read_weights`, up to the order of sums.
Leaves to others: the texts (deploy/export).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch

from heredity.core.progress import Watch
from heredity.formats import weights
from heredity.formats.int8 import Linear
from heredity.formats.weights import Block, DecoderShape, Weights

_ROWS = 16_384  # rows of the head in one matmul


def read_weights(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device = weights.ON_CPU,
    watch: Watch | None = None,  # noqa: ARG001 (no layer is read yet)
) -> Weights:
    """Return the weights in `folder`; only the last norm is in memory. Raises as `weights.read_weights`."""
    shape, rope, rope_scale, is_tied = weights.read_shape(folder)
    files = weights.TensorFiles(folder, dtype, device)
    rope = rope[0].to(device), rope[1].to(device)
    embedding = files.read(weights.EMBEDDING, as_stored=True)
    weights.check_hidden_size(folder, shape, embedding)
    head = embedding if is_tied else files.read(weights.HEAD, as_stored=True)
    norm = weights.norm_of(shape, files)
    blocks = _Layers(shape, folder, dtype, device)
    rows = _Widened(embedding, dtype)
    how = weights.how(shape, files)
    return Weights(shape, rows, blocks, norm, _parts(head, dtype), rope, rope_scale, how)


class _Layers(Sequence[Block]):
    """All layers; each is read again at every access."""

    def __init__(self, shape: DecoderShape, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._shape, self._folder, self._dtype, self._device = shape, folder, dtype, device

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
        # The file is opened again, so that the pages of another layer do not stay mapped.
        return weights.block(self._shape, weights.TensorFiles(self._folder, self._dtype, self._device), at)


class _Widened:
    """A stored matrix that returns its rows in another dtype."""

    def __init__(self, matrix: torch.Tensor, dtype: torch.dtype) -> None:
        self._matrix, self._dtype = matrix, dtype

    def __getitem__(self, at: torch.Tensor) -> torch.Tensor:
        return self._matrix[at].to(self._dtype)


def _parts(matrix: torch.Tensor, dtype: torch.dtype) -> Linear:
    """Return x -> x W', computed for some rows of W at a time."""

    def multiply(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(*x.shape[:-1], len(matrix), dtype=dtype, device=matrix.device)
        for start in range(0, len(matrix), _ROWS):
            some = matrix[start : start + _ROWS].to(dtype)
            out[..., start : start + len(some)] = torch.nn.functional.linear(x, some)
        return out

    return multiply
