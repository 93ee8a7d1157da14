"""A folder of safetensors with its layers' matrices in int8, and back: compressed-tensors' files.

Promises: one tensor at a time is in memory; embedding, head, norms and biases stay as they were; the same
folder gives the same bytes.
Leaves to others: the rounding and the matmul (int8.py).

Format: see int8.py; config.json names it under `quantization_config`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from heredity.core.errors import Damaged
from heredity.core.progress import Watch, phase
from heredity.formats.architectures import MATRIX
from heredity.formats.rewrite import copy_rest, replace_json
from heredity.formats.safetensors_io import INDEX, read_safetensors, write_safetensors

if TYPE_CHECKING:
    import torch

_KEY = "quantization_config"
Shapes = dict[str, tuple[str, list[int]]]  # name -> dtype in the words of the format, and shape
Take = Callable[[str], "torch.Tensor"]


class Make(Protocol):
    """Returns the tensor to write under a name. `take` reads a tensor of the parent."""

    def __call__(self, name: str, take: Take) -> torch.Tensor: ...


def write_int8(folder: Path, out: Path, watch: Watch | None = None) -> None:
    """Write the model in `folder` with rounded matrices. Raises Unavailable for an unknown architecture.

    watch: gets the count of tensors.
    """
    from heredity.formats.int8 import HOW, SCALE, quantize
    from heredity.formats.weights import check_roundable, read_config

    check_roundable(read_config(folder))

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
    import torch

    from heredity.formats.int8 import SCALE, dequantize

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
