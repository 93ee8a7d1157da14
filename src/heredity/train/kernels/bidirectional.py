"""Attention to both sides within each document, for documents that are laid end to end.

Documents of like length are rows of one product, of torch's fused kernel where it is quick, as in
attention.py; what fills a shorter row up is seen by no token of it.

Promises: a document sees itself and no other; numbers are those of transformers, within rounding; the same
documents give the same bits.
Leaves to others: everything else of a network (encoder.py).
"""

from __future__ import annotations

from typing import Any

import torch

from heredity.train.kernels import attention_blocks
from heredity.train.kernels.attention import Lengths, by_rows, is_quick


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
        n, window = q.shape[2], sliding_window or q.shape[2]
        sight = attention_blocks.Sight(window - 1, window - 1, () if min(group) == n else group)
        if not is_quick(q):
            return attention_blocks.of_rows(q, k, v, scale, sight)
        is_cut = window < n  # the kernel has a mask a row then, as planning/anatomies/modernbert.py counts it
        return attention_blocks.fused(q, k, v, scale, sight._replace(lengths=group) if is_cut else sight)

    return by_rows(query, key, value, lengths, of_rows), None
