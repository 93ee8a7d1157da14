"""Attention to both sides within each document, for documents that are laid end to end.

Documents of like length are rows of one product of torch's fused kernel, as in attention.py; what fills a
shorter row up is seen by no token of it.

Promises: a document sees itself and no other; numbers are those of transformers, within rounding; the same
documents give the same bits.
Leaves to others: everything else of a network (encoder.py).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional

from heredity.train.attention import alike, in_rows


def attend(
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
    groups = list(alike(lengths))
    sizes = [sum(group) for group in groups]
    parts = zip(groups, *(x[0].split(sizes, 1) for x in (query, key, value)), strict=True)
    done = [_of_group(group, q, k, v, scale, sliding_window or 0) for group, q, k, v in parts]
    return torch.cat(done)[None], None


def _of_group(
    lengths: tuple[int, ...], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int
) -> torch.Tensor:
    """(heads, tokens, head_dim) of documents that become rows -> (tokens, heads, head_dim)."""
    rows_q, rows_k, rows_v = (in_rows(x, lengths) for x in (q, k, v))
    seen = _seen(lengths, window)
    seen = None if seen is None else seen.to(q.device)
    out = functional.scaled_dot_product_attention(rows_q, rows_k, rows_v, attn_mask=seen, scale=scale)
    rows = zip(out.transpose(1, 2).unbind(0), lengths, strict=True)
    return torch.cat([row[:n] for row, n in rows])


@lru_cache(maxsize=32)
def _seen(lengths: tuple[int, ...], window: int) -> torch.Tensor | None:
    """(rows, 1, longest, longest): whether a token sees another; None where each sees all.

    Filler sees filler, so that no row of a softmax is empty: its gradient would be no number.
    """
    longest = max(lengths)
    if min(lengths) == longest and (not window or window >= longest):
        return None
    at = torch.arange(longest)
    is_text = at < torch.tensor(lengths)[:, None]
    seen = is_text[:, None, :] == is_text[:, :, None]
    if window:
        seen = seen & ((at[:, None] - at).abs() < window)
    return seen[:, None]
