"""Run GPTQ through a decoder, layer by layer, on calibration text.

The inputs of a layer are those that the rounded layers before it give. All matrices of a layer see the layer
unrounded, as in the paper's own code.

Promises: one layer's Hessians are in memory at a time. Embedding, head, norms and biases stay as they are.
Leaves to others: the rounding of a matrix (gptq.py), and writing the child (recipes/quantize.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from heredity.core import host
from heredity.core.progress import Meter, Watch
from heredity.formats import gptq
from heredity.formats.gptq import RoundingGrid
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
    """The grid, and the settings of gptq.gptq."""

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
    model = _model(folder, dtype)
    files = TensorFiles(folder, torch.float32)
    found = Calibrated()
    layers = list(decoder_layers(model))
    names = {id(module): name for name, module in linear_layers(model).items()}
    stored = {name: () for path in folder.glob("*.safetensors") for name in read_safetensors(path)}
    meter = Meter(watch, "calibrate", len(layers))
    n = len(sequences) - n_held_out
    with torch.no_grad():
        states, arguments = _first_inputs(model, layers, sequences)
        for layer, given in zip(layers, arguments, strict=True):
            groups = _groups(layer, names)
            hessians = _hessians(groups, layer, states[:n], given)
            held_out = _hessians(groups, layer, states[n:], given)
            for group in groups:
                whole = {stored_name(names[id(module)], stored): module for module in group}
                first = id(group[0])
                _round_group(found, whole, files, settings, hessians[first], held_out.get(first))
            states = [_output(layer, each, given) for each in states]
            meter.tick()
    meter.close()
    return found


def _round_group(
    found: Calibrated,
    group: Mapping[str, nn.Module],
    files: TensorFiles,
    settings: GptqSettings,
    hessian: Tensor,
    held_out: Tensor | None,
) -> None:
    """Round the matrices of a group, by their stored names, in `found` and in the model."""
    parts = [_oriented(files.read(name, as_stored=True), module) for name, module in group.items()]
    weight = torch.cat(parts).float()
    rounded, damp = gptq.gptq(weight, hessian, *settings)
    found.damps.append(damp)
    if held_out is not None:
        found.errors.append(_error(weight, rounded, held_out, settings.grid))
    split = rounded.split([len(part) for part in parts])
    for (name, module), part, matrix in zip(group.items(), parts, split, strict=True):
        found.weights[name] = _oriented(matrix.to(part.dtype), module).contiguous()
        module.get_parameter("weight").copy_(_oriented(matrix, module))


def _groups(layer: nn.Module, names: Mapping[int, str]) -> list[tuple[nn.Module, ...]]:
    """The linear layers of a decoder layer; those of a group have the same inputs."""
    there = {name: module for name, module in layer.named_modules() if id(module) in names}
    fused = [group for group in _GROUPS if all(name in there for name in group)]
    joined = {name for group in fused for name in group}
    alone = [(module,) for name, module in there.items() if name not in joined]
    return [*(tuple(there[name] for name in group) for group in fused), *alone]


def _oriented(matrix: Tensor, module: nn.Module) -> Tensor:
    """A stored matrix as (out, in), or back."""
    return matrix.t() if is_transposed(module) else matrix


def _error(weight: Tensor, rounded: Tensor, hessian: Tensor, grid: RoundingGrid) -> MatrixError:
    nearest = gptq.round_to_nearest(weight, grid)
    return MatrixError(*(gptq.output_error(weight, each, hessian) for each in (rounded, nearest)))


def _model(folder: Path, dtype: str) -> PreTrainedModel:
    import transformers

    host.prepare_transformers()
    model: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), trust_remote_code=False, local_files_only=True
    )
    return model.eval()


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
    found: dict[int, Tensor] = {}

    def add(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        x = inputs[0].flatten(0, -2).float()
        if id(module) not in found:
            found[id(module)] = torch.zeros(x.shape[1], x.shape[1])
        found[id(module)].addmm_(x.t(), x, alpha=2)

    with _hooked([group[0].register_forward_hook(add) for group in groups]):
        for state in states:
            _output(layer, state, given)
    return found


def _output(layer: nn.Module, state: Tensor, given: Arguments) -> Tensor:
    found = layer(state, *given.rest, **given.named)
    output: Tensor = found[0] if isinstance(found, tuple) else found
    return output


@contextmanager
def _hooked(handles: Sequence[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
