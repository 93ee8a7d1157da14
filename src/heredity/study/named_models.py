"""Models that a file of a study or its user names: scripted ones, those of the store, those of the study.

Promises: a target such as `call:` is not resolved. A study's folder may come from anyone.
Leaves to others: the names that a user gives to a new study (study.py), and loading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from heredity.core.errors import UnknownName, UsageError
from heredity.core.sanitize import label
from heredity.engines import scripted
from heredity.lineage.references import spellings
from heredity.lineage.store import Store
from heredity.lineage.store import scripted as scripted_model
from heredity.lineage.types import Grown

_SHORTEST_ID = 4  # characters of an id that name a model


class NamedModel(Protocol):
    """A model with an id and a name, such as a planned one or the card of a model in a result."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


_Model = TypeVar("_Model", bound=NamedModel)


def rule_model(name: str) -> Grown:
    """A scripted model. Raises UnknownName with the nearest rule."""
    scripted.parse_rule(name)
    return scripted_model(name)


def stored_model(store: Callable[[], Store], name: str) -> Grown:
    """A scripted model, or one of the store. Raises UnknownName."""
    return rule_model(name) if name.startswith(scripted.PREFIX) else store().named(name)


def model_of_study(models: Sequence[_Model], name: str, code: str = "") -> _Model:
    """The model of a study with this name, the name that it is short for, or this start of its id.

    `leaky` names `scripted:leaky`, if no other ends so.

    No store is opened. Raises UnknownName with the models of the study (code: of this error), and UsageError
    if two have the name.
    """
    found = [model for model in models if name in (model.name, model.id)]
    found = found or [model for model in models if model.name in spellings(name)]
    if not found and len(ending := [m for m in models if m.name.endswith(f":{name}")]) == 1:
        found = ending
    if not found and len(name) >= _SHORTEST_ID:
        found = [model for model in models if model.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"'{label(name)}' is {len(found)} models of this study: give the id.")
    raise unknown_model(models, name, code)


def unknown_model(models: Sequence[NamedModel], name: str, code: str = "") -> UnknownName:
    """The error for a name that no model of a study has; it lists those that there are."""
    known = [label(model.name) for model in models]
    kind, listed = "model of this study", ", ".join(known)
    return UnknownName(kind, label(name), known, listed, code=code)


def with_families(models: Sequence[Grown], tops: Sequence[Grown], store: Callable[[], Store]) -> list[Grown]:
    """The models, and every family below `tops` that the store can ask, each model once."""
    found = {each.record.id: each for each in models}
    for top in tops:
        for each in store().family(top.record).asked:
            grown = top if each.id == top.record.id else Grown(each, store().folder(each))
            found.setdefault(each.id, grown)
    return list(found.values()) if tops else list(models)
