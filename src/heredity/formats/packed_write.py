"""A folder of packed weights written as whole safetensors.

Promises: one file of SHARD bytes is in memory at a time; the same folder gives the same bytes. Norms, biases,
embedding and head are rounded to the dtype and otherwise as they were.
Leaves to others: the arithmetic (packed.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from heredity.core.errors import Damaged
from heredity.core.files import explain_full_disk
from heredity.core.progress import Watch, phase
from heredity.formats.rewrite import copy_rest, replace_json
from heredity.formats.safetensors_io import INDEX, read_safetensors

if TYPE_CHECKING:
    import torch

SHARD = 2 << 30
_KEY = "quantization_config"


def is_packed(folder: Path) -> bool:
    """Whether config.json names a quantization."""
    return bool(json.loads((folder / "config.json").read_text("utf-8")).get(_KEY))


def unpack_folder(
    folder: Path, out: Path, dtype: str, shard: int = SHARD, watch: Watch | None = None
) -> None:
    """Write the numbers that the packed weights stand for, in `dtype`. watch: gets the count of tensors.

    Raises Unavailable for a packing that is not read here, Damaged for tensors that do not fit each other.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    copy_rest(folder, out)
    (out / INDEX).unlink(missing_ok=True)
    held: dict[str, torch.Tensor] = {}
    n_bytes, where = 0, dict[str, str]()
    for name, tensor in _tensors(folder, config[_KEY], dtype, watch):
        if held and n_bytes + tensor.nbytes > shard:
            _save(held, out, where)
            held, n_bytes = {}, 0
        held[name] = tensor
        n_bytes += tensor.nbytes
    _save(held, out, where)
    files = sorted(set(where.values()))
    if len(files) == 1:
        (out / files[0]).rename(out / "model.safetensors")
    else:
        replace_json(out / INDEX, {"metadata": {}, "weight_map": where})
    replace_json(out / "config.json", {k: v for k, v in config.items() if k != _KEY} | {"dtype": dtype})


def _tensors(
    folder: Path, how: dict[str, object], dtype: str, watch: Watch | None
) -> Iterator[tuple[str, torch.Tensor]]:
    import torch
    from safetensors import safe_open

    from heredity.formats.packed import packing_of, unpack

    headers = {path: read_safetensors(path) for path in sorted(folder.glob("*.safetensors"))}
    where = {name: path for path, header in headers.items() for name in header}
    if not where:
        raise Damaged(f"{folder}: there is no safetensors file")
    files = {path: safe_open(path, framework="pt") for path in headers}

    def take(name: str) -> torch.Tensor:
        found: torch.Tensor = files[where[name]].get_tensor(name)
        return found

    packing, kept = packing_of(how, where), getattr(torch, dtype)
    mains = {
        name: name.removesuffix(end) for end in packing.main for name in sorted(where) if name.endswith(end)
    }
    if not mains:
        raise Damaged(f"{folder}: config.json names packed weights, and there are none.")
    weights = {f"{base}.weight" for base in mains.values()}
    made = [name for name in sorted(where) if name in mains or name not in weights]
    made = [name for name in made if name in mains or not name.endswith(packing.parts)]

    def whole(name: str) -> tuple[str, torch.Tensor]:
        if name in mains:
            return f"{mains[name]}.weight", unpack(packing, mains[name], take).to(kept).contiguous()
        tensor = take(name)
        return name, tensor.to(kept) if tensor.is_floating_point() else tensor

    with phase(watch, "converting", n_total=len(made), unit="tensors") as meter:
        yield from meter.each(made, whole)


def _save(tensors: dict[str, torch.Tensor], out: Path, where: dict[str, str]) -> None:
    from safetensors.torch import save_file

    path = out / f"model-{len(set(where.values())) + 1:05}.safetensors"
    with explain_full_disk(out, sum(tensor.nbytes for tensor in tensors.values())):
        save_file(tensors, path, metadata={"format": "pt"})
    where |= dict.fromkeys(sorted(tensors), path.name)
