"""Models that a file of a study names: scripted ones, and those of the store.

Promises: a target such as `call:` is not resolved. A study's folder may come from anyone.
Leaves to others: the names that a user gives (study.py), and loading.
"""

from __future__ import annotations

from collections.abc import Callable

from heredity.engines import scripted
from heredity.lineage.store import Store
from heredity.lineage.store import scripted as scripted_model
from heredity.lineage.types import Grown


def rule_model(name: str) -> Grown:
    """A scripted model. Raises UnknownName with the nearest rule."""
    scripted.parse_rule(name)
    return scripted_model(name)


def stored_model(store: Callable[[], Store], name: str) -> Grown:
    """A scripted model, or one of the store. Raises UnknownName."""
    return rule_model(name) if name.startswith(scripted.PREFIX) else store().named(name)
