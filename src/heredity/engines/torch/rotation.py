"""Rotations (RoPE) of other forms than Llama's: some channels only, neighbouring channels, or none.

Promises: a row's rotation depends only on its position.
Leaves to others: the frequencies (formats/weights.py), and Llama's form (decoder.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from heredity.formats.architectures import ARCHITECTURES
from heredity.formats.decoder_shape import DecoderShape


class Rotation(NamedTuple):
    """The changes of queries and keys that depend on their positions.

    cos, signed sin: (rows, 1, head_dim); None for layers that rotate nothing. temperature: factors on the
    queries, (rows, 1, 1).
    """

    cos: torch.Tensor | None = None
    sin: torch.Tensor | None = None
    temperature: torch.Tensor | None = None


def partners(shape: DecoderShape, n_pairs: int) -> torch.Tensor:
    """Return the channel that each channel of a head is rotated with. n_pairs: pairs of rotated channels."""
    order = torch.arange(shape.head_dim)
    if ARCHITECTURES[shape.model_type].rotates_neighbours:
        return order.view(-1, 2).flip(-1).flatten()
    return torch.cat([order[n_pairs : 2 * n_pairs], order[:n_pairs], order[2 * n_pairs :]])


def spread(shape: DecoderShape, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and signed sin by channel, (rows, 1, head_dim), from those by pair: for `partners`."""
    if ARCHITECTURES[shape.model_type].rotates_neighbours:
        return cos.repeat_interleave(2, -1), torch.stack([-sin, sin], -1).flatten(-2)
    rest = cos.new_ones(len(cos), 1, shape.head_dim - 2 * cos.shape[-1])  # channels that keep their values
    return torch.cat([cos, cos, rest], -1), torch.cat([-sin, sin, 0 * rest], -1)


def temperatures(n_step: float, strength: float, positions: torch.Tensor) -> torch.Tensor:
    """Return factors on queries that grow with the position by steps of n_step tokens: (rows, 1, 1), fp32.

    Source: Nakanishi 2025 (2501.19399), as Llama 4 has it.
    """
    steps = torch.floor((positions.to(torch.float32) + 1.0) / n_step)
    return (torch.log1p(steps) * strength + 1.0)[:, None, None]
