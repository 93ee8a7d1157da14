"""Copy models with their ancestors to and from storage elsewhere: a bucket, a server, a shared folder.

The layout there is that of a store: models/ID/model.json and models/ID/files. An id is a digest of its files,
so several machines may push at once. An address is any of fsspec's ("s3://bucket/models", "/mnt/team/store").

Promises: a record arrives there after its files. A pulled model is checked like any foreign one: its
sizes before the transfer, its hashes and contents after it. It is recorded whole or not at all.
Leaves to others: credentials, which fsspec's packages read from the environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from heredity.core.errors import Damaged, HeredityError, Unavailable, UnknownName, UsageError
from heredity.core.progress import Meter, Watch
from heredity.core.records import Model, is_digest
from heredity.lineage import graph
from heredity.lineage.store import (
    Store,
    file_problems,
    models_named,
    read_record,
    refuse_redirection,
    sizes_fit,
    workshop,
    write_record,
)
from heredity.lineage.types import Grown
from heredity.recipes.pull import check_files
from heredity.recipes.pull.hub import check_room

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_RECORD = "model.json"
_MAX_RECORD = 16 << 20  # bytes


class Storage:
    """Models at an address of fsspec. Raises Unavailable without the package that its protocol needs."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        from fsspec.core import url_to_fs

        try:
            filesystem: tuple[AbstractFileSystem, str] = url_to_fs(self.url)
        except ImportError as error:
            raise Unavailable(f"{self.url} needs another package: {error}", code="package-missing") from error
        except ValueError as error:
            raise UsageError(f"'{self.url}' is no address of fsspec: {error}") from error
        self._fs, root = filesystem
        self._models = f"{root.rstrip('/')}/models"

    def push(self, store: Store, names: Sequence[str], watch: Watch | None = None) -> list[Model]:
        """Copy models of a store and their ancestors there. Returns those that were not there yet.

        Raises Damaged if the files of a model are not the recorded ones.
        """
        wanted: dict[str, Model] = {}
        for model in (store.get(name).record for name in names):
            wanted.update({each.id: each for each in (*reversed(store.ancestors(model)), model)})
        missing = [model for model in wanted.values() if not self._has(model)]
        meter = Meter(watch, "pushing", sum(len(model.files) + 1 for model in missing))
        for model in missing:
            if problems := store.verify(model):
                raise Damaged(f"'{model.name}' is not pushed: {problems[0]}")
            home = store.folder(model).parent
            for path in (*(f"files/{file.path}" for file in model.files), _RECORD):
                source = home / path
                target = f"{self._models}/{model.id}/{path}"
                self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(source), target)
                meter.tick()
        meter.close()
        return missing

    def pull(self, store: Store, name: str, watch: Watch | None = None) -> Grown:
        """Copy a model, named by its name or id, and its ancestors from there into a store.

        Raises UnknownName, Damaged and Refused. Nothing half is recorded.
        """
        with workshop(store.root / "tmp") as bench:
            there, errors = self._records(bench / "records")
            if not there and not errors:
                raise Unavailable(f"{self.url} holds no models. Copy one there: heredity push")
            matches = [there[name]] if name in there else models_named(list(there.values()), name)
            if not matches and errors:
                raise errors[0]
            if not matches:
                names = sorted({model.name for model in there.values()})
                raise UnknownName(f"model in {self.url}", name, names, ", ".join(names[:12]))
            if len(matches) > 1:
                ids = ", ".join(model.id[:12] for model in matches)
                message = f"{len(matches)} models there have the name '{name}': {ids}. Name one by its id."
                raise UsageError(message)
            model = matches[0]
            line = [*reversed(graph.ancestors(model, there)), model]
            absent = [ident for each in line for ident in each.parents if ident not in there]
            if absent:
                raise Damaged(
                    f"{self.url}: '{name}' descends from {absent[0][:12]}, which is not there. "
                    f"Push it from a store that has it: heredity push {name} --to {self.url}"
                )
            missing = [each for each in line if not _is_whole(store, each)]
            check_room(store.root, sum(file.bytes for each in missing for file in each.files))
            meter = Meter(watch, "pulling", sum(len(each.files) for each in missing))
            for each in missing:
                self._receive(store, each, bench / each.id, meter)
            meter.close()
        return store.by_id(model.id)

    def _receive(self, store: Store, model: Model, home: Path, meter: Meter) -> None:
        out = home / "files"
        out.mkdir(parents=True)
        for file in model.files:
            source, target = f"{self._models}/{model.id}/files/{file.path}", out / file.path
            if (size := self._size(source)) != file.bytes:
                problem = (
                    "is missing" if size is None else f"has {size:,} bytes, {file.bytes:,} were recorded"
                )
                raise Damaged(f"{self.url}: {file.path} of '{model.name}' {problem}.")
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(source, str(target))
            meter.tick()
        place = f"{self.url} ({model.name})"
        if problems := file_problems(out, model):
            raise Damaged(problems[0].replace(str(home), place))
        check_files(out, place, is_adapter=model.format == "adapter")
        refuse_redirection(model, out)
        write_record(model, home)
        store.receive(model, home)

    def _records(self, folder: Path) -> tuple[dict[str, Model], list[HeredityError]]:
        """The models there, by id, and why other records cannot be read."""
        records: dict[str, Model] = {}
        errors: list[HeredityError] = []
        listed = self._fs.ls(self._models, detail=False) if self._fs.exists(self._models) else []
        for ident in (str(path).rstrip("/").rpartition("/")[2] for path in listed):
            data = self._record(ident) if is_digest(ident) else None
            if data is None:
                continue
            path = folder / ident / _RECORD
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
            try:
                records[ident] = read_record(path)
            except HeredityError as error:
                place = f"{self.url}/models/{ident}"
                errors.append(type(error)(str(error).replace(str(path.parent), place), code=error.code))
        return records, errors

    def _record(self, ident: str) -> bytes | None:
        """The bytes of a record; None if it is not there, or too large for one."""
        path = f"{self._models}/{ident}/{_RECORD}"
        size = self._size(path)
        return None if size is None or size > _MAX_RECORD else bytes(self._fs.cat_file(path))

    def _has(self, model: Model) -> bool:
        data = self._record(model.id)
        try:
            return data is not None and msgspec.json.decode(data, type=Model).id == model.id
        except msgspec.DecodeError:  # a push was cut off there
            return False

    def _size(self, path: str) -> int | None:
        """The bytes of a file there; None if there is no such file."""
        try:
            return int(self._fs.info(path)["size"])
        except FileNotFoundError:
            return None


def _is_whole(store: Store, model: Model) -> bool:
    folder = store.folder(model)
    return (folder.parent / _RECORD).is_file() and sizes_fit(folder, model)
