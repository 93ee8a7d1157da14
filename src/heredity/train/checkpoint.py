"""A training's state in one safetensors file: there whole, or as it was before.

Promises: it says which training it is of, and another's is refused.
Leaves to others: the file (_tensors.py), what the state is (optimizer.py) and when to write it (loop.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from heredity.core.errors import Damaged
from heredity.core.files import replacing


class Stored(NamedTuple):
    """What a file holds: the words about it, and its tensors by name."""

    about: dict[str, str]
    state: dict[str, torch.Tensor]


def write_tensors(path: Path, state: dict[str, torch.Tensor], about: dict[str, str]) -> None:
    """Put tensors into a file, whole or not at all."""
    with replacing(path) as temporary:
        save_file(state, temporary, metadata=about)


def read_tensors(path: Path, what: str, then: str) -> Stored:
    """The tensors of a file. Raises Damaged where it is no `what`; `then`: what comes of deleting it."""
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return Stored(file.metadata() or {}, state)
    except (SafetensorError, OSError) as error:
        raise Damaged(f"{path}: not {what} ({error}). Delete it; {then}", code="checkpoint-damaged") from None


NAME = "checkpoint.safetensors"
RANDOM = "random"


class CheckpointState(NamedTuple):
    """What a checkpoint holds: steps done, tokens seen, the state by name, and steps of data left out."""

    n_steps: int
    n_tokens: int
    state: dict[str, torch.Tensor]
    n_skipped: int = 0


def write(folder: Path, training: str, kept: CheckpointState) -> None:
    """Put the state of a training (its digest) into its folder, with torch's random state."""
    tensors = {name: tensor.contiguous() for name, tensor in kept.state.items()}
    tensors[RANDOM] = torch.get_rng_state()
    about = {"training": training, "n_steps": str(kept.n_steps), "n_tokens": str(kept.n_tokens)}
    about["n_skipped"] = str(kept.n_skipped)
    write_tensors(folder / NAME, tensors, about)


def read(folder: Path, training: str) -> CheckpointState | None:
    """The state in a folder, torch's random state put back; None where there is none yet.

    Raises Damaged where it is of another training or cannot be read.
    """
    path = folder / NAME
    if not path.exists():
        return None
    about, state = read_tensors(path, "a checkpoint", "the training begins again.")
    if about.get("training") != training:
        raise Damaged(
            f"{path}: a checkpoint of another training. Delete it, or name another folder.",
            code="checkpoint-of-another-training",
        )
    torch.set_rng_state(state.pop(RANDOM))
    n_steps, n_tokens, n_skipped = (
        int(about.get(name, "0")) for name in ("n_steps", "n_tokens", "n_skipped")
    )
    return CheckpointState(n_steps, n_tokens, state, n_skipped)
