"""Matrices of integers from -127 to 127 with one scale per output: their rounding, matmul and files.

A matmul rounds its input in the same way, with one scale per row, and sums in int32. The sums are exact, so
the numbers of a row do not depend on the batch. torch's own dynamic quantization uses one scale for all rows,
so that they do.

Promises: a processor whose int8 matmul is not exact (some sum pairs in 16 bits) is detected before it is
used.

Format: compressed-tensors' "int-quantized", weights by channel, activations by token and dynamic:
NAME.weight is int8 (outputs, inputs), NAME.weight_scale fp32 (outputs, 1).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import torch

from heredity.core.errors import Damaged
from heredity.core.progress import Watch, phase
from heredity.formats.architectures import INT8, MATRIX
from heredity.formats.safetensors_io import (
    INDEX,
    copy_rest,
    read_safetensors,
    replace_json,
    write_safetensors,
)

_KEY = "quantization_config"
Shapes = dict[str, tuple[str, list[int]]]  # name -> dtype in the words of the format, and shape
Take = Callable[[str], torch.Tensor]


class Make(Protocol):
    """Returns the tensor to write under a name. `take` reads a tensor of the parent."""

    def __call__(self, name: str, take: Take) -> torch.Tensor: ...


def write_int8(folder: Path, out: Path, watch: Watch | None = None) -> None:
    """Write the model in `folder` with rounded matrices; `weights.check_roundable` comes before it.

    watch: gets the count of tensors.
    """

    def shapes(shapes_before: Shapes) -> Shapes:
        matrices = [name for name in shapes_before if MATRIX.fullmatch(name)]
        there = {
            name: ("I8" if name in matrices else kind, size) for name, (kind, size) in shapes_before.items()
        }
        return there | {name + SCALE: ("F32", [shapes_before[name][1][0], 1]) for name in matrices}

    def make(name: str, take: Take) -> torch.Tensor:
        if name.endswith(SCALE):
            return quantize(take(name.removesuffix(SCALE)))[1]
        return quantize(take(name))[0] if MATRIX.fullmatch(name) else take(name)

    _rewrite(folder, out, shapes, make, watch)
    _configure(out, lambda config: {**config, _KEY: HOW})


def dequantize_int8(folder: Path, out: Path, dtype: str, watch: Watch | None = None) -> None:
    """Write the numbers that the integers represent, in `dtype`, as any engine loads them."""
    kind = {"bfloat16": "BF16", "float32": "F32", "float16": "F16"}[dtype]
    kept = getattr(torch, dtype)

    def shapes(shapes_before: Shapes) -> Shapes:
        return {name: (kind, size) for name, (_, size) in shapes_before.items() if not name.endswith(SCALE)}

    def make(name: str, take: Take) -> torch.Tensor:
        tensor = take(name)
        return dequantize(tensor, take(name + SCALE), kept) if tensor.dtype == torch.int8 else tensor.to(kept)

    _rewrite(folder, out, shapes, make, watch)
    _configure(out, lambda config: {k: v for k, v in config.items() if k != _KEY} | {"dtype": dtype})


def _rewrite(
    folder: Path, out: Path, shapes: Callable[[Shapes], Shapes], make: Make, watch: Watch | None
) -> None:
    from safetensors import safe_open

    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise Damaged(f"{folder}: there is no safetensors file")
    copy_rest(folder, out)
    where: dict[str, str] = {}
    headers = {shard: read_safetensors(shard) for shard in shards}
    planned = {
        shard: shapes({name: (each.dtype, each.shape) for name, each in header.items()})
        for shard, header in headers.items()
    }
    with phase(watch, "converting", n_total=sum(map(len, planned.values())), unit="tensors") as meter:

        def counted(name: str, take: Take) -> torch.Tensor:
            meter.tick()
            return make(name, take)

        for shard, wanted in planned.items():
            where |= dict.fromkeys(sorted(wanted), shard.name)
            with safe_open(shard, framework="pt") as file:
                write_safetensors(out / shard.name, wanted, partial(counted, take=file.get_tensor))
    if len(shards) > 1:
        replace_json(out / INDEX, {"metadata": {}, "weight_map": where})


def _configure(out: Path, change: Callable[[Mapping[str, object]], dict[str, object]]) -> None:
    replace_json(out / "config.json", change(json.loads((out / "config.json").read_text("utf-8"))))


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
