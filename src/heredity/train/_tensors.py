"""Named tensors in one safetensors file, with words about them: there whole, or as it was before.

Promises: written under another name, synced and renamed; no pickle.
Leaves to others: what the tensors are, and whether they are the ones wanted (checkpoint.py, scores.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from heredity.errors import Damaged
from heredity.store import sync_folder


class Stored(NamedTuple):
    """What a file holds: the words about it, and its tensors by name."""

    about: dict[str, str]
    state: dict[str, torch.Tensor]


def write(path: Path, state: dict[str, torch.Tensor], about: dict[str, str]) -> None:
    """Put tensors into a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        save_file(state, temporary, metadata=about)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def read(path: Path, what: str, then: str) -> Stored:
    """The tensors of a file. Raises Damaged where it is no `what`; `then`: what comes of deleting it."""
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return Stored(file.metadata() or {}, state)
    except (SafetensorError, OSError) as error:
        raise Damaged(f"{path}: not {what} ({error}). Delete it; {then}", code="checkpoint-damaged") from None
