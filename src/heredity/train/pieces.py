"""A training's state in pieces: each process writes the rows that lie with it, the first one an index behind.

    checkpoint.json                  which training, how far, and of each tensor: file, first row, rows
    checkpoint.STEP/P.safetensors    the rows of piece P

Promises: the index is replaced only once every piece is on the disk, and the pieces of before it are there
until then; any number of processes reads it, each the rows that it needs; no pickle. One process alone writes
checkpoint.safetensors as ever, and each form is read by both.
Leaves to others: the files (_tensors.py), the form of one file (checkpoint.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from heredity.core.errors import Damaged
from heredity.core.files import write_atomic
from heredity.core.records import Record, encode
from heredity.train import checkpoint
from heredity.train import checkpoint as _tensors
from heredity.train.checkpoint import CheckpointState
from heredity.train.distributed import Processes

NAME = "checkpoint.json"
_FIRST_ROWS = "first rows"


class _Piece(Record, frozen=True):
    """Rows `start` to `start + n` of a tensor; n 0: it has no rows, and is here whole."""

    file: str
    start: int
    n: int


class _Index(Record, frozen=True):
    training: str
    n_steps: int
    n_tokens: int
    n_skipped: int
    tensors: dict[str, list[_Piece]]
    schema: int = 1


def write(
    folder: Path, training: str, kept: CheckpointState, n_rows: Mapping[str, int], together: Processes
) -> None:
    """Put the state into the training's folder. n_rows: of each whole weight, by name."""
    if together.is_alone:
        checkpoint.write(folder, training, kept)
        (folder / NAME).unlink(missing_ok=True)
        _let_go(folder)
        return
    place = _place(folder, kept.n_steps)
    if together.rank < together.n_pieces:  # further replicas hold the same
        _write_piece(place / f"{together.piece}.safetensors", kept.state, n_rows, together)
    together.wait()
    if together.is_first:
        files = [f"{place.name}/{piece}.safetensors" for piece in range(together.n_pieces)]
        index = _Index(training, kept.n_steps, kept.n_tokens, kept.n_skipped, _listed(folder, files))
        write_atomic(folder / NAME, encode(index) + b"\n")
        (folder / checkpoint.NAME).unlink(missing_ok=True)
        _let_go(folder, place)


def read(
    folder: Path, training: str, n_rows: Mapping[str, int], together: Processes
) -> CheckpointState | None:
    """The newest state in a folder, of it what lies in this process, torch's random state put back.

    None where there is none yet. Raises Damaged where it is of another training or cannot be read.
    """
    index = _newest(folder)
    if index is None or (together.is_alone and not (folder / NAME).exists()):
        return checkpoint.read(folder, training)
    if index.training != training:
        raise Damaged(
            f"{folder}: a checkpoint of another training. Delete it, or name another folder.",
            code="checkpoint-of-another-training",
        )
    with _opened(folder) as rows:
        state = {
            name: rows(name, pieces, _wanted(name, pieces, n_rows, together))
            for name, pieces in index.tensors.items()
        }
    torch.set_rng_state(state.pop(checkpoint.RANDOM))
    return CheckpointState(index.n_steps, index.n_tokens, state, index.n_skipped)


def _place(folder: Path, n_steps: int) -> Path:
    return folder / f"checkpoint.{n_steps}"


def _let_go(folder: Path, but: Path | None = None) -> None:
    for path in folder.glob("checkpoint.*"):
        if path.is_dir() and path != but:
            shutil.rmtree(path, ignore_errors=True)


def _write_piece(
    path: Path, state: Mapping[str, torch.Tensor], n_rows: Mapping[str, int], together: Processes
) -> None:
    mine, starts = {}, {}
    for key, tensor in state.items():
        if tensor.ndim and len(tensor):
            starts[key] = together.rows(n_rows[key.partition("/")[2]])[0]
        if together.is_first if not tensor.ndim else len(tensor):
            mine[key] = tensor.cpu().contiguous()
    if together.is_first:
        mine[checkpoint.RANDOM], starts[checkpoint.RANDOM] = torch.get_rng_state(), 0
    _tensors.write_tensors(path, mine, {_FIRST_ROWS: json.dumps(starts)})


def _listed(folder: Path, files: list[str]) -> dict[str, list[_Piece]]:
    """What lies where, from the files' own heads."""
    found: dict[str, list[_Piece]] = {}
    for name in files:
        with safe_open(folder / name, framework="pt") as file:
            starts = json.loads((file.metadata() or {}).get(_FIRST_ROWS, "{}"))
            for key in file.keys():  # noqa: SIM118 (no mapping)
                shape = file.get_slice(key).get_shape()
                piece = _Piece(name, starts.get(key, 0), shape[0] if shape else 0)
                found.setdefault(key, []).append(piece)
    return found


def _newest(folder: Path) -> _Index | None:
    """Of both forms that which has come further: killed between the two, the former is not deleted yet."""
    forms = [form for form in (_of_one_file(folder), _of_pieces(folder)) if form is not None]
    return max(forms, key=lambda index: index.n_steps, default=None)


def _of_pieces(folder: Path) -> _Index | None:
    if not (folder / NAME).exists():
        return None
    try:
        return msgspec.json.decode((folder / NAME).read_bytes(), type=_Index)
    except (OSError, msgspec.DecodeError) as error:
        raise _damaged(folder / NAME, error) from None


def _of_one_file(folder: Path) -> _Index | None:
    if not (folder / checkpoint.NAME).exists():
        return None
    try:
        with safe_open(folder / checkpoint.NAME, framework="pt") as file:
            about = file.metadata() or {}
        tensors = _listed(folder, [checkpoint.NAME])
    except (SafetensorError, OSError) as error:
        raise _damaged(folder / checkpoint.NAME, error) from None
    n_steps, n_tokens, n_skipped = (
        int(about.get(name, "0")) for name in ("n_steps", "n_tokens", "n_skipped")
    )
    return _Index(about.get("training", ""), n_steps, n_tokens, n_skipped, tensors)


def _wanted(
    key: str, pieces: list[_Piece], n_rows: Mapping[str, int], together: Processes
) -> tuple[int, int]:
    whole = max(piece.start + piece.n for piece in pieces)
    name = key.partition("/")[2]
    return together.rows(whole) if whole and name in n_rows else (0, whole)


@contextmanager
def _opened(folder: Path) -> Iterator[Any]:
    """(name, pieces, first row and the one behind the last) -> those rows; each file is opened once."""
    with ExitStack() as stack:
        files: dict[str, Any] = {}

        def of(piece: _Piece, name: str, low: int, high: int) -> torch.Tensor:
            if piece.file not in files:
                files[piece.file] = stack.enter_context(safe_open(folder / piece.file, framework="pt"))
            file = files[piece.file]
            low, high = (min(max(at - piece.start, 0), piece.n) for at in (low, high))
            tensor: torch.Tensor = file.get_slice(name)[low:high] if piece.n else file.get_tensor(name)
            return tensor

        def rows(name: str, pieces: list[_Piece], wanted: tuple[int, int]) -> torch.Tensor:
            meeting = [p for p in pieces if p.start < wanted[1] and p.start + p.n > wanted[0]]
            ordered = sorted(meeting, key=lambda piece: piece.start) or pieces[:1]
            try:
                found = [of(piece, name, *wanted) for piece in ordered]
            except (SafetensorError, OSError) as error:
                raise _damaged(folder / NAME, error) from None
            return torch.cat(found) if found[0].ndim else found[0]

        yield rows


def _damaged(path: Path, error: Exception) -> Damaged:
    return Damaged(
        f"{path}: not a checkpoint ({error}). Delete it; the training begins again.",
        code="checkpoint-damaged",
    )
