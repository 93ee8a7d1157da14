"""Causal attention within each document, for documents that are laid end to end.

Documents of like length are rows of one product. Torch's fused kernel is the faster way on a GPU, in fp32 and
on a CPU with AMX, where short rows take plain products on the way back. Elsewhere its bfloat16 is slow, and
all rows take products, a block of queries at a time: no square of a long document is ever held.

Promises: a document sees itself and no other; numbers are those of transformers, within rounding; the same
documents give the same bits.
Leaves to others: everything else of a network (network.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch

from heredity.train.kernels import attention_blocks
from heredity.train.kernels.patch import applied

SHORT = 192  # tokens up to which products were measured faster on the way back, wherever the kernel is quick
Lengths = tuple[int, ...]
OfRows = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Lengths], torch.Tensor]
STEP = 16  # places that rows differ by; every new size of a product costs time and memory to make ready
_LIKE = 0.75  # of the longest of its rows a document has at least so much
_ELSEWHERE = ContextVar("elsewhere", default=False)


def attend(
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
        sight = attention_blocks.causal(q.shape[2], window or 0)
        if q.shape[2] > SHORT and is_quick(q):
            return attention_blocks.fused(q, k, v, scale, sight)
        return attention_blocks.of_rows(q, k, v, scale, sight, is_fused=is_quick(q))

    return by_rows(query, key, value, lengths, of_rows), None


def is_quick(x: torch.Tensor) -> bool:
    """Whether torch's kernel is: on a CPU its bfloat16 is written for tiles (AMX)."""
    return x.device.type != "cpu" or x.dtype != torch.bfloat16 or _ELSEWHERE.get() or _has_tiles()


@lru_cache(maxsize=1)
def _has_tiles() -> bool:
    told = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return told is None or bool(told())


def by_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Lengths, of_rows: OfRows
) -> torch.Tensor:
    """What `of_rows` makes of documents of like length as rows, laid end to end again.

    query: (1, heads, tokens, head_dim); returns (1, tokens, heads, head_dim). of_rows: queries, keys and
    values (rows, heads, longest, head_dim), and how long each row is -> (rows, heads, longest, head_dim).
    """
    groups = _groups(lengths)
    sizes = [len(group) * longest for group, longest in groups]
    tokens = [x.squeeze(0).transpose(0, 1) for x in (query, key, value)]
    places = _places(lengths, query.device) if sum(sizes) > sum(lengths) else ()
    if places:
        tokens = [applied(_Rows, x, *places) for x in tokens]
    done: list[torch.Tensor] = []
    for (group, longest), *parts in zip(groups, *(x.split(sizes) for x in tokens), strict=True):
        q, k, v = (x.unflatten(0, (-1, longest)).transpose(1, 2) for x in parts)
        done.append(of_rows(q, k, v, group).transpose(1, 2).flatten(0, 1))
    out = torch.cat(done)
    if places:
        out = applied(_Documents, out, *places)
    return out.unsqueeze(0)


@lru_cache(maxsize=8)  # every layer asks the same
def _groups(lengths: Lengths) -> tuple[tuple[Lengths, int], ...]:
    """Documents that become rows of one product, and places of a row: its longest's, up to whole STEPs."""
    return tuple((group, max(group) + -max(group) % STEP) for group in alike(lengths))


@lru_cache(maxsize=8)
def _places(lengths: Lengths, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Which token stands in each place of all rows, one of the same document where none does; and back."""
    tokens: list[int] = []
    places: list[int] = []
    start = at = 0
    for group, longest in _groups(lengths):
        for n in group:
            tokens += [*range(start, start + n), *[start] * (longest - n)]
            places += range(at, at + n)
            start, at = start + n, at + longest
    return torch.tensor(tokens, device=device), torch.tensor(places, device=device)


class _Rows(torch.autograd.Function):
    """(tokens, ...) -> (places, ...). What a filler is told on the way back concerns nobody."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.places = places
        return x.index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return out.index_select(0, ctx.places), None, None


class _Documents(torch.autograd.Function):
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
def elsewhere() -> Iterator[None]:
    """As on another device, on which torch's kernel is quick, with fake tensors: of what is kept for the next
    product, nothing real is taken in here, and nothing fake out."""
    told = _ELSEWHERE.set(True)
    _forget()
    try:
        yield
    finally:
        _ELSEWHERE.reset(told)
        _forget()


def _forget() -> None:
    _places.cache_clear()
    attention_blocks.forget()


def alike(lengths: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Neighbours of like length, in order."""
    group: list[int] = []
    for n in lengths:
        both = (*group, n)
        if group and min(both) < _LIKE * max(both):
            yield tuple(group)
            group = []
        group.append(n)
    yield tuple(group)
