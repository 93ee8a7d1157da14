"""Matrices of integers from -127 to 127 with one scale per output: their rounding, and their matmul.

A matmul rounds its input in the same way, with one scale per row, and sums in int32. The sums are exact, so
the numbers of a row do not depend on the batch. torch's own dynamic quantization uses one scale for all rows,
so that they do.

Promises: a processor whose int8 matmul is not exact (some sum pairs in 16 bits) is detected before it is
used.
Leaves to others: the files (int8_write.py), and processors without an exact matmul (weights.py).

Format: compressed-tensors' "int-quantized", weights by channel, activations by token and dynamic:
NAME.weight is int8 (outputs, inputs), NAME.weight_scale fp32 (outputs, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from heredity.core.errors import Damaged
from heredity.formats.architectures import INT8

HOW = INT8
MAX_CODE = 127
SCALE = "_scale"  # suffix of the name of a matrix: its scales
EXACT, WIDENED = "int8 products", "int8 weights widened"

Linear = Callable[[torch.Tensor], torch.Tensor]


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 (outputs, inputs) and fp32 scales (outputs, 1). Raises Damaged for NaN or infinity."""
    weight32 = weight.float()
    largest = weight32.abs().amax(-1, keepdim=True)
    if not bool(torch.isfinite(largest).all()):
        raise Damaged("A matrix holds values that are no numbers; it cannot be rounded.")
    scale = torch.where(largest > 0, largest / MAX_CODE, torch.ones_like(largest))
    return torch.round(weight32 / scale).to(torch.int8), scale


def dequantize(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the numbers that the integers represent, rounded once to `dtype`."""
    return (weight.float() * scale.float()).to(dtype)


def quantized_linear(weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """Return x (rows, inputs) -> (rows, outputs) in x's dtype, computed in integers."""
    columns, output_scale = weight.t(), scale.float()[:, 0]

    def multiply(x: torch.Tensor) -> torch.Tensor:
        x32 = x.float()
        row_scale = x32.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / MAX_CODE
        quantized = torch.round(x32 / row_scale).clamp_(-MAX_CODE, MAX_CODE).to(torch.int8)
        out = torch._int_mm(quantized, columns).float().mul_(row_scale).mul_(output_scale)
        return (out if bias is None else out.add_(bias)).to(x.dtype)

    return multiply


@cache
def is_exact() -> bool:
    """Return True if this processor has an int8 matmul that is exact for the largest sums."""
    a, b = (
        torch.full((17, 192), MAX_CODE, dtype=torch.int8),
        torch.full((48, 192), MAX_CODE, dtype=torch.int8),
    )
    b[::2] = -MAX_CODE
    wanted = a.long() @ b.long().t()
    try:
        return all(
            torch.equal(torch._int_mm(a[:n].contiguous(), b.t()).long(), wanted[:n]) for n in (1, 4, 17)
        )
    except (RuntimeError, AttributeError):
        return False
