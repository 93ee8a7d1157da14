"""A model's files as its record names them: found, hashed, checked, and kept inside their folder.

Promises: a half, empty or linked file is never recorded; a recorded path never leads outside.
Leaves to others: when to check (store.py) and what the files hold (recipes/pull/folder.py).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import msgspec
from msgspec import UNSET

from heredity.core.errors import Busy, Damaged, HeredityError, NotComparable, Refused, UsageError
from heredity.core.files import Lock, hash_file, read_file, stamp_file, write_atomic
from heredity.core.progress import Watch, phase
from heredity.core.records import SCHEMA, FileHash, Model, RecipeRecord, digest, encode
from heredity.core.version import __version__
from heredity.formats.architectures import form_of
from heredity.lineage.types import Recipe

_REDIRECTION = "adapter_config.json"


def refuse_redirection(model: Model, folder: Path) -> None:
    """Raise Refused where whole weights come with an adapter's config.

    transformers would load the base that the config names, any folder or repository, in place of the files
    that are recorded.
    """
    if model.format == "adapter":
        return
    if any(PurePosixPath(file.path).name == _REDIRECTION for file in model.files):
        raise Refused(
            f"'{model.name}' holds an {_REDIRECTION}, which names other weights than its own. "
            f"Delete {folder.parent}, take that file out of the source, and pull it again.",
            code="adapter-config",
        )


def refuse_strays(path: Path, model: Model) -> None:
    """Nothing outside a model's own folder is read or hashed in its name."""
    advice = f"Delete {path.parent} and pull or grow it again."
    for file in model.files:
        inner = PurePosixPath(file.path)
        if inner.is_absolute() or ".." in inner.parts or set(file.path) & set("\\:\0") or not inner.parts:
            raise Refused(
                f"{path}: the path {file.path[:120]!r} leads outside the model's folder. {advice}",
                code="path-outside",
            )
    if model.id != path.parent.name:
        raise Damaged(
            f"{path}: it is recorded under another id ({model.id[:32]!r}). {advice}",
            code="record-under-another-id",
        )


def walk(folder: Path) -> list[str]:
    """Every file under `folder`, as sorted POSIX paths relative to it."""
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or p.is_file()
    )


def hash_files(out: Path, kind: str, has_weights: bool, watch: Watch | None = None) -> tuple[FileHash, ...]:
    """Hash and sync what a recipe wrote. Raises Refused for a link, and Damaged if the child is not whole,
    or has files although it is remote."""
    paths = walk(out)
    for path in paths:
        if (out / path).is_symlink():
            raise Refused(
                f"The recipe '{kind}' made a symbolic link ({path}); a model holds its own files.",
                code="link-in-model",
            )
        if path.endswith((".part", ".tmp", ".incomplete")):
            raise Damaged(
                f"The recipe '{kind}' left an unfinished file ({path}); nothing was recorded.",
                code="file-unfinished",
            )
        if not (out / path).stat().st_size:
            raise Damaged(
                f"The recipe '{kind}' wrote an empty file ({path}); nothing was recorded.", code="file-empty"
            )
    if not has_weights and paths:
        raise Damaged(
            f"The recipe '{kind}' wrote {paths[0]} for a remote model; nothing was recorded.",
            code="weights-for-remote",
        )
    if has_weights and not any(path.endswith((".safetensors", ".gguf")) for path in paths):
        raise Damaged(
            f"The recipe '{kind}' wrote no weights; nothing was recorded.", code="no-weights-written"
        )
    with phase(watch, "hashing files", n_total=len(paths)) as meter:
        return tuple(meter.each(paths, lambda path: _hash_and_sync(out, path)))


def _hash_and_sync(out: Path, path: str) -> FileHash:
    handle = os.open(out / path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return FileHash(path, (out / path).stat().st_size, hash_file(out / path))


def check_file(folder: Path, file: FileHash) -> str | None:
    """The problem of a recorded file; None if it is whole."""
    path = folder / file.path
    if not path.is_file():
        return f"{path}: missing"
    if (size := path.stat().st_size) != file.bytes:
        return f"{path}: {size:,} bytes, {file.bytes:,} were recorded"
    return None if hash_file(path) == file.sha256 else f"{path}: its SHA-256 is not the recorded one"


def problems(folder: Path, model: Model, watch: Watch | None = None) -> list[str]:
    """Hash every file; one line for each that is missing, changed or not recorded.

    watch: gets the phase "checking files", unless the model has none, as one behind an API.
    """
    with phase(watch if model.files else None, "checking files", model.name, len(model.files)) as meter:
        checked = meter.each(model.files, lambda file: check_file(folder, file))
        found = [problem for problem in checked if problem]
    known = {file.path for file in model.files}
    found += [f"{folder / path}: not in the record" for path in walk(folder) if path not in known]
    if identity(model.recipe, model.parents, model.files) != model.id:
        found.append(f"{folder.parent / 'model.json'}: the record does not give its own id")
    return found


def require_intact(
    folder: Path, model: Model, note: Path, hashed: bytes | None = None, watch: Watch | None = None
) -> None:
    """Raise Damaged or Refused if the files are not the recorded ones.

    note: a file that keeps the stamps of verified files, so that they are not hashed every time.
    hashed: the stamps of the files when they were hashed for the record.
    """
    refuse_redirection(model, folder)
    stamp = stamp_files(folder)
    is_same = identity(model.recipe, model.parents, model.files) == model.id
    if is_same and note.is_file() and note.read_bytes() == stamp:
        return
    if not (is_same and stamp == hashed) and (damage := problems(folder, model, watch)):
        raise Damaged(
            f"'{model.name}' does not answer: {damage[0]}. Its bytes are not the ones of its id; delete"
            f" {folder.parent} and pull or grow it again.",
            code="model-damaged",
        )
    with suppress(OSError, HeredityError):  # a store that cannot be written to is hashed every time
        write_atomic(note, stamp)


def stamp_files(folder: Path) -> bytes:
    """The stamps of all files of a folder; they outlive a move of the folder on its disk."""
    return encode({path: stamp_file(folder / path) for path in walk(folder)})


def sizes_fit(folder: Path, model: Model) -> bool:
    """Whether every recorded file is there in its size; nothing is hashed."""
    return all((p := folder / f.path).is_file() and p.stat().st_size == f.bytes for f in model.files)


def identity(recipe: RecipeRecord, parents: Sequence[str], files: Sequence[FileHash]) -> str:
    """A model's id: a digest over its recipe, its parents' ids and its files."""
    return digest([recipe, tuple(parents), tuple(files)])


def read_record(path: Path) -> Model:
    """A model.json. Raises NotComparable for another schema, Damaged or Refused for anything that is not a
    record."""
    data = read_file(path)
    with suppress(ValueError, TypeError, AttributeError):
        if (schema := json.loads(data).get("schema", SCHEMA)) != SCHEMA:
            raise NotComparable(
                f"{path}: written under schema {schema}, this heredity reads schema {SCHEMA}.",
                code="schema-mismatch",
            )
    try:
        model = msgspec.json.decode(data, type=Model)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(
            f"{path}: not a model's record ({error}). Delete {path.parent} and pull or grow it again.",
            code="record-damaged",
        ) from error
    refuse_strays(path, model)
    return with_form(model, path.parent / "files")


def with_form(model: Model, folder: Path) -> Model:
    """The record with the architecture and the quantization of its safetensors, unless it has them."""
    if model.format != "safetensors" or model.architecture is not UNSET:
        return model
    form = form_of(folder)
    return msgspec.structs.replace(
        model, architecture=form.architecture or UNSET, quantization=form.quantization or UNSET
    )


@contextmanager
def workshop(tmp: Path) -> Iterator[Path]:
    """A temporary folder that this process holds; folders of dead processes are cleared on the way."""
    bench = tmp / uuid.uuid4().hex
    with Lock(tmp, wait_seconds=60):  # so that no one clears a folder between its making and its locking
        clear_dead(tmp)
        held = Lock(bench).__enter__()
    try:
        yield bench
    finally:
        held.__exit__(None, None, None)
        shutil.rmtree(bench, ignore_errors=True)


def clear_dead(tmp: Path) -> None:
    """Delete the folders of dead processes. The caller holds the lock of `tmp`."""
    for folder in tmp.iterdir():
        if not folder.is_dir():
            continue
        with suppress(Busy), Lock(folder):  # busy: someone is at work there
            shutil.rmtree(folder, ignore_errors=True)


def versions(used: Mapping[str, str]) -> dict[str, str]:
    """The versions that made a model: heredity, Python, the system, and the recipe's packages."""
    return {"heredity": __version__, "python": platform.python_version(), **used, "system": sys.platform}


def refuse_other_than_recipe(recipe: object) -> None:
    """Raise UsageError for a value that is not a recipe."""
    if isinstance(recipe, type) or not isinstance(recipe, Recipe):
        raise UsageError(
            f"{str(recipe)[:80]!r} is not a recipe. Give a value such as h.Lora(data=...) or, by its kind, "
            'h.recipe("lora", data=...).',
            code="not-a-recipe",
        )
