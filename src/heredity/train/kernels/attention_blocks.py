"""Attention of rows as plain products, a block of queries at a time, each by the keys that any of it sees.

Probabilities are made again on the way back, so that none is kept, and a block's alone are ever there.

Promises: numbers are those of torch's kernel, within rounding; the same rows give the same bits.
Leaves to others: when this is the faster way (attention.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from heredity.train.kernels.patch import applied

_LEAST, _PARTS = 128, 8  # queries of a block: so many, or such a part of the row, whichever is more
_MOST = 1 << 24  # scores that are there at once
_WHOLE = 16  # queries that a block is a multiple of


class Sight(NamedTuple):
    """Which tokens of a row a token sees: so many places before it and after it. lengths: of the rows, where
    some are filled up; what fills a row is seen by nothing but what fills it."""

    before: int
    after: int
    lengths: tuple[int, ...] = ()


def causal(n: int, window: int) -> Sight:
    """Of rows of `n` tokens. window: places that a token sees, itself among them; 0: all before it."""
    return Sight((window or n) - 1, 0)


def of_rows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, sight: Sight, is_fused: bool = False
) -> torch.Tensor:
    """Of rows (rows, heads, tokens, head_dim); keys may have fewer heads.

    is_fused: forwards by torch's kernel, and backwards all queries in one block.
    """
    out: torch.Tensor = applied(_Blocks, q, k, v, scale, sight, is_fused)
    return out


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, sight: Sight) -> torch.Tensor:
    """The same by torch's kernel, both ways."""
    n = q.shape[2]
    is_causal = not sight.after and sight.before >= n - 1 and not sight.lengths
    seen = None if is_causal else _seen(sight, 0, n, 0, n)
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=None if seen is None else seen.to(q.device), is_causal=is_causal, scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip


class _Block(NamedTuple):
    """Queries, and the keys that any of them sees."""

    asked: slice
    keys: slice


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        sight: Sight,
        is_fused: bool,
    ) -> torch.Tensor:
        n = q.shape[2]
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.sight = scale, sight
        ctx.size = n if is_fused else size_of(q.shape[0] * q.shape[1], n)
        if is_fused:
            return fused(q, k, v, scale, sight)
        keys, values = _flat(k), _flat(v)
        asked = _by_keys(q * scale, keys)
        out = torch.empty_like(asked)
        for block in _cut(n, ctx.size, sight):
            likely = _probabilities(asked, keys, block, sight)
            mine = out[:, :, block.asked]
            mine.copy_(torch.bmm(likely, values[:, block.keys]).view(mine.shape))
        return out.view(q.shape)

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        keys, values = _flat(k), _flat(v)
        asked, told = _by_keys(q * ctx.scale, keys), _by_keys(out, keys)
        of_asked = torch.empty_like(asked)
        of_keys, of_values = _Sum(keys, ctx.size), _Sum(values, ctx.size)
        for block in _cut(q.shape[2], ctx.size, ctx.sight):
            likely = _probabilities(asked, keys, block, ctx.sight)
            here = _queries(told, block)
            of_values.add(block, torch.bmm(likely.transpose(1, 2), here))
            of_likely = torch.bmm(here, values[:, block.keys].transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_likely, likely, -1, likely.dtype)
            mine = of_asked[:, :, block.asked]
            mine.copy_(torch.bmm(of_scores, keys[:, block.keys]).mul_(ctx.scale).view(mine.shape))
            of_keys.add(block, torch.bmm(of_scores.transpose(1, 2), _queries(asked, block)))
        return of_asked.view(q.shape), of_keys.of(k), of_values.of(v), None, None, None


class _Sum:
    """What all blocks ask of the keys; of several in fp32."""

    def __init__(self, like: torch.Tensor, size: int) -> None:
        self._total = None if size >= like.shape[1] else torch.zeros_like(like, dtype=torch.float32)

    def add(self, block: _Block, part: torch.Tensor) -> None:
        """A block's part: (products, keys of the block, head_dim)."""
        if self._total is None:
            self._total = part
        else:
            self._total[:, block.keys] += part

    def of(self, like: torch.Tensor) -> torch.Tensor:
        """The sum, as the keys lie."""
        assert self._total is not None
        return self._total.to(like.dtype).view(like.shape)


def size_of(n_products: int, n: int) -> int:
    """Queries of a block, of rows of `n`: blocks of one size, the last at most a little smaller."""
    most = min(max(_LEAST, n // _PARTS), max(_WHOLE, _MOST // (n_products * n)))
    each = -(-n // -(-n // most))
    return each + -each % _WHOLE


def _cut(n: int, size: int, sight: Sight) -> Iterator[_Block]:
    for first in range(0, n, size):
        stop = min(first + size, n)
        yield _Block(slice(first, stop), slice(max(0, first - sight.before), min(n, stop + sight.after)))


def _flat(keys: torch.Tensor) -> torch.Tensor:
    """(rows, heads, tokens, head_dim) -> (products, tokens, head_dim)"""
    return keys.reshape(-1, *keys.shape[2:])


def _by_keys(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """(rows, heads, tokens, head_dim) -> (products, heads that share keys, tokens, head_dim)"""
    return x.reshape(len(keys), -1, *x.shape[2:])


def _queries(x: torch.Tensor, block: _Block) -> torch.Tensor:
    """(products, queries of all heads that share keys, head_dim)"""
    return x[:, :, block.asked].reshape(len(x), -1, x.shape[3])


def _probabilities(asked: torch.Tensor, keys: torch.Tensor, block: _Block, sight: Sight) -> torch.Tensor:
    """(products, queries of all heads that share keys, keys of the block)"""
    scores = torch.bmm(_queries(asked, block), keys[:, block.keys].transpose(1, 2))
    near = block.keys
    if not sight.lengths and not block.keys.start and sight.before >= block.asked.stop - 1:
        near = slice(block.asked.start, block.keys.stop)  # all see what is before the block
    shift = 0 if sight.lengths else near.start
    unseen = _unseen(sight, *_moved(block.asked, shift), *_moved(near, shift), scores.dtype, scores.device)
    if unseen is not None:
        rows = (len(sight.lengths) or 1, -1, block.asked.stop - block.asked.start, scores.shape[2])
        scores.view(rows)[..., near.start - block.keys.start :].add_(unseen)
    return torch.softmax(scores, -1)  # in fp32 within, whatever the dtype


def _moved(places: slice, shift: int) -> tuple[int, int]:
    return places.start - shift, places.stop - shift


@lru_cache(maxsize=64)
def _unseen(
    sight: Sight, first: int, stop: int, low: int, high: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    """0 where one sees another, else minus infinity: as _seen has it."""
    seen = _seen(sight, first, stop, low, high)
    if seen is None:
        return None
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf).to(device)


@lru_cache(maxsize=32)
def _seen(sight: Sight, first: int, stop: int, low: int, high: int) -> torch.Tensor | None:
    """(rows or 1, 1, tokens `first` to `stop`, `low` to `high`): whether one sees another; None: each all.

    Filler sees filler, so that no row of a softmax is empty: its gradient would be no number.
    """
    if stop - 1 - low <= sight.before and high - 1 - first <= sight.after and not sight.lengths:
        return None
    q, k = torch.arange(first, stop), torch.arange(low, high)
    ages = q[:, None] - k
    seen = ((ages <= sight.before) & (ages >= -sight.after))[None]
    if sight.lengths:
        lengths = torch.tensor(sight.lengths)[:, None]
        seen = seen & ((q < lengths)[:, :, None] == (k < lengths)[:, None])
    return seen[:, None]


def forget() -> None:
    """Let go of the masks that are kept."""
    for each in (_unseen, _seen):
        each.cache_clear()
