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

from heredity.train.attention import Lengths, by_rows


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

    def of_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group: Lengths) -> torch.Tensor:
        seen = _seen(group, q.shape[2], sliding_window or 0)
        seen = None if seen is None else seen.to(q.device)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)

    return by_rows(query, key, value, lengths, of_rows), None


def forget() -> None:
    """Let go of the masks that are kept: those on fake tensors are of no use to others."""
    _seen.cache_clear()


@lru_cache(maxsize=32)
def _seen(lengths: tuple[int, ...], longest: int, window: int) -> torch.Tensor | None:
    """(rows, 1, longest, longest): whether a token sees another; None where each sees all.

    Filler sees filler, so that no row of a softmax is empty: its gradient would be no number.
    """
    if min(lengths) == longest and (not window or window >= longest):
        return None
    at = torch.arange(longest)
    is_text = at < torch.tensor(lengths)[:, None]
    seen = is_text[:, None, :] == is_text[:, :, None]
    if window:
        seen = seen & ((at[:, None] - at).abs() < window)
    return seen[:, None]
