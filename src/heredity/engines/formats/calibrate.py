"""Run GPTQ through a decoder, layer by layer, on calibration text.

The inputs of a layer are those that the rounded layers before it give. All matrices of a layer see the layer
unrounded, as in the paper's own code.

Promises: one layer's Hessians are in memory at a time. Embedding, head, norms and biases stay as they are.
Leaves to others: the rounding of a matrix (gptq.py), and writing the child (recipes/quantize.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from heredity.core import host
from heredity.core.errors import Refused
from heredity.core.progress import Meter, Watch
from heredity.engines.formats import gptq
from heredity.engines.formats.gptq import RoundingGrid
from heredity.engines.formats.weights import TensorFiles, read_config

# The matrices of a layer that have the same inputs.
_GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)

Tokens = tuple[int, ...]
Arguments = dict[str, object]  # of a layer beside the states


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
    decoder = _decoder(folder, dtype)
    files = TensorFiles(folder, torch.float32)
    found = Calibrated()
    layers = list(decoder.get_submodule("layers").children())
    meter = Meter(watch, "calibrate", len(layers))
    n = len(sequences) - n_held_out
    with torch.no_grad():
        states, arguments = _first_inputs(decoder, sequences)
        for number, layer in enumerate(layers):
            hessians = _hessians(layer, states[:n], arguments[number])
            held_out = _hessians(layer, states[n:], arguments[number])
            for names in _GROUPS:
                whole = [f"model.layers.{number}.{name}.weight" for name in names]
                parts = [files.read(name, as_stored=True) for name in whole]
                weight = torch.cat(parts).float()
                rounded, damp = gptq.gptq(weight, hessians[names[0]], *settings)
                found.damps.append(damp)
                if n_held_out:
                    found.errors.append(_error(weight, rounded, held_out[names[0]], settings.grid))
                split = rounded.split([len(part) for part in parts])
                for name, part, matrix in zip(names, parts, split, strict=True):
                    found.weights[f"model.layers.{number}.{name}.weight"] = matrix.to(part.dtype)
                    layer.get_parameter(f"{name}.weight").copy_(matrix)
            states = [_output(layer, each, arguments[number]) for each in states]
            meter.tick()
    meter.close()
    return found


def _error(weight: Tensor, rounded: Tensor, hessian: Tensor, grid: RoundingGrid) -> MatrixError:
    nearest = gptq.round_to_nearest(weight, grid)
    return MatrixError(*(gptq.output_error(weight, each, hessian) for each in (rounded, nearest)))


def _decoder(folder: Path, dtype: str) -> nn.Module:
    import transformers

    host.prepare_transformers()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", trust_remote_code=False,
        local_files_only=True,
    )  # fmt: skip
    decoder: nn.Module = model.eval().get_decoder()
    return decoder


def resolve_dtype(folder: Path, dtype: str) -> str:
    """The dtype to calibrate in: `dtype`, or the faster one for "auto"."""
    if dtype != "auto":
        return dtype
    config = read_config(folder)
    return host.choose_dtype(config.hidden_size, config.intermediate_size)


def _first_inputs(decoder: nn.Module, sequences: Sequence[Tokens]) -> tuple[list[Tensor], list[Arguments]]:
    """The states before the first layer, by sequence, and the other arguments of each layer.

    Those (rotations, mask) depend on the length only, which all sequences share.
    """
    arguments: list[Arguments] = []
    inputs: list[Tensor] = []

    def keep(_: nn.Module, positional: tuple[Tensor, ...], named: Arguments) -> None:
        inputs.append(positional[0])
        arguments.append(named)

    with _hooked(
        [
            layer.register_forward_pre_hook(keep, with_kwargs=True)
            for layer in decoder.get_submodule("layers").children()
        ]
    ):
        decoder(input_ids=torch.tensor([sequences[0]]), use_cache=False)
    embed = decoder.get_submodule("embed_tokens")
    states = [embed(torch.tensor([each])) for each in sequences]
    if not torch.equal(states[0], inputs[0]):
        raise Refused("The first layer of this architecture does not read the embeddings as they are.")
    return states, arguments


def _hessians(layer: nn.Module, states: Sequence[Tensor], arguments: Arguments) -> dict[str, Tensor]:
    """2 X X' of the inputs of each group of matrices, by the name of the first."""
    found: dict[str, Tensor] = {}

    def adding(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
            x = inputs[0].flatten(0, -2).float()
            if name not in found:
                found[name] = torch.zeros(x.shape[1], x.shape[1])
            found[name].addmm_(x.t(), x, alpha=2)

        return add

    firsts = [names[0] for names in _GROUPS]
    with _hooked([layer.get_submodule(name).register_forward_hook(adding(name)) for name in firsts]):
        for state in states:
            layer(state, **arguments)
    return found


def _output(layer: nn.Module, state: Tensor, arguments: Arguments) -> Tensor:
    found = layer(state, **arguments)
    output: Tensor = found[0] if isinstance(found, tuple) else found
    return output


@contextmanager
def _hooked(handles: Sequence[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
