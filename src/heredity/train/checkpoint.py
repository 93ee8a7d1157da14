"""The state of a run in safetensors: one file, or one shard per process and an index.

    checkpoint.safetensors           one process: everything
    checkpoint.json                  several: the run, its progress, and where the rows of each tensor are
    checkpoint.STEP/P.safetensors    the rows of shard P

Promises: a checkpoint is complete or the previous one remains. The index is replaced once every shard is on
the disk. Any number of processes reads either form, each only the rows that it needs. A checkpoint names
its run, and another run's is refused. No pickle.
Leaves to others: the contents of the state (optimizer.py) and when to write it (loop.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from heredity.core.errors import Damaged
from heredity.core.files import replacing, write_atomic
from heredity.core.records import Record, encode
from heredity.train.distributed import DistContext


class TensorFile(NamedTuple):
    """A file's metadata, and its tensors by name."""

    about: dict[str, str]
    state: dict[str, torch.Tensor]


def write_tensors(path: Path, state: dict[str, torch.Tensor], about: dict[str, str]) -> None:
    """Write tensors and metadata to a file atomically."""
    with replacing(path) as temporary:
        save_file(state, temporary, metadata=about)


def read_tensors(path: Path, what: str, then: str) -> TensorFile:
    """Read the tensors of a file.

    The error message has `what`, the kind of file, and `then`, the effect of deleting it.
    Raises Damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return TensorFile(file.metadata() or {}, state)
    except (SafetensorError, OSError) as error:
        raise Damaged(f"{path}: not {what} ({error}). Delete it; {then}") from None


SINGLE_FILE = "checkpoint.safetensors"
RANDOM_STATE = "random"


class CheckpointState(NamedTuple):
    """The contents of a checkpoint: steps done, tokens seen, tensors by name, and batches skipped."""

    n_steps: int
    n_tokens: int
    state: dict[str, torch.Tensor]
    n_skipped: int = 0


def write_single_file(folder: Path, training: str, kept: CheckpointState) -> None:
    """Write the state of a run, and torch's random state, as one file. training: the run's digest."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in kept.state.items()}
    tensors[RANDOM_STATE] = torch.get_rng_state()
    about = {"training": training, "n_steps": str(kept.n_steps), "n_tokens": str(kept.n_tokens)}
    about["n_skipped"] = str(kept.n_skipped)
    write_tensors(folder / SINGLE_FILE, tensors, about)


def read_single_file(folder: Path, training: str) -> CheckpointState | None:
    """Read the state in a folder and restore torch's random state; None if there is no checkpoint.

    Raises Damaged for a checkpoint of another run, or one that cannot be read.
    """
    path = folder / SINGLE_FILE
    if not path.exists():
        return None
    about, state = read_tensors(path, "a checkpoint", "the training begins again.")
    if about.get("training") != training:
        raise Damaged(f"{path}: a checkpoint of another training. Delete it, or name another folder.")
    torch.set_rng_state(state.pop(RANDOM_STATE))
    n_steps, n_tokens, n_skipped = (
        int(about.get(name, "0")) for name in ("n_steps", "n_tokens", "n_skipped")
    )
    return CheckpointState(n_steps, n_tokens, state, n_skipped)


INDEX_FILE = "checkpoint.json"
_FIRST_ROWS = "first rows"


class _TensorShard(Record, frozen=True):
    """Rows `start` to `start + n` of a tensor. n 0: a scalar, stored whole."""

    file: str
    start: int
    n: int


class _CheckpointIndex(Record, frozen=True):
    training: str
    n_steps: int
    n_tokens: int
    n_skipped: int
    tensors: dict[str, list[_TensorShard]]
    schema: int = 1


def write_checkpoint(
    folder: Path, training: str, kept: CheckpointState, n_rows: Mapping[str, int], dist: DistContext
) -> None:
    """Write the state of a run. n_rows: the rows of each whole weight, by name."""
    if dist.is_single_process:
        write_single_file(folder, training, kept)
        (folder / INDEX_FILE).unlink(missing_ok=True)
        _delete_old_shards(folder)
        return
    place = folder / f"checkpoint.{kept.n_steps}"
    if dist.rank < dist.n_shards:  # further replicas hold the same
        path = place / f"{dist.shard_index}.safetensors"
        mine, starts = {}, {}
        for key, tensor in kept.state.items():
            if tensor.ndim and len(tensor):
                starts[key] = dist.rows(n_rows[key.partition("/")[2]])[0]
            if dist.is_main_process if not tensor.ndim else len(tensor):
                mine[key] = tensor.cpu().contiguous()
        if dist.is_main_process:
            mine[RANDOM_STATE], starts[RANDOM_STATE] = torch.get_rng_state(), 0
        write_tensors(path, mine, {_FIRST_ROWS: json.dumps(starts)})
    dist.barrier()
    if dist.is_main_process:
        files = [f"{place.name}/{shard}.safetensors" for shard in range(dist.n_shards)]
        index = _CheckpointIndex(
            training, kept.n_steps, kept.n_tokens, kept.n_skipped, _list_tensors(folder, files)
        )
        write_atomic(folder / INDEX_FILE, encode(index) + b"\n")
        (folder / SINGLE_FILE).unlink(missing_ok=True)
        _delete_old_shards(folder, place)


def read_checkpoint(
    folder: Path, training: str, n_rows: Mapping[str, int], dist: DistContext
) -> CheckpointState | None:
    """Read this process's part of the newest state, and restore torch's random state.

    None if there is no checkpoint. Raises Damaged for one of another run, or one that cannot be read.
    """
    forms = [form for form in (_index_of_single_file(folder), _index_of_shards(folder)) if form is not None]
    index = max(forms, key=lambda index: index.n_steps, default=None)
    if index is None or (dist.is_single_process and not (folder / INDEX_FILE).exists()):
        return read_single_file(folder, training)
    if index.training != training:
        raise Damaged(f"{folder}: a checkpoint of another training. Delete it, or name another folder.")
    with _open_shards(folder) as rows:
        state = {
            name: rows(name, shards, _rows_needed(name, shards, n_rows, dist))
            for name, shards in index.tensors.items()
        }
    torch.set_rng_state(state.pop(RANDOM_STATE))
    return CheckpointState(index.n_steps, index.n_tokens, state, index.n_skipped)


def _delete_old_shards(folder: Path, but: Path | None = None) -> None:
    for path in folder.glob("checkpoint.*"):
        if path.is_dir() and path != but:
            shutil.rmtree(path, ignore_errors=True)


def _list_tensors(folder: Path, files: list[str]) -> dict[str, list[_TensorShard]]:
    """The shards of each tensor, from the headers of the files."""
    found: dict[str, list[_TensorShard]] = {}
    for name in files:
        with safe_open(folder / name, framework="pt") as file:
            starts = json.loads((file.metadata() or {}).get(_FIRST_ROWS, "{}"))
            for key in file.keys():  # noqa: SIM118 (no mapping)
                shape = file.get_slice(key).get_shape()
                shard = _TensorShard(name, starts.get(key, 0), shape[0] if shape else 0)
                found.setdefault(key, []).append(shard)
    return found


def _index_of_shards(folder: Path) -> _CheckpointIndex | None:
    if not (folder / INDEX_FILE).exists():
        return None
    try:
        return msgspec.json.decode((folder / INDEX_FILE).read_bytes(), type=_CheckpointIndex)
    except (OSError, msgspec.DecodeError) as error:
        raise _damaged(folder / INDEX_FILE, error) from None


def _index_of_single_file(folder: Path) -> _CheckpointIndex | None:
    if not (folder / SINGLE_FILE).exists():
        return None
    try:
        with safe_open(folder / SINGLE_FILE, framework="pt") as file:
            about = file.metadata() or {}
        tensors = _list_tensors(folder, [SINGLE_FILE])
    except (SafetensorError, OSError) as error:
        raise _damaged(folder / SINGLE_FILE, error) from None
    n_steps, n_tokens, n_skipped = (
        int(about.get(name, "0")) for name in ("n_steps", "n_tokens", "n_skipped")
    )
    return _CheckpointIndex(about.get("training", ""), n_steps, n_tokens, n_skipped, tensors)


def _rows_needed(
    key: str, shards: list[_TensorShard], n_rows: Mapping[str, int], dist: DistContext
) -> tuple[int, int]:
    whole = max(shard.start + shard.n for shard in shards)
    name = key.partition("/")[2]
    return dist.rows(whole) if whole and name in n_rows else (0, whole)


RowReader = Callable[[str, list[_TensorShard], tuple[int, int]], torch.Tensor]


@contextmanager
def _open_shards(folder: Path) -> Iterator[RowReader]:
    """Yield a reader (name, shards, (first row, end)) -> rows. Each file is opened once."""
    with ExitStack() as stack:
        files: dict[str, Any] = {}

        def of(shard: _TensorShard, name: str, low: int, high: int) -> torch.Tensor:
            if shard.file not in files:
                files[shard.file] = stack.enter_context(safe_open(folder / shard.file, framework="pt"))
            file = files[shard.file]
            low, high = (min(max(at - shard.start, 0), shard.n) for at in (low, high))
            tensor: torch.Tensor = file.get_slice(name)[low:high] if shard.n else file.get_tensor(name)
            return tensor

        def rows(name: str, shards: list[_TensorShard], wanted: tuple[int, int]) -> torch.Tensor:
            meeting = [p for p in shards if p.start < wanted[1] and p.start + p.n > wanted[0]]
            ordered = sorted(meeting, key=lambda shard: shard.start) or shards[:1]
            try:
                found = [of(shard, name, *wanted) for shard in ordered]
            except (SafetensorError, OSError) as error:
                raise _damaged(folder / INDEX_FILE, error) from None
            return torch.cat(found) if found[0].ndim else found[0]

        yield rows


def _damaged(path: Path, error: Exception) -> Damaged:
    return Damaged(f"{path}: not a checkpoint ({error}). Delete it; the training begins again.")
