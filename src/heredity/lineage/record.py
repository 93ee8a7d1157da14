"""The record of a model: how it is put together, written, and compared with another making.

Promises: equal recipes and parents have equal keys, for values just made and for values read from JSON.
Leaves to others: the id (integrity.py) and where a record lies (store.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from heredity.core.files import write_atomic
from heredity.core.records import FileHash, Made, Model, RecipeRecord, Record, digest, encode
from heredity.lineage.integrity import identity
from heredity.lineage.types import Description, Grown, NamedRecipe, Recipe

RUN = "run.json"  # in the folder of a long recipe's checkpoints, while it is made


class RunInProgress(Record, frozen=True):
    """A long recipe in progress: what it makes, of which parents, and when it was begun or resumed."""

    name: str  # as its user wants it called; "" for a name by default
    recipe: RecipeRecord
    parents: tuple[str, ...]
    at: str
    schema: int = 1


def record_of(
    recipe: Recipe,
    parents: Sequence[Grown],
    files: tuple[FileHash, ...],
    description: Description,
    made: Made,
) -> Model:
    """The record of a child as its recipe describes it."""
    how = RecipeRecord(recipe.kind, recipe.settings())
    ids = tuple(parent.record.id for parent in parents)
    return Model(
        id=identity(how, ids, files),
        name=description.name,
        family=description.family,
        modality=description.modality,
        licence=description.licence,
        format=description.format,
        parents=ids,
        recipe=how,
        files=files,
        made=made,
        notes=dict(description.notes),
        descent=description.descent,
    )


STAND_IN = "stand-in"  # the recipe of a model that is planned with before it is here


def stand_in(name: str, parents: tuple[str, ...] = (), n_bytes: int = 0) -> Model:
    """The record of a model that is not made or pulled yet, for a plan and its forecast."""
    files = (FileHash("weights", n_bytes, ""),) if n_bytes else ()
    made, recipe = Made("", "", 0.0, {}), RecipeRecord(STAND_IN, {})
    return Model(
        digest([STAND_IN, name]), name, name, "text", "", "safetensors", parents, recipe, files, made
    )


def write_record(record: Model, home: Path) -> None:
    """Write model.json into the folder of a model; a folder with it is complete."""
    write_atomic(home / "model.json", msgspec.json.format(encode(record), indent=2) + b"\n")


def write_run(folder: Path, recipe: Recipe, parents: Sequence[Grown]) -> None:
    """Write run.json into the folder of a long recipe, so that others see what is made there."""
    how = RecipeRecord(recipe.kind, recipe.settings())
    ids = tuple(parent.record.id for parent in parents)
    run = RunInProgress(recipe.name if isinstance(recipe, NamedRecipe) else "", how, ids, now())
    write_atomic(folder / RUN, encode(run) + b"\n")


def wanted_key(recipe: Recipe, parents: Sequence[Grown]) -> str:
    """The key of the child that a recipe would make of these parents."""
    return key_of(RecipeRecord(recipe.kind, recipe.settings()), [parent.record.id for parent in parents])


def key_of(recipe: RecipeRecord, parents: Sequence[str]) -> str:
    """The digest of a recipe and its parents."""
    return digest([recipe, list(parents)])


def now() -> str:
    """The time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_service(recipe: Recipe) -> bool:
    """Whether a recipe only names a model elsewhere, or a function: it may never answer."""
    return recipe.settings().get("engine") in ("call", "remote", "url")
