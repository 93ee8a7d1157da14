"""A training's state in one safetensors file: there whole, or as it was before.

Promises: written under another name, synced and renamed; it says which training it is of, and another's is
refused; no pickle.
Leaves to others: what the state is (optimizer.py) and when to write it (loop.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from heredity.errors import Damaged
from heredity.store import sync_folder

NAME = "checkpoint.safetensors"
_RANDOM = "random"


class Kept(NamedTuple):
    """What a checkpoint holds: steps done, tokens seen, and the state by name."""

    n_steps: int
    n_tokens: int
    state: dict[str, torch.Tensor]


def write(folder: Path, training: str, kept: Kept) -> None:
    """Put the state of a training (its digest) into its folder, with torch's random state."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in kept.state.items()}
    tensors[_RANDOM] = torch.get_rng_state()
    temporary = folder / f"{NAME}.{os.getpid()}.tmp"
    about = {"training": training, "n_steps": str(kept.n_steps), "n_tokens": str(kept.n_tokens)}
    try:
        save_file(tensors, temporary, metadata=about)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(folder / NAME)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(folder)


def read(folder: Path, training: str) -> Kept | None:
    """The state in a folder, torch's random state put back; None where there is none yet.

    Raises Damaged where it is of another training or cannot be read.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except Exception as error:  # safetensors has no narrower type
        raise Damaged(f"{path}: not a checkpoint ({error}). Delete it; the training begins again.") from None
    if about.get("training") != training:
        raise Damaged(f"{path}: a checkpoint of another training. Delete it, or name another folder.")
    torch.set_rng_state(state.pop(_RANDOM))
    return Kept(int(about["n_steps"]), int(about["n_tokens"]), state)
