"""A folder of safetensors, written again with some tensors changed; every other file is linked or copied.

Promises: one tensor at a time is in memory; shards keep their names, so that an index stays right.
Leaves to others: the change of a tensor.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from heredity.core.errors import Damaged
from heredity.core.files import explain_full_disk
from heredity.core.progress import Watch, phase
from heredity.formats.safetensors_io import INDEX, read_safetensors

if TYPE_CHECKING:
    import torch

Change = Callable[
    [str, "torch.Tensor"], "torch.Tensor"
]  # name, tensor -> the tensor to write under that name
_SKIPPED = ("training.jsonl", "training.svg", "answers.jsonl")  # they describe how the parent was made


def rewrite(
    folder: Path,
    out: Path,
    change: Change,
    added: Mapping[str, torch.Tensor] = MappingProxyType({}),
    watch: Watch | None = None,
) -> None:
    """Write the model in `folder` into `out`, with each tensor changed by `change`.

    added: further tensors, which go into the last shard. watch: gets the count of tensors.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise Damaged(f"{folder}: there is no safetensors file")
    copy_rest(folder, out)
    n_total = sum(len(read_safetensors(shard)) for shard in shards)
    with phase(watch, "converting", n_total=n_total, unit="tensors") as meter:
        for shard in shards:
            with safe_open(shard, framework="pt") as file:
                made = meter.each(
                    file.keys(), lambda name: (name, change(name, file.get_tensor(name)).contiguous())
                )
                tensors = dict(made)
            if shard == shards[-1]:
                tensors |= added
            with explain_full_disk(out, shard.stat().st_size):
                save_file(tensors, out / shard.name, metadata={"format": "pt"})
    if added and (index := out / INDEX).is_file():
        entries = json.loads(index.read_text("utf-8"))
        entries["weight_map"] |= dict.fromkeys(added, shards[-1].name)
        replace_json(index, entries)


def replace_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a JSON object in place of a file, which may be a link to the parent's."""
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


def copy_rest(folder: Path, out: Path) -> None:
    """Link configuration, tokenizer and template into another folder, or copy them."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" or path.name in _SKIPPED or not path.is_file():
            continue
        try:
            os.link(path, out / path.name)
        except OSError:
            shutil.copyfile(path, out / path.name)


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a folder by name."""
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(shard)
    if not tensors:
        raise Damaged(f"{folder}: there is no safetensors file")
    return tensors
