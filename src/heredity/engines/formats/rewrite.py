"""A folder of safetensors, written again with some tensors changed; every other file is linked or copied.

Promises: one tensor at a time is in memory; shards keep their names, so that an index stays right.
Leaves to others: the change of a tensor.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from heredity.core.errors import Damaged
from heredity.core.files import explain_full_disk

if TYPE_CHECKING:
    import torch

Change = Callable[
    [str, "torch.Tensor"], "torch.Tensor"
]  # name, tensor -> the tensor to write under that name
_SKIPPED = ("training.jsonl", "training.svg", "answers.jsonl")  # they describe how the parent was made


def rewrite(folder: Path, out: Path, change: Change) -> None:
    """Write the model in `folder` into `out`, with each tensor changed by `change`."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise Damaged(f"{folder}: there is no safetensors file")
    copy_rest(folder, out)
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            names = list(file.keys())
            tensors = {name: change(name, file.get_tensor(name)).contiguous() for name in names}
        with explain_full_disk(out, shard.stat().st_size):
            save_file(tensors, out / shard.name, metadata={"format": "pt"})


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

    found: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        found |= load_file(shard)
    if not found:
        raise Damaged(f"{folder}: there is no safetensors file")
    return found
