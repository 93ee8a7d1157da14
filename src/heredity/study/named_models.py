"""Models that a file of a study names: scripted ones, those of the store, and those of the study itself.

Promises: a target such as `call:` is not resolved. A study's folder may come from anyone.
Leaves to others: the names that a user gives (study.py), and loading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from heredity.core.errors import UnknownName, UsageError
from heredity.core.sanitize import label
from heredity.engines import scripted
from heredity.lineage import catalog
from heredity.lineage.store import Store
from heredity.lineage.store import scripted as scripted_model
from heredity.lineage.types import Grown


class NamedModel(Protocol):
    """A model with an id and a name, such as a planned one or the card of a model in a result."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


_Model = TypeVar("_Model", bound=NamedModel)


def model_of_study(models: Sequence[_Model], name: str) -> _Model:
    """The model of a study by its name, its alias in the catalogue, or the start of its id.

    Raises UnknownName, and UsageError if several models answer to the name.
    """
    found = [model for model in models if name in (model.name, model.id)]
    found = found or [model for model in models if model.name == catalog.canonical(name)]
    found = found or [model for model in models if len(name) >= 4 and model.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"'{label(name)}' is {len(found)} models of this study: give the id.")
    known = [label(model.name) for model in models]
    raise UnknownName("model of this study", label(name), known, ", ".join(known))


def rule_model(name: str) -> Grown:
    """A scripted model. Raises UnknownName with the nearest rule."""
    scripted.parse_rule(name)
    return scripted_model(name)


def stored_model(store: Callable[[], Store], name: str) -> Grown:
    """A scripted model, or one of the store. Raises UnknownName."""
    return rule_model(name) if name.startswith(scripted.PREFIX) else store().named(name)


def with_families(models: Sequence[Grown], tops: Sequence[Grown], store: Callable[[], Store]) -> list[Grown]:
    """The models, and every family below `tops` that the store can ask, each model once."""
    found = {each.record.id: each for each in models}
    for top in tops:
        for each in store().family(top.record).asked:
            grown = top if each.id == top.record.id else Grown(each, store().folder(each))
            found.setdefault(each.id, grown)
    return list(found.values()) if tops else list(models)
