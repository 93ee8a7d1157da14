"""Attention of rows as plain products, a block of queries at a time, each by the keys that any of it sees.

Probabilities are made again on the way back, so that none is kept, and a block's alone are ever there.

Promises: numbers are those of torch's kernel, within rounding; the same rows give the same bits.
Leaves to others: when this is the faster way (attention.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from heredity.train.kernels.patch import apply_function

_MIN_QUERIES, _MAX_BLOCKS = (
    128,
    8,
)  # queries of a block: so many, or such a part of the row, whichever is more
_MAX_SCORES = 1 << 24  # scores that are there at once
_QUERY_MULTIPLE = 16  # queries that a block is a multiple of


class AttentionWindow(NamedTuple):
    """Which tokens of a row a token sees: so many places before it and after it. lengths: of the rows, where
    some are filled up; what fills a row is seen by nothing but what fills it."""

    before: int
    after: int
    lengths: tuple[int, ...] = ()


def causal_window(n: int, window: int) -> AttentionWindow:
    """Of rows of `n` tokens. window: places that a token sees, itself among them; 0: all before it."""
    return AttentionWindow((window or n) - 1, 0)


def blockwise_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    sight: AttentionWindow,
    is_fused: bool = False,
) -> torch.Tensor:
    """Of rows (rows, heads, tokens, head_dim); keys may have fewer heads.

    is_fused: forwards by torch's kernel, and backwards all queries in one block.
    """
    out: torch.Tensor = apply_function(_BlockwiseAttention, q, k, v, scale, sight, is_fused)
    return out


def fused_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, sight: AttentionWindow
) -> torch.Tensor:
    """The same by torch's kernel, both ways."""
    n = q.shape[2]
    is_causal = not sight.after and sight.before >= n - 1 and not sight.lengths
    seen = None if is_causal else _visibility(sight, 0, n, 0, n)
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=None if seen is None else seen.to(q.device), is_causal=is_causal, scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip


class _Block(NamedTuple):
    """Queries, and the keys that any of them sees."""

    asked: slice
    keys: slice


class _BlockwiseAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        sight: AttentionWindow,
        is_fused: bool,
    ) -> torch.Tensor:
        n = q.shape[2]
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.sight = scale, sight
        ctx.size = n if is_fused else block_size(q.shape[0] * q.shape[1], n)
        if is_fused:
            return fused_attention(q, k, v, scale, sight)
        keys, values = _flatten_heads(k), _flatten_heads(v)
        asked = _group_by_keys(q * scale, keys)
        out = torch.empty_like(asked)
        for block in _blocks(n, ctx.size, sight):
            likely = _probabilities(asked, keys, block, sight)
            mine = out[:, :, block.asked]
            mine.copy_(torch.bmm(likely, values[:, block.keys]).view(mine.shape))
        return out.view(q.shape)

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        keys, values = _flatten_heads(k), _flatten_heads(v)
        asked, told = _group_by_keys(q * ctx.scale, keys), _group_by_keys(out, keys)
        of_asked = torch.empty_like(asked)
        of_keys, of_values = _GradientSum(keys, ctx.size), _GradientSum(values, ctx.size)
        for block in _blocks(q.shape[2], ctx.size, ctx.sight):
            likely = _probabilities(asked, keys, block, ctx.sight)
            here = _queries(told, block)
            of_values.add(block, torch.bmm(likely.transpose(1, 2), here))
            of_likely = torch.bmm(here, values[:, block.keys].transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_likely, likely, -1, likely.dtype)
            mine = of_asked[:, :, block.asked]
            mine.copy_(torch.bmm(of_scores, keys[:, block.keys]).mul_(ctx.scale).view(mine.shape))
            of_keys.add(block, torch.bmm(of_scores.transpose(1, 2), _queries(asked, block)))
        return of_asked.view(q.shape), of_keys.of(k), of_values.of(v), None, None, None


class _GradientSum:
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


def block_size(n_products: int, n: int) -> int:
    """Queries of a block, of rows of `n`: blocks of one size, the last at most a little smaller."""
    most = min(max(_MIN_QUERIES, n // _MAX_BLOCKS), max(_QUERY_MULTIPLE, _MAX_SCORES // (n_products * n)))
    each = -(-n // -(-n // most))
    return each + -each % _QUERY_MULTIPLE


def _blocks(n: int, size: int, sight: AttentionWindow) -> Iterator[_Block]:
    for first in range(0, n, size):
        stop = min(first + size, n)
        yield _Block(slice(first, stop), slice(max(0, first - sight.before), min(n, stop + sight.after)))


def _flatten_heads(keys: torch.Tensor) -> torch.Tensor:
    """(rows, heads, tokens, head_dim) -> (products, tokens, head_dim)"""
    return keys.reshape(-1, *keys.shape[2:])


def _group_by_keys(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """(rows, heads, tokens, head_dim) -> (products, heads that share keys, tokens, head_dim)"""
    return x.reshape(len(keys), -1, *x.shape[2:])


def _queries(x: torch.Tensor, block: _Block) -> torch.Tensor:
    """(products, queries of all heads that share keys, head_dim)"""
    return x[:, :, block.asked].reshape(len(x), -1, x.shape[3])


def _probabilities(
    asked: torch.Tensor, keys: torch.Tensor, block: _Block, sight: AttentionWindow
) -> torch.Tensor:
    """(products, queries of all heads that share keys, keys of the block)"""
    scores = torch.bmm(_queries(asked, block), keys[:, block.keys].transpose(1, 2))
    near = block.keys
    if not sight.lengths and not block.keys.start and sight.before >= block.asked.stop - 1:
        near = slice(block.asked.start, block.keys.stop)  # all see what is before the block
    shift = 0 if sight.lengths else near.start
    unseen = _additive_mask(
        sight, *_shift(block.asked, shift), *_shift(near, shift), scores.dtype, scores.device
    )
    if unseen is not None:
        rows = (len(sight.lengths) or 1, -1, block.asked.stop - block.asked.start, scores.shape[2])
        scores.view(rows)[..., near.start - block.keys.start :].add_(unseen)
    return torch.softmax(scores, -1)  # in fp32 within, whatever the dtype


def _shift(places: slice, shift: int) -> tuple[int, int]:
    return places.start - shift, places.stop - shift


@lru_cache(maxsize=64)
def _additive_mask(
    sight: AttentionWindow,
    first: int,
    stop: int,
    low: int,
    high: int,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor | None:
    """0 where one sees another, else minus infinity: as _seen has it."""
    seen = _visibility(sight, first, stop, low, high)
    if seen is None:
        return None
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf).to(device)


@lru_cache(maxsize=32)
def _visibility(sight: AttentionWindow, first: int, stop: int, low: int, high: int) -> torch.Tensor | None:
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


def clear_mask_caches() -> None:
    """Let go of the masks that are kept."""
    for each in (_additive_mask, _visibility):
        each.cache_clear()


SHORT_ROWS = (
    192  # tokens up to which products were measured faster on the way back, wherever the kernel is quick
)
Lengths = tuple[int, ...]
RowAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Lengths], torch.Tensor]
ROW_MULTIPLE = (
    16  # places that rows differ by; every new size of a product costs time and memory to make ready
)
_MIN_LENGTH_RATIO = 0.75  # of the longest of its rows a document has at least so much
_ASSUMES_ACCELERATOR = ContextVar("elsewhere", default=False)


def causal_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 (documents are their own masks)
    scaling: float | None = None,
    lengths: tuple[int, ...] = (),
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers asks of an attention.

    query: (1, heads, tokens, head_dim); returns (1, tokens, heads, head_dim).
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window is not None else getattr(module, "sliding_window", None)

    def of_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: Lengths) -> torch.Tensor:
        sight = causal_window(q.shape[2], window or 0)
        if q.shape[2] > SHORT_ROWS and is_fused_kernel_fast(q):
            return fused_attention(q, k, v, scale, sight)
        return blockwise_attention(q, k, v, scale, sight, is_fused=is_fused_kernel_fast(q))

    return attend_by_rows(query, key, value, lengths, of_rows), None


def is_fused_kernel_fast(x: torch.Tensor) -> bool:
    """Whether torch's kernel is: on a CPU its bfloat16 is written for tiles (AMX)."""
    return x.device.type != "cpu" or x.dtype != torch.bfloat16 or _ASSUMES_ACCELERATOR.get() or _has_amx()


@lru_cache(maxsize=1)
def _has_amx() -> bool:
    told = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return told is None or bool(told())


def attend_by_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Lengths, of_rows: RowAttention
) -> torch.Tensor:
    """What `of_rows` makes of documents of like length as rows, laid end to end again.

    query: (1, heads, tokens, head_dim); returns (1, tokens, heads, head_dim). of_rows: queries, keys and
    values (rows, heads, longest, head_dim), and how long each row is -> (rows, heads, longest, head_dim).
    """
    groups = _row_groups(lengths)
    sizes = [len(group) * longest for group, longest in groups]
    tokens = [x.squeeze(0).transpose(0, 1) for x in (query, key, value)]
    places = _row_indices(lengths, query.device) if sum(sizes) > sum(lengths) else ()
    if places:
        tokens = [apply_function(_ToRows, x, *places) for x in tokens]
    done: list[torch.Tensor] = []
    for (group, longest), *parts in zip(groups, *(x.split(sizes) for x in tokens), strict=True):
        q, k, v = (x.unflatten(0, (-1, longest)).transpose(1, 2) for x in parts)
        done.append(of_rows(q, k, v, group).transpose(1, 2).flatten(0, 1))
    out = torch.cat(done)
    if places:
        out = apply_function(_FromRows, out, *places)
    return out.unsqueeze(0)


@lru_cache(maxsize=8)  # every layer asks the same
def _row_groups(lengths: Lengths) -> tuple[tuple[Lengths, int], ...]:
    """Documents that become rows of one product, and places of a row: its longest's, up to whole STEPs."""
    return tuple((group, max(group) + -max(group) % ROW_MULTIPLE) for group in group_by_length_ratio(lengths))


@lru_cache(maxsize=8)
def _row_indices(lengths: Lengths, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Which token stands in each place of all rows, one of the same document where none does; and back."""
    tokens: list[int] = []
    places: list[int] = []
    start = at = 0
    for group, longest in _row_groups(lengths):
        for n in group:
            tokens += [*range(start, start + n), *[start] * (longest - n)]
            places += range(at, at + n)
            start, at = start + n, at + longest
    return torch.tensor(tokens, device=device), torch.tensor(places, device=device)


class _ToRows(torch.autograd.Function):
    """(tokens, ...) -> (places, ...). What a filler is told on the way back concerns nobody."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.places = places
        return x.index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return out.index_select(0, ctx.places), None, None


class _FromRows(torch.autograd.Function):
    """(places, ...) -> (tokens, ...), without the fillers."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.places, ctx.n = places, len(tokens)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        rows = out.new_zeros((ctx.n, *out.shape[1:]))
        return rows.index_copy_(0, ctx.places, out), None, None


@contextmanager
def assume_accelerator() -> Iterator[None]:
    """As on another device, on which torch's kernel is quick, with fake tensors: of what is kept for the next
    product, nothing real is taken in here, and nothing fake out."""
    told = _ASSUMES_ACCELERATOR.set(True)
    _clear_caches()
    try:
        yield
    finally:
        _ASSUMES_ACCELERATOR.reset(told)
        _clear_caches()


def _clear_caches() -> None:
    _row_indices.cache_clear()
    clear_mask_caches()


def group_by_length_ratio(lengths: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Neighbours of like length, in order."""
    group: list[int] = []
    for n in lengths:
        both = (*group, n)
        if group and min(both) < _MIN_LENGTH_RATIO * max(both):
            yield tuple(group)
            group = []
        group.append(n)
    yield tuple(group)


def bidirectional_attention(
    module: Any,  # noqa: ARG001 (transformers gives it)
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 (documents are their own masks)
    scaling: float | None = None,
    lengths: tuple[int, ...] = (),
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers asks of an attention. sliding_window: distance from which on nothing is seen.

    query: (1, heads, tokens, head_dim); returns (1, tokens, heads, head_dim).
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling

    def of_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group: Lengths) -> torch.Tensor:
        n, window = q.shape[2], sliding_window or q.shape[2]
        sight = AttentionWindow(window - 1, window - 1, () if min(group) == n else group)
        if not is_fused_kernel_fast(q):
            return blockwise_attention(q, k, v, scale, sight)
        is_cut = window < n  # the kernel has a mask a row then, as planning/anatomies/modernbert.py counts it
        return fused_attention(q, k, v, scale, sight._replace(lengths=group) if is_cut else sight)

    return attend_by_rows(query, key, value, lengths, of_rows), None
