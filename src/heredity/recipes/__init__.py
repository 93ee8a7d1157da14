"""How a child is made: one file a recipe, each a frozen value with one method `apply(parents, out)`.

A recipe is a lineage.Recipe: `kind` (the file's name), `settings()` and `apply`, which writes the child's
files into an empty folder and returns a lineage.Description.

A recipe that `heredity derive` offers has DERIVES, its dataclass: its fields are the flags, their `help` the
documentation (_tuned.setting), and `PARENTS`, in words, where it takes other than one.

Promises (every recipe): nothing but `out` and its own downloads is written; nothing random without a seed in
the settings; torch is imported inside `apply`, never when the file is imported.
Leaves to others: hashing, recording and naming the place (lineage.py).
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
    """How a child is made, with the settings of `heredity derive KIND --help`; also `name` and `watch`.

        h.recipe("lora", data=h.Data.read("tickets.jsonl"), steps=40, rank=8, name="tickets-lora")

    `watch` is told how a training goes (Display.training). Raises UnknownName for a kind or a setting that
    there is not, UsageError for one that is missing or cannot be.
    """
    from heredity.core import registry
    from heredity.core.errors import UnknownName, UsageError

    if kind not in (known := derivable()):
        raise UnknownName("recipe", kind, known, "heredity derive --help")
    of = registry.load("recipes", kind).DERIVES
    values, left = {}, dict(settings)
    for each in dataclasses.fields(of):
        if each.name == "training":
            values[each.name] = _training(each, left)
        elif (key := each.name.removeprefix("is_")) in left:
            values[each.name] = left.pop(key)
    if left:
        names = [name for each in dataclasses.fields(of) for name in _settings_of(each)]
        raise UnknownName("setting", min(left), names, f"heredity derive {kind} --help")
    needed = [each.name for each in dataclasses.fields(of) if _is_needed(each)]
    if missing := [name for name in needed if name not in values]:
        raise UsageError(f"'{kind}' needs {' and '.join(missing)}.", code="setting-missing")
    made: Recipe = of(**values)
    return made


def _training(field: dataclasses.Field[Any], left: dict[str, Any]) -> Any:
    """The recipe's own Training with what was given, which is taken out of `left`."""
    made = field.default_factory
    default: Any = field.default if made is dataclasses.MISSING else made()
    given = {name: left.pop(name) for name in _settings_of(field) if name in left}
    return dataclasses.replace(default, **given)


def _settings_of(field: dataclasses.Field[Any]) -> list[str]:
    if field.name != "training":
        return [field.name.removeprefix("is_")]
    from heredity.recipes._training_run import Training

    return [each.name for each in dataclasses.fields(Training)]


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing
