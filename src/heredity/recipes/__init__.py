"""How a child is made: one file a recipe, each a frozen value with one method `apply(parents, out)`.

A recipe is a lineage.Recipe: `kind` (the file's name), `settings()`, and `apply`, which writes the child's
files into an empty folder and returns a lineage.Description.

To add a recipe to `heredity derive`, add one file that assigns its dataclass to `DERIVES`. The fields are the
flags, and their `help` is the documentation. `PARENTS` names the parents if there is more than one.

Promises (every recipe): only `out` and its own downloads are written. Everything random has a seed in the
settings. torch is imported inside `apply`, not when the file is imported.
Leaves to others: hashing, recording and naming the folder (lineage/).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heredity.lineage.types import Recipe


def derivable() -> list[str]:
    """The recipes that `heredity derive` offers: those that declare DERIVES. None is imported."""
    from heredity.core import registry

    return list(registry.declaring("recipes", "DERIVES"))


def recipe(kind: str, **settings: Any) -> Recipe:
    """A recipe by its kind, with the settings of `heredity derive KIND --help`; also `name` and `watch`.

        h.recipe("lora", data="tickets.jsonl", steps=40, rank=8, name="tickets-lora")

    The classes take the same settings, typed: h.Lora(data="tickets.jsonl", steps=40). `watch` receives the
    progress of a training (Display.training). Raises UnknownName for an unknown kind or setting,
    and UsageError for a setting that is missing or cannot be.
    """
    from heredity.core import registry
    from heredity.core.errors import UnknownName, UsageError
    from heredity.lineage.setting_names import to_current

    if kind not in (known := derivable()):
        raise UnknownName("recipe", kind, known, "heredity derive --help")
    recipe_class = registry.load("recipes", kind).DERIVES
    fields = {each.name: each for each in dataclasses.fields(recipe_class)}
    short = {name.removeprefix("is_"): name for name in fields}
    given = {short.get(name, name): value for name, value in to_current(kind, settings).items()}
    if unknown := sorted(given.keys() - fields):
        raise UnknownName("setting", unknown[0], short, f"heredity derive {kind} --help")
    needed = [name for name, each in fields.items() if _is_needed(each)]
    if missing := [name for name in needed if name not in given]:
        raise UsageError(f"'{kind}' needs {' and '.join(missing)}.", code="setting-missing")
    made: Recipe = recipe_class(**given)
    return made


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing
