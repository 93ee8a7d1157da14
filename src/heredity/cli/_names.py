"""What a child may be called: a name that finds it again, and takes none from another model.

Promises: asked before anything is made; a name that is refused says why and what to do.
Leaves to others: the names that recipes give by themselves, which models may share: Store.get asks for an id.
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
    """Raises UsageError for a name that no one could type again, or that another model answers to."""
    if label(name, LONGEST) != name:
        said = f"A name is at most {LONGEST} characters that can be seen, without spaces around it"
        raise UsageError(f"{said}: {name[:60]!r}.")
    if (prefix := name.partition(":")[0]) in {*target_prefixes(), "scripted", "hf"} and prefix != name:
        raise UsageError(f"'{name}' names a target of the kind '{prefix}:', so that no model is found by it.")
    try:
        held = store.get(name).record
    except Unavailable:
        raise UsageError(f"'{name}' is a model of the catalogue. Take another name.") from None
    except UnknownName:
        return
    known = store.made_by(recipe, [store.whole(parent) for parent in parents])
    if known is None or known.record.id != held.id:
        raise UsageError(f"'{name}' is another model ({held.id[:12]}) already. Take another name.")


def not_given(name: str | None, record: Model) -> str:
    """What to say of a name that was asked for and not given, since the model is there already; else ""."""
    if not name or name == record.name:
        return ""
    return (
        f"This model is there already, as '{record.name}', and a model has one name: '{name}' is not given. "
        f"Use {record.name}, or its id {record.id[:12]}."
    )
