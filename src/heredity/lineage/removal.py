"""Take models out of a store, and rename them.

Promises: a model is in the store whole, or not at all, also after a crash. Descent is checked under the lock
under which models are recorded. An id never changes.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from heredity.core.errors import Busy, Refused, UnknownName, UsageError
from heredity.core.files import Lock, is_locked, sync_folder
from heredity.core.records import Model, is_digest
from heredity.lineage import catalog
from heredity.lineage.store import (
    Store,
    clear_dead,
    key_of,
    models_named,
    read_record,
    refuse_malformed,
    workshop,
    write_record,
)

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
    garbage = [each for kind in kinds for each in kind(store)]
    cache = store.root / "cache.sqlite"
    if with_answers and (n_bytes := sum(map(tree_bytes, cache.parent.glob("cache.sqlite*")))):
        garbage.append(Garbage("answers", cache, n_bytes))
    return sorted(garbage, key=lambda each: (-each.n_bytes, str(each.path)))


def delete_garbage(store: Store, garbages: Sequence[Garbage]) -> int:
    """Delete what was found and still is garbage; returns the bytes that are free now."""
    for each in garbages:
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
    if any(each.kind == "killed" for each in garbages):
        with Lock(store.root / "tmp", wait_seconds=60):
            clear_dead(store.root / "tmp")
    return sum(max(0, each.n_bytes - _left(each)) for each in garbages)


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


_WAIT_SECONDS = 60
_ID_START = 4  # characters of an id that name a model
_MAX_NAMED = 5  # children in a message


class StoredFolder(NamedTuple):
    """A model by its folder, so that one whose record cannot be read can be removed, too."""

    id: str
    name: str
    home: Path

    @property
    def n_bytes(self) -> int:
        """The size of all its files."""
        return tree_bytes(self.home)


class RemovedModels(NamedTuple):
    """The models that are gone, and the bytes that they had."""

    models: tuple[StoredFolder, ...]
    n_bytes: int


def find_stored(store: Store, name: str) -> StoredFolder:
    """A model of the store by its name, its alias, or the start of its id. No target is resolved.

    Raises UnknownName, and UsageError if several models answer to the name.
    """
    models = store.models()
    matches = models_named(models, name)
    matches = matches or [each for each in models if len(name) >= _ID_START and each.id.startswith(name)]
    folders = [StoredFolder(each.id, each.name, store.root / "models" / each.id) for each in matches]
    if not folders and len(name) >= _ID_START:
        homes = [path.parent for path, _ in store.damaged() if path.parent.name.startswith(name)]
        folders = [StoredFolder(home.name, home.name[:12], home) for home in homes]
    if len(folders) > 1:
        ids = ", ".join(each.id[:12] for each in folders)
        raise UsageError(f"{len(folders)} models answer to '{name}': {ids}. Name one by the start of its id.")
    if not folders:
        raise UnknownName("model of this store", name, [each.name for each in models], "heredity models")
    return folders[0]


def remove_models(store: Store, wanted: Sequence[StoredFolder], *, is_forced: bool = False) -> RemovedModels:
    """Remove models with their files and what the store noted about them.

    is_forced: also if other models descend from them, whose lineage then ends there. Raises Refused.
    """
    ids = list(dict.fromkeys(each.id for each in wanted))
    gone = tuple(next(each for each in wanted if each.id == ident) for ident in ids)
    n_bytes = sum(each.n_bytes for each in gone)
    with workshop(store.root / "tmp") as bench:
        with Lock(store.root / "tmp", wait_seconds=_WAIT_SECONDS):
            if not is_forced:
                _refuse_parents(store, gone)
            for each in gone:
                if each.home.exists():  # another process may have removed it meanwhile
                    os.replace(each.home, bench / each.id)  # noqa: PTH105
            sync_folder(store.root / "models")
        for each in gone:
            for note in (store.root / "verified" / f"{each.id}.json", store.root / "tuning" / each.id):
                note.unlink(missing_ok=True)
    return RemovedModels(gone, n_bytes)


def _refuse_parents(store: Store, gone: Sequence[StoredFolder]) -> None:
    ids = {each.id for each in gone}
    for each in gone:
        children = [m.name for m in store.models() if each.id in m.parents and m.id not in ids]
        if children:
            named = ", ".join(children[:_MAX_NAMED])
            named += f" and {len(children) - _MAX_NAMED} more" if len(children) > _MAX_NAMED else ""
            raise Refused(
                f"'{each.name}' is a parent of {named}. Name them too, or give --force: their lineage then "
                "ends there, and adapters lose their base."
            )


def rename_model(store: Store, name: str, new: str) -> Model:
    """Give a model another name, and return its record. Its id stays the same, and so do its studies.

    Raises UsageError for a name that another model has, or that cannot be one; also for a model elsewhere,
    whose name is its address.
    """
    refuse_malformed(new)
    is_plain = new.isprintable() and not set(new) & set(":/\\@ ") and not new.startswith(("-", "."))
    if not is_plain or len(new) > 100:
        raise UsageError(
            f"'{new[:100]}' cannot be a name. It may have 100 characters, none of them a space or one of "
            ": / \\ @, and does not begin with - or a dot."
        )
    if catalog.find(new) is not None:
        raise UsageError(f"'{new}' is a model of the catalogue: take another name.", code="name-twice")
    with Lock(store.root / "tmp", wait_seconds=_WAIT_SECONDS):
        held = find_stored(store, name)
        record = read_record(held.home / "model.json")
        if ":" in record.name or record.format == "remote":
            raise UsageError(f"'{record.name}' is found by its name, which stays.")
        if any(each.name == new and each.id != held.id for each in store.models()):
            raise UsageError(f"Another model is named '{new}'.", code="name-twice")
        renamed = msgspec.structs.replace(record, name=new)
        write_record(renamed, held.home)
    return renamed


def tree_bytes(path: Path) -> int:
    """The bytes of a file, or of all files below a folder; of what is gone, 0. Links are not followed."""
    if path.is_file() or path.is_symlink():
        return _bytes(path)
    return sum(_bytes(Path(folder) / name) for folder, _, names in os.walk(path) for name in names)


def _bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
