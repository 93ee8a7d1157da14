"""Check the name that a user gives a new model: it must find that model, and no other.

Promises: names are checked before anything is made; a refusal gives the reason and the next step.
Leaves to others: names that recipes choose. Models may share those: Store.get then asks for an id.
"""

from __future__ import annotations

from collections.abc import Sequence

from heredity.core.errors import Unavailable, UnknownName, UsageError
from heredity.core.records import Model
from heredity.core.sanitize import label
from heredity.lineage.store import Store, target_prefixes
from heredity.lineage.types import Grown, Recipe

LONGEST = 120  # characters: a table of models has room for no more


def refuse_taken(store: Store, name: str, recipe: Recipe, parents: Sequence[Grown]) -> None:
    """Raise UsageError for a name with invisible characters, or one that names another model or a target."""
    if label(name, LONGEST) != name:
        rule = f"A name has at most {LONGEST} visible characters, without spaces around it"
        raise UsageError(f"{rule}: {name[:60]!r}.")
    if (prefix := name.partition(":")[0]) in {*target_prefixes(), "scripted", "hf"} and prefix != name:
        raise UsageError(
            f"'{name}' names a target of the kind '{prefix}:'. Choose a name without the prefix."
        )
    try:
        held = store.get(name).record
    except Unavailable:
        raise UsageError(f"'{name}' is a model of the catalogue. Choose another name.") from None
    except UnknownName:
        return
    known = store.made_by(recipe, [store.whole(parent) for parent in parents])
    if known is None or known.record.id != held.id:
        raise UsageError(f"'{name}' already names another model ({held.id[:12]}). Choose another name.")


def not_given(name: str | None, record: Model) -> str:
    """A message for a name that is not used, because the model exists under another one; else ""."""
    if not name or name == record.name:
        return ""
    return (
        f"This model already exists as '{record.name}', and a model has one name: '{name}' is not used. "
        f"Use {record.name}, or its id {record.id[:12]}."
    )
