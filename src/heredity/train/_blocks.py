"""Causal attention of rows as plain products, a block of queries at a time, each by the keys that it sees.

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

from heredity.train._quick import applied

_LEAST, _PARTS = 128, 8  # queries of a block: so many, or such a part of the row, whichever is more
_MOST = 1 << 24  # scores that are there at once
_WHOLE = 16  # queries that a block is a multiple of


def of_rows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int, is_fused: bool
) -> torch.Tensor:
    """Of rows (rows, heads, tokens, head_dim); keys may have fewer heads.

    window: places that a token sees, itself among them; 0: all before it. is_fused: forwards by torch's
    kernel, and backwards all queries in one block.
    """
    out: torch.Tensor = applied(_Blocks, q, k, v, scale, window, is_fused)
    return out


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int) -> torch.Tensor:
    """The same by torch's kernel, both ways."""
    seen = _seen(q.shape[2], q.shape[2], window).to(q.device) if window else None
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=seen, is_causal=seen is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


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
        window: int,
        is_fused: bool,
    ) -> torch.Tensor:
        n = q.shape[2]
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.window = scale, window
        ctx.size = n if is_fused else size_of(q.shape[0] * q.shape[1], n)
        if is_fused:
            return fused(q, k, v, scale, window)
        keys, values = _flat(k), _flat(v)
        asked = _by_keys(q * scale, keys)
        out = torch.empty_like(asked)
        for block in _cut(n, ctx.size, window):
            likely = _probabilities(asked, keys, block, window)
            out[:, :, block.asked] = torch.bmm(likely, values[:, block.keys]).view(
                out[:, :, block.asked].shape
            )
        return out.view(q.shape)

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        keys, values = _flat(k), _flat(v)
        asked, told = _by_keys(q * ctx.scale, keys), _by_keys(out, keys)
        of_asked = torch.empty_like(asked)
        of_keys, of_values = _Sum(keys, ctx.size), _Sum(values, ctx.size)
        for block in _cut(q.shape[2], ctx.size, ctx.window):
            likely = _probabilities(asked, keys, block, ctx.window)
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


def _cut(n: int, size: int, window: int) -> Iterator[_Block]:
    for first in range(0, n, size):
        low = max(0, first - window + 1) if window else 0
        yield _Block(slice(first, min(first + size, n)), slice(low, min(first + size, n)))


def _flat(keys: torch.Tensor) -> torch.Tensor:
    """(rows, heads, tokens, head_dim) -> (products, tokens, head_dim)"""
    return keys.reshape(-1, *keys.shape[2:])


def _by_keys(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """(rows, heads, tokens, head_dim) -> (products, heads that share keys, tokens, head_dim)"""
    return x.reshape(len(keys), -1, *x.shape[2:])


def _queries(x: torch.Tensor, block: _Block) -> torch.Tensor:
    """(products, queries of all heads that share keys, head_dim)"""
    return x[:, :, block.asked].reshape(len(x), -1, x.shape[3])


def _probabilities(asked: torch.Tensor, keys: torch.Tensor, block: _Block, window: int) -> torch.Tensor:
    """(products, queries of all heads that share keys, keys of the block)"""
    scores = torch.bmm(_queries(asked, block), keys[:, block.keys].transpose(1, 2))
    n_asked, n_keys = (x.stop - x.start for x in (block.asked, block.keys))
    n_near = n_keys if window else n_asked  # without a window all see what is before the block
    unseen = _unseen(n_asked, n_near, window, scores.dtype, scores.device)
    scores.view(len(keys), -1, n_asked, n_keys)[..., n_keys - n_near :].add_(unseen)
    return torch.softmax(scores, -1)  # in fp32 within, whatever the dtype


def _seen(n_asked: int, n_keys: int, window: int) -> torch.Tensor:
    """(queries, keys): whether the last so many tokens see another, themselves and at most `window - 1`
    before (0: all)."""
    ages = torch.arange(n_keys - n_asked, n_keys)[:, None] - torch.arange(n_keys)[None]
    return (ages >= 0) & (ages < (window or n_keys))


@lru_cache(maxsize=32)
def _unseen(n_asked: int, n_keys: int, window: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(queries, keys): 0 where a token sees another, else minus infinity."""
    seen = _seen(n_asked, n_keys, window)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf).to(device)


def forget() -> None:
    """Let go of the masks that are kept: those on fake tensors are of no use to others."""
    _unseen.cache_clear()
