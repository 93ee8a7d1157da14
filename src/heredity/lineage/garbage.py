"""Files of a store that nothing needs any more, found and deleted.

    found = find_garbage(store)
    delete_garbage(store, found)

Promises: no model, no record of a first pull and no training that can resume is garbage. A folder in which a
process works is left alone, also if it begins between the two calls. After a crash the same call continues.
Leaves to others: whole models (removal.py).
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from heredity.core.errors import Busy
from heredity.core.files import Lock, is_locked
from heredity.core.records import is_digest
from heredity.lineage.removal import tree_bytes
from heredity.lineage.store import Store, clear_dead, key_of

Kind = Literal["download", "killed", "training", "note", "index", "scores", "answers"]
_OWN = {".lock", ".lock.pid"}  # of a lock, which stays


class Garbage(NamedTuple):
    """A file or folder that may go.

    kind: "download", interrupted: a pull would resume it. "killed": left by a process that was killed.
    "training": checkpoints of a model that is recorded. "note": about a model that is gone. "index": made by
    heredity view for a study that is gone. "scores": of a teacher that is gone. "answers": the cache
    of answers, without which a study asks again what another asked before.
    """

    kind: Kind
    path: Path
    n_bytes: int


def find_garbage(store: Store, *, with_answers: bool = False) -> list[Garbage]:
    """The garbage of a store, the largest first. with_answers: also the cache of answers."""
    kinds = (_downloads, _killed, _trainings, _notes, _indices, _scores)
    found = [each for kind in kinds for each in kind(store)]
    cache = store.root / "cache.sqlite"
    if with_answers and (n_bytes := sum(map(tree_bytes, cache.parent.glob("cache.sqlite*")))):
        found.append(Garbage("answers", cache, n_bytes))
    return sorted(found, key=lambda each: (-each.n_bytes, str(each.path)))


def delete_garbage(store: Store, found: Sequence[Garbage]) -> int:
    """Delete what was found and still is garbage; returns the bytes that are free now."""
    for each in found:
        if each.kind == "answers":
            with store.cache() as cache:
                cache.clear()
        elif each.kind == "note":
            each.path.unlink(missing_ok=True)
        elif each.kind == "scores" and each.path.is_file():
            each.path.unlink()
        elif each.kind == "index":
            for path in _parts(each.path):
                path.unlink(missing_ok=True)
        elif each.kind != "killed":
            with suppress(Busy), Lock(each.path):
                _empty(each.path)
    if any(each.kind == "killed" for each in found):
        with Lock(store.root / "tmp", wait_seconds=60):
            clear_dead(store.root / "tmp")
    return sum(max(0, each.n_bytes - _left(each)) for each in found)


def _left(each: Garbage) -> int:
    if each.kind == "answers":
        return sum(map(tree_bytes, each.path.parent.glob("cache.sqlite*")))
    return sum(map(tree_bytes, _parts(each.path))) if each.kind == "index" else tree_bytes(each.path)


def _downloads(store: Store) -> Iterator[Garbage]:
    for folder in _folders(store.downloads):
        if not is_locked(folder) and (n_bytes := tree_bytes(folder)):
            yield Garbage("download", folder, n_bytes)


def _killed(store: Store) -> Iterator[Garbage]:
    for folder in _folders(store.root / "tmp"):
        if not is_locked(folder):
            yield Garbage("killed", folder, tree_bytes(folder))


def _trainings(store: Store) -> Iterator[Garbage]:
    """Checkpoints whose model was recorded before the process could delete them."""
    made = {key_of(model.recipe, model.parents) for model in store.models()}
    for folder in _folders(store.root / "training"):
        if folder.name in made and not is_locked(folder) and (n_bytes := tree_bytes(folder)):
            yield Garbage("training", folder, n_bytes)


def _notes(store: Store) -> Iterator[Garbage]:
    """Verified stamps and measured speeds of models that the store no longer has."""
    held = {folder.name for folder in _folders(store.root / "models")}
    for place in ("verified", "tuning"):
        for path in _entries(store.root / place):
            name = path.name.removesuffix(".json")
            if path.is_file() and is_digest(name) and name not in held:
                yield Garbage("note", path, tree_bytes(path))


def _indices(store: Store) -> Iterator[Garbage]:
    """Indices of studies whose folder is gone. One that names no folder can be made again."""
    for path in _entries(store.root / "view"):
        if path.suffix == ".sqlite" and not _study_of(path).joinpath("plan.json").is_file():
            yield Garbage("index", path, sum(map(tree_bytes, _parts(path))))


def _scores(store: Store) -> Iterator[Garbage]:
    """Log-probabilities of teachers that the store no longer has, and those of releases that named none."""
    held = {folder.name for folder in _folders(store.root / "models")}
    for path in _entries(store.root / "scores"):
        if path.name not in held and not path.is_symlink() and (n_bytes := tree_bytes(path)):
            yield Garbage("scores", path, n_bytes)


def _study_of(index: Path) -> Path:
    """The folder of the study that an index names; that of the index if it names none."""
    with (
        suppress(sqlite3.DatabaseError),
        closing(sqlite3.connect(f"{index.absolute().as_uri()}?mode=ro", uri=True)) as rows,
    ):
        for (folder,) in rows.execute("SELECT value FROM about WHERE key = 'folder'"):
            return Path(folder)
    return index.parent


def _parts(index: Path) -> list[Path]:
    """The files of an index: its own, those of SQLite, and its lock."""
    return [path for path in _entries(index.parent) if path.name.startswith(f"{index.stem}.")]


def _empty(folder: Path) -> None:
    """Delete the content of a folder that this process holds. Its lock stays, which others may wait for."""
    for path in _entries(folder):
        if path.name in _OWN:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _folders(place: Path) -> list[Path]:
    return [path for path in _entries(place) if path.is_dir() and not path.is_symlink()]


def _entries(place: Path) -> list[Path]:
    return sorted(place.iterdir()) if place.is_dir() else []
