"""Grow models and keep their descent: the only door through which a model comes into being.

Promises: a model is there whole and recorded, or not at all; its id is a digest over recipe, parents and
files, the same on every machine; a crash leaves nothing but a temporary folder that a later run clears.
Leaves to others: how a child is made (recipes/) and how a model answers (engines/).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from heredity import engines, recipes, registry
from heredity.errors import (
    Busy,
    Damaged,
    HeredityError,
    NotComparable,
    Unavailable,
    UnknownName,
    UsageError,
)
from heredity.recipes._files import check_file, hash_files, refuse_strays, sizes_fit, walk
from heredity.records import SCHEMA, FileHash, Made, Model, RecipeRecord, digest, encode
from heredity.store import Lock, ResponseCache, default_root, stamp_file, sync_folder, write_atomic

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all (0: not known), what


@dataclass(frozen=True)
class Description:
    """What a recipe says about the child it made, beside its files; none of it enters the id."""

    name: str
    family: str
    licence: str
    format: Literal["safetensors", "gguf", "remote"]
    modality: str = "text"
    notes: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Grown:
    """A model that exists: its record, and the folder that holds its files."""

    record: Model
    folder: Path


class Recipe(Protocol):
    """How a child is made: a frozen value with one method that does it."""

    @property
    def kind(self) -> str:
        """The recipe's word: pull, dequantize, ..."""

    def settings(self) -> dict[str, Any]:
        """Every setting that changes the result, as JSON; no path, clock or host."""

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Write the child's files into the empty folder `out`; none for a child of format "remote"."""


class Store:
    """A folder of models, downloads and answers. `root` None: HEREDITY_STORE, or ~/.cache/heredity."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else default_root()
        self.downloads = self.root / "downloads"

    def models(self) -> list[Model]:
        """Every model of the store whose record can be read, by name and then id; the others: `damaged`."""
        return sorted(self._scan()[0], key=lambda model: (model.name, model.id))

    def damaged(self) -> list[tuple[Path, str]]:
        """Every model.json that cannot be read, with why and what to do; [] in a whole store."""
        return [(path, str(error)) for path, error in self._scan()[1]]

    def get(self, name: str | Callable[..., Any]) -> Grown:
        """A model by its name, by the start of its id, by its catalogue alias, or as "scripted:NAME".

        A target that needs no download (recipes.TARGETS: "call:...", "url:...", "remote:...",
        "llamacpp:NAME", "vllm:NAME") is recorded where it is not yet; so is a function given as a value.

        Raises UnknownName with the nearest name, Unavailable where it is in the catalogue but not yet pulled,
        and where its record cannot be read, what is wrong with it.
        """
        if callable(name):
            name = str(registry.load("recipes", "call").keep(name))
        if name.startswith("scripted:"):
            return scripted(name)
        if (prefix := name.partition(":")[0]) in recipes.TARGETS and name != prefix:
            recipe, parents = registry.load("recipes", recipes.TARGETS[prefix]).resolve(self, name)
            return self._made_by(recipe, parents) or self.grow(recipe, parents)
        models = self.models()
        wanted = _canonical(name)
        found = [model for model in models if model.name == wanted]
        found = found or [model for model in models if len(name) >= 4 and model.id.startswith(name)]
        if len(found) > 1:
            ids = ", ".join(model.id[:12] for model in found)
            raise UsageError(
                f"{len(found)} models answer to '{name}': {ids}. Name one by the start of its id."
            )
        if not found:
            raise self._unreadable(name, wanted) or self._unknown(name, [model.name for model in models])
        return Grown(found[0], self.folder(found[0]))

    def folder(self, model: Model) -> Path:
        """The folder that holds the model's files."""
        return self.root / "models" / model.id / "files"

    def cache(self) -> ResponseCache:
        """The answers that the studies of this store share."""
        return ResponseCache(self.root / "cache.sqlite")

    def grow(self, recipe: Recipe, parents: Sequence[Grown] = ()) -> Grown:
        """Make a child from its parents, hash its files and record it; an existing id is returned as it is.

        Raises Damaged where a parent's files are not the recorded ones or the result is empty.
        """
        for parent in parents:
            if problems := self.verify(parent.record):
                raise Damaged(f"Nothing is grown from a damaged model '{parent.record.name}': {problems[0]}")
        started = time.monotonic()
        with self._workshop() as bench:
            (out := bench / "child" / "files").mkdir(parents=True)
            description = recipe.apply(parents, out)
            files = hash_files(out, recipe.kind, has_weights=description.format != "remote")
            made = Made(_now(), platform.node(), round(time.monotonic() - started, 3), _versions(description))
            record = _record(recipe, parents, files, description, made)
            write_atomic(out.parent / "model.json", msgspec.json.format(encode(record), indent=2) + b"\n")
            return self._move_in(record, out.parent)

    def pull(self, ref: str, progress: Progress | None = None) -> Grown:
        """Get a foundation model: a catalogue name, "hf:ORG/REPO[@revision]", a .gguf file, or a folder.

        What is there already is not downloaded again. Sources, hashes and errors: see recipes/pull.py.
        """
        from heredity.recipes import pull

        if ref.partition(":")[0] in recipes.TARGETS:
            return self.get(ref)  # nothing to fetch
        recipe = pull.resolve(ref, self.downloads, progress)
        known = self._made_by(recipe, []) if recipe.pins else None
        if known and {file.path: file.sha256 for file in known.record.files} == recipe.pins:
            return known
        return self.grow(recipe)

    def ready(self, model: Grown | Model) -> Grown:
        """The form that its engine loads: for torch the dequantized child of a GGUF (made once), else itself.

        Its files are the recorded ones: hashed once, and again where one was touched. Raises Damaged.
        """
        grown = Grown(model, self.folder(model)) if isinstance(model, Model) else model
        self._trust(grown.record)
        if grown.record.format != "gguf" or engines.choose(grown.record) != "torch":
            return grown
        from heredity.recipes.dequantize import Dequantize

        recipe = Dequantize()
        child = self._made_by(recipe, [grown]) or self.grow(recipe, [grown])
        self._trust(child.record)
        return child

    def verify(self, model: Model) -> list[str]:
        """Hash every file again; one line for each that is missing, changed or not recorded."""
        if model.format == "scripted":
            return []
        folder = self.folder(model)
        problems = [p for file in model.files if (p := check_file(folder, file))]
        known = {file.path for file in model.files}
        problems += [f"{folder / path}: not in the record" for path in walk(folder) if path not in known]
        if _identity(model.recipe, model.parents, model.files) != model.id:
            problems.append(f"{folder.parent / 'model.json'}: the record does not give its own id")
        return problems

    def ancestors(self, model: Model) -> list[Model]:
        """Parents, their parents and so on, each once, nearest first. A missing one is an UnknownName."""
        by_id = {m.id: m for m in self.models()}
        found: dict[str, Model] = {}
        waiting = list(model.parents)
        while waiting:
            ident = waiting.pop(0)
            if ident not in by_id:
                raise self._unreadable(ident, ident) or UnknownName("model", ident, by_id, "heredity models")
            if ident not in found:
                found[ident] = by_id[ident]
                waiting += by_id[ident].parents
        return list(found.values())

    def draw(self, model: Model) -> str:
        """The model's descent as a tree, the model itself on top."""
        return "\n".join(_branches(model, {m.id: m for m in self.models()}, "", ""))

    # --- inside ---

    def _scan(self) -> tuple[list[Model], list[tuple[Path, HeredityError]]]:
        good, bad = [], []
        for path in sorted((self.root / "models").glob("*/model.json")):
            try:
                good.append(_read(path))
            except HeredityError as error:
                bad.append((path, error))
        return good, bad

    def _unreadable(self, name: str, wanted: str) -> HeredityError | None:
        """What is wrong with the record of this name or start of an id, where it is there and bad."""
        for path, error in self._scan()[1]:
            is_named = f'"name": "{wanted}"' in path.read_text("utf-8", "replace")
            if is_named or (len(name) >= 4 and path.parent.name.startswith(name)):
                return error
        return None

    def _trust(self, model: Model) -> None:
        """Verify a model that is about to answer; a stamp of its files spares hashing them every time."""
        if model.format == "scripted":
            return
        folder, note = self.folder(model), self.root / "verified" / f"{model.id}.json"
        stamp = encode({path: stamp_file(folder / path) for path in walk(folder)})
        is_same = _identity(model.recipe, model.parents, model.files) == model.id
        if is_same and note.is_file() and note.read_bytes() == stamp:
            return
        if problems := self.verify(model):
            raise Damaged(
                f"'{model.name}' does not answer: {problems[0]}. Its bytes are not the ones of its id; delete"
                f" {folder.parent} and pull or grow it again."
            )
        with suppress(OSError, HeredityError):  # a store that cannot be written to is hashed every time
            write_atomic(note, stamp)

    def _unknown(self, name: str, stored: list[str]) -> Exception:
        from heredity.recipes import pull

        if _canonical(name) in pull.catalogue():
            return Unavailable(f"Model '{name}' is not in this store yet. Get it: heredity pull {name}")
        return UnknownName("model", name, [*stored, *pull.names()], "heredity models")

    def _made_by(self, recipe: Recipe, parents: Sequence[Grown]) -> Grown | None:
        """The newest whole model that this recipe made from these parents."""
        want = (RecipeRecord(recipe.kind, recipe.settings()), tuple(p.record.id for p in parents))
        for model in sorted(self.models(), key=lambda model: model.made.at, reverse=True):
            if (model.recipe, model.parents) == want and sizes_fit(self.folder(model), model):
                return Grown(model, self.folder(model))
        return None

    @contextmanager
    def _workshop(self) -> Iterator[Path]:
        """A temporary folder that this process holds; folders of dead processes are cleared on the way."""
        tmp = self.root / "tmp"
        bench = tmp / uuid.uuid4().hex
        with Lock(tmp, wait_seconds=60):  # so that no one clears a folder between its making and its locking
            _clear_dead(tmp)
            held = Lock(bench).__enter__()
        try:
            yield bench
        finally:
            held.__exit__(None, None, None)
            shutil.rmtree(bench, ignore_errors=True)

    def _move_in(self, record: Model, child: Path) -> Grown:
        home = self.root / "models" / record.id
        home.parent.mkdir(parents=True, exist_ok=True)
        with Lock(self.root / "tmp", wait_seconds=60):
            if (home / "model.json").exists():
                with suppress(Damaged):
                    known = _read(home / "model.json")
                    if not self.verify(known):
                        return Grown(known, self.folder(known))
            if home.exists():  # damaged, and its whole replacement is at hand
                shutil.rmtree(home)
            os.replace(child, home)  # noqa: PTH105
        sync_folder(home.parent)
        return Grown(record, self.folder(record))


def grow(recipe: Recipe, parents: Sequence[Grown] = (), store: Store | None = None) -> Grown:
    """Make a child in `store` (None: its parents' store, or the default one). See Store.grow."""
    return (store or _store_of(parents)).grow(recipe, parents)


def _store_of(parents: Sequence[Grown]) -> Store:
    homes = {parent.folder.parents[2] for parent in parents if parent.folder.parts[-3:-2] == ("models",)}
    if len(homes) > 1:
        places = ", ".join(sorted(map(str, homes)))
        raise UsageError(f"The parents lie in {len(homes)} stores ({places}); pull them into one.")
    return Store(homes.pop()) if homes else Store()


def scripted(ref: str) -> Grown:
    """A record for a rule-driven model "scripted:NAME", which has no files and lives in no store."""
    recipe = RecipeRecord("scripted", {"name": ref.removeprefix("scripted:")})
    made = Made("", "", 0.0, {})
    record = Model(
        _identity(recipe, (), ()), ref, "scripted", "text", "none", "scripted", (), recipe, (), made
    )
    return Grown(record, Path())


def _canonical(name: str) -> str:
    from heredity.recipes import pull

    return pull.aliases().get(name, name)


def _identity(recipe: RecipeRecord, parents: Sequence[str], files: Sequence[FileHash]) -> str:
    return digest([recipe, tuple(parents), tuple(files)])


def _record(
    recipe: Recipe, parents: Sequence[Grown], files: tuple[FileHash, ...], said: Description, made: Made
) -> Model:
    how = RecipeRecord(recipe.kind, recipe.settings())
    ids = tuple(parent.record.id for parent in parents)
    return Model(
        id=_identity(how, ids, files),
        name=said.name,
        family=said.family,
        modality=said.modality,
        licence=said.licence,
        format=said.format,
        parents=ids,
        recipe=how,
        files=files,
        made=made,
        notes=dict(said.notes),
    )


def _read(path: Path) -> Model:
    data = path.read_bytes()
    with suppress(ValueError, TypeError, AttributeError):
        if (schema := json.loads(data).get("schema", SCHEMA)) != SCHEMA:
            raise NotComparable(
                f"{path}: written under schema {schema}, this heredity reads schema {SCHEMA}."
            )
    try:
        model = msgspec.json.decode(data, type=Model)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(
            f"{path}: not a model's record ({error}). Delete {path.parent} and pull or grow it again."
        ) from error
    refuse_strays(path, model)
    return model


def _branches(model: Model, by_id: dict[str, Model], lead: str, below: str) -> Iterator[str]:
    yield f"{lead}{model.name}  {model.id[:12]}  {model.recipe.kind}, {model.format}, {model.licence}"
    for number, ident in enumerate(model.parents, 1):
        is_last = number == len(model.parents)
        first, rest = (below + "└─ ", below + "   ") if is_last else (below + "├─ ", below + "│  ")
        if ident in by_id:
            yield from _branches(by_id[ident], by_id, first, rest)
        else:
            yield f"{first}{ident[:12]}  (not in this store)"


def _clear_dead(tmp: Path) -> None:
    for folder in tmp.iterdir():
        if not folder.is_dir():
            continue
        with suppress(Busy), Lock(folder):  # busy: someone is at work there
            shutil.rmtree(folder, ignore_errors=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions(description: Description) -> dict[str, str]:
    try:
        own = version("heredity")
    except PackageNotFoundError:
        own = "unknown"
    return {
        "heredity": own,
        "python": platform.python_version(),
        **description.versions,
        "system": sys.platform,
    }
