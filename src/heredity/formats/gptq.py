"""Matrices rounded to a few bits in groups with a shared scale: to nearest, or by GPTQ.

Rounding to nearest (RTN) looks at each weight by itself. GPTQ rounds one input column after another. It moves
the error of a column into the columns that are not rounded yet, so that the outputs on calibration inputs X
change least. The Hessian of that error is H = 2 X X'.

Promises: both round to the same grid, so that they compare. A Hessian of zeros gives RTN.

Source: Frantar et al. 2022 (GPTQ, 2210.17323), algorithm 1, with lazy updates by block and damping.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from heredity.core import host
from heredity.core.errors import Damaged, Refused
from heredity.core.progress import Meter, Watch
from heredity.formats.linear_layers import (
    decoder_layers,
    decoder_of,
    is_transposed,
    linear_layers,
    number_of,
    read_settings,
    stored_name,
)
from heredity.formats.safetensors_io import read_safetensors
from heredity.formats.weights import TensorFiles

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The matrices of a layer that have the same inputs, in the names of most architectures. Others stand alone.
_GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)

Tokens = tuple[int, ...]


class Arguments(NamedTuple):
    """The arguments of a layer, without the states: by position, and by name."""

    rest: tuple[object, ...]
    named: dict[str, object]


class GptqSettings(NamedTuple):
    """The grid, and the settings of `gptq`."""

    grid: RoundingGrid
    damp: float = 0.01
    act_order: bool = True


class MatrixError(NamedTuple):
    """Squared change of a matrix's outputs on held-out inputs, as a share of the squared outputs."""

    gptq: float
    nearest: float  # rounded to nearest on the same grid


@dataclass
class Calibrated:
    """Rounded matrices by name, in the file's dtype; error and damping of each group with the same inputs."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    errors: list[MatrixError] = field(default_factory=list)
    damps: list[float] = field(default_factory=list)

    @property
    def mean_error(self) -> MatrixError:
        """The mean over all groups, of which there must be one."""
        n = len(self.errors)
        return MatrixError(sum(e.gptq for e in self.errors) / n, sum(e.nearest for e in self.errors) / n)


def calibrate(
    folder: Path,
    sequences: Sequence[Tokens],
    n_held_out: int,
    settings: GptqSettings,
    dtype: str,
    watch: Watch | None = None,
) -> Calibrated:
    """Round every matrix of the layers in `folder`.

    sequences: tokens, all of one length. The last `n_held_out` do not calibrate: they measure the error.
    """
    from transformers import AutoModelForCausalLM

    host.prepare_transformers()
    here = {"trust_remote_code": False, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **here).eval()
    files = TensorFiles(folder, torch.float32)
    calibrated, layers = Calibrated(), list(decoder_layers(model))
    names = {id(module): name for name, module in linear_layers(model).items()}
    stored = {name: () for path in folder.glob("*.safetensors") for name in read_safetensors(path)}
    meter, n = Meter(watch, "calibrate", len(layers)), len(sequences) - n_held_out
    with torch.no_grad():
        states, arguments = _first_inputs(model, layers, sequences)
        for layer, given in zip(layers, arguments, strict=True):
            there = {name: module for name, module in layer.named_modules() if id(module) in names}
            fused = [group for group in _GROUPS if all(name in there for name in group)]
            joined = {name for group in fused for name in group}
            alone = [(module,) for name, module in there.items() if name not in joined]
            groups = [*(tuple(there[name] for name in group) for group in fused), *alone]
            hessians = _hessians(groups, layer, states[:n], given)
            held_out = _hessians(groups, layer, states[n:], given)
            for group in groups:
                whole = {stored_name(names[id(module)], stored): module for module in group}
                first = id(group[0])
                _round_group(calibrated, whole, files, settings, hessians[first], held_out.get(first))
            states = [_output(layer, each, given) for each in states]
            meter.tick()
    meter.close()
    return calibrated


def _round_group(
    calibrated: Calibrated,
    group: Mapping[str, nn.Module],
    files: TensorFiles,
    settings: GptqSettings,
    hessian: Tensor,
    held_out: Tensor | None,
) -> None:
    """Round the matrices of a group, by their stored names, in `calibrated` and in the model."""
    parts = [_oriented(files.read(name, as_stored=True), module) for name, module in group.items()]
    weight = torch.cat(parts).float()
    rounded, damp = gptq(weight, hessian, *settings)
    calibrated.damps.append(damp)
    if held_out is not None:
        nearest = round_to_nearest(weight, settings.grid)
        calibrated.errors.append(
            MatrixError(*(output_error(weight, each, held_out) for each in (rounded, nearest)))
        )
    split = rounded.split([len(part) for part in parts])
    for (name, module), part, matrix in zip(group.items(), parts, split, strict=True):
        calibrated.weights[name] = _oriented(matrix.to(part.dtype), module).contiguous()
        module.get_parameter("weight").copy_(_oriented(matrix, module))


def _oriented(matrix: Tensor, module: nn.Module) -> Tensor:
    """A stored matrix as (out, in), or back."""
    return matrix.t() if is_transposed(module) else matrix


def resolve_dtype(folder: Path, dtype: str) -> str:
    """The dtype to calibrate in: `dtype`, or the faster one for "auto"."""
    if dtype != "auto":
        return dtype
    settings = read_settings(folder)
    width = number_of(settings, "hidden_size") or 0
    return host.choose_dtype(width, number_of(settings, "intermediate_size") or 4 * width)


class _FirstInput(Exception):
    """The states before the first layer."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def _split(positional: tuple[Tensor, ...], named: dict[str, object]) -> tuple[Tensor, Arguments]:
    """The states that a layer is called with, and the other arguments."""
    if positional:
        return positional[0], Arguments(positional[1:], named)
    states = named["hidden_states"]
    assert isinstance(states, Tensor)
    return states, Arguments((), {name: each for name, each in named.items() if name != "hidden_states"})


def _first_inputs(
    model: PreTrainedModel, layers: Sequence[nn.Module], sequences: Sequence[Tokens]
) -> tuple[list[Tensor], list[Arguments]]:
    """The states before the first layer, by sequence, and the other arguments of each layer.

    Those (rotations, mask) depend on the length only, which all sequences share.
    """
    arguments: list[Arguments] = []
    states: list[Tensor] = []

    def keep(_: nn.Module, positional: tuple[Tensor, ...], named: dict[str, object]) -> None:
        arguments.append(_split(positional, named)[1])

    def stop(_: nn.Module, positional: tuple[Tensor, ...], named: dict[str, object]) -> None:
        raise _FirstInput(_split(positional, named)[0])

    with _hooked([layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]):
        decoder_of(model)(input_ids=torch.tensor([sequences[0]]), use_cache=False)
    with _hooked([layers[0].register_forward_pre_hook(stop, with_kwargs=True)]):
        for each in sequences:
            try:
                decoder_of(model)(input_ids=torch.tensor([each]), use_cache=False)
            except _FirstInput as found:
                states.append(found.states)
    return states, arguments


def _hessians(
    groups: Sequence[tuple[nn.Module, ...]], layer: nn.Module, states: Sequence[Tensor], given: Arguments
) -> dict[int, Tensor]:
    """2 X X' of the inputs of each group of matrices, by the identity of its first module."""
    hessians: dict[int, Tensor] = {}

    def add(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        x = inputs[0].flatten(0, -2).float()
        if id(module) not in hessians:
            hessians[id(module)] = torch.zeros(x.shape[1], x.shape[1])
        hessians[id(module)].addmm_(x.t(), x, alpha=2)

    with _hooked([group[0].register_forward_hook(add) for group in groups]):
        for state in states:
            _output(layer, state, given)
    return hessians


def _output(layer: nn.Module, state: Tensor, given: Arguments) -> Tensor:
    hidden = layer(state, *given.rest, **given.named)
    output: Tensor = hidden[0] if isinstance(hidden, tuple) else hidden
    return output


@contextmanager
def _hooked(handles: Sequence[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    n_block: int = 128,
) -> Rounded:
    """Round a matrix (outputs, inputs) by GPTQ. n_block: columns between two updates of all later columns.

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
    step = width * max(1, n_block // width)  # whole groups
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
