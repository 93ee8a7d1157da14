"""Matrices rounded to a few bits in groups with a shared scale: to nearest, or by GPTQ.

Rounding to nearest (RTN) looks at each weight by itself. GPTQ rounds one input column after another. It moves
the error of a column into the columns that are not rounded yet, so that the outputs on calibration inputs X
change least. The Hessian of that error is H = 2 X X'.

Promises: both round to the same grid, so that they compare. A Hessian of zeros gives RTN.
Leaves to others: which inputs calibrate (calibrate.py), and how the result is stored.

Source: Frantar et al. 2022 (GPTQ, 2210.17323), algorithm 1, with lazy updates by block and damping.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from heredity.core.errors import Damaged, Refused

BLOCK = 128  # columns between two updates of all later columns
_NARROWEST = 16  # inputs of a group; narrower ones spend more bits on scales than on weights


class RoundingGrid(NamedTuple):
    """Whole numbers of `bits` bits, and a scale for every `group_size` inputs of an output.

    is_symmetric: the zero lies in the middle. Otherwise each group has a zero of its own, of `bits` bits.
    Scales have the precision of bfloat16.
    """

    bits: int
    group_size: int = 128
    is_symmetric: bool = False

    @property
    def largest(self) -> int:
        """The largest whole number."""
        return int(2**self.bits - 1)

    def width(self, n_inputs: int) -> int:
        """Inputs of a group: `group_size`, or the largest divisor of it that also divides the inputs.

        Raises Refused if that is too narrow.
        """
        width = math.gcd(self.group_size, n_inputs)
        if width < _NARROWEST:
            raise Refused(
                f"A matrix of {n_inputs} inputs has no whole groups: {self.group_size} and {n_inputs} have"
                f" only {width} in common. Choose another group_size."
            )
        return width

    def bits_per_weight(self, n_inputs: int) -> float:
        """Bits that a packed weight takes, with its share of scale and zero."""
        return self.bits + (16 + (0 if self.is_symmetric else self.bits)) / self.width(n_inputs)

    def scales(self, group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and zero (outputs,) of a group of weights (inputs, outputs)."""
        low, high = group.amin(0).clamp(max=0), group.amax(0).clamp(min=0)
        if self.is_symmetric:
            high = torch.maximum(-low, high)
            low = -high
        scale = ((high - low) / self.largest).bfloat16().float()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        if self.is_symmetric:
            return scale, torch.full_like(scale, (self.largest + 1) / 2)
        return scale, torch.round(-low / scale)

    def round(self, weights: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """Return the numbers of the grid that are nearest to the weights (..., outputs)."""
        whole = torch.clamp(torch.round(weights / scale) + zero, 0, self.largest)
        return (whole - zero) * scale


class Rounded(NamedTuple):
    """A matrix (outputs, inputs) rounded by GPTQ, in fp32, and the damping that its Hessian needed."""

    weight: torch.Tensor
    damp: float


def round_to_nearest(weight: torch.Tensor, grid: RoundingGrid) -> torch.Tensor:
    """Return a matrix (outputs, inputs), each weight rounded by itself; fp32. Raises Damaged, Refused."""
    columns = _columns(weight)
    width = grid.width(len(columns))
    for start in range(0, len(columns), width):
        group = columns[start : start + width]
        columns[start : start + width] = grid.round(group, *grid.scales(group))
    return columns.t().contiguous()


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    grid: RoundingGrid,
    damp: float = 0.01,
    act_order: bool = True,
) -> Rounded:
    """Round a matrix (outputs, inputs) by GPTQ.

    hessian: (inputs, inputs), in any scale. damp: this share of its mean diagonal is added to the diagonal;
    ten times as much, again and again, until the Hessian can be inverted.
    act_order: columns with the largest diagonal first. All scales then come from the weights as they are.
    Otherwise a group's scale comes from its weights after the updates by earlier groups.
    Raises Damaged for NaN or infinity, and Refused for inputs without whole groups.
    """
    columns = _columns(weight)
    width = grid.width(len(columns))
    fixed = [grid.scales(group) for group in columns.split(width)] if act_order else []
    order = torch.arange(len(columns))
    if act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
        columns, hessian = columns[order], hessian[order][:, order]
    factor, damp = _inverse_factor(hessian, damp)
    step = width * max(1, BLOCK // width)  # whole groups
    for start in range(0, len(columns), step):
        block, inside = columns[start : start + step], factor[start : start + step, start : start + step]
        errors = torch.empty_like(block)
        for i in range(len(block)):
            if act_order:
                scale, zero = fixed[int(order[start + i]) // width]
            elif i % width == 0:
                scale, zero = grid.scales(block[i : i + width])
            rounded = grid.round(block[i], scale, zero)
            errors[i] = (block[i] - rounded) / inside[i, i]
            block[i + 1 :].addr_(inside[i, i + 1 :], errors[i], alpha=-1)
            block[i] = rounded
        columns[start + step :].addmm_(factor[start : start + step, start + step :].t(), errors, alpha=-1)
    return Rounded(columns[torch.argsort(order)].t().contiguous(), damp)


def output_error(weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor) -> float:
    """Return the squared change of the outputs on the calibration inputs, over the squared outputs."""
    wide = weight.float()
    change = rounded.float() - wide
    outputs = float(((wide @ hessian) * wide).sum())
    return float(((change @ hessian) * change).sum()) / outputs if outputs else 0.0


def _columns(weight: torch.Tensor) -> torch.Tensor:
    """A copy (inputs, outputs) in fp32: a column of the matrix is then one piece of memory."""
    columns = weight.float().t().contiguous().clone()
    if not bool(torch.isfinite(columns).all()):
        raise Damaged("A matrix holds values that are no numbers; it cannot be rounded.")
    return columns


def _inverse_factor(hessian: torch.Tensor, damp: float) -> tuple[torch.Tensor, float]:
    """Return U, upper triangular, with U' U the inverse of the damped Hessian, and the damping.

    Row i of U, over its diagonal, is that of the inverse Hessian of the columns from i on: what OBS needs.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise Damaged("The calibration inputs hold values that are no numbers.")
    mean = float(hessian.diagonal().mean())
    if mean <= 0:
        return torch.eye(len(hessian)), damp
    while True:  # in fp32 a damping of 1 % is not always enough
        damped = hessian.clone()
        damped.diagonal().add_(damp * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper, damp
        damp *= 10
