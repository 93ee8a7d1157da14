"""A folder of safetensors, written again with some tensors changed; every other file is taken over.

Promises: one tensor at a time is in memory; shards keep their names, so that an index stays right.
Leaves to others: what is done to a tensor.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from heredity.core.errors import Damaged
from heredity.core.files import explain_full_disk

Change = Callable[[str, Any], Any]  # a tensor's name, the tensor -> what is written under that name
_SKIPPED = ("training.jsonl", "training.svg")  # they tell of the parent's making


def rewrite(folder: Path, out: Path, change: Change) -> None:
    """Write the model in `folder` into `out`, each tensor as `change` makes it."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise Damaged(f"{folder}: there is no safetensors file")
    copy_rest(folder, out)
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            tensors = {name: change(name, file.get_tensor(name)).contiguous() for name in file.keys()}  # noqa: SIM118
        with explain_full_disk(out, shard.stat().st_size):
            save_file(tensors, out / shard.name, metadata={"format": "pt"})


def copy_rest(folder: Path, out: Path) -> None:
    """Configuration, tokenizer and template: linked where the disk can, else copied."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" or path.name in _SKIPPED or not path.is_file():
            continue
        try:
            os.link(path, out / path.name)
        except OSError:
            shutil.copyfile(path, out / path.name)


def read_all(folder: Path) -> dict[str, Any]:
    """Every tensor of a folder by name."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        found |= load_file(shard)
    if not found:
        raise Damaged(f"{folder}: there is no safetensors file")
    return found
