"""Who comes from whom: ancestors, descendants, and the drawing of a descent, from records alone.

Promises: every model is named once, nearest first; a lineage that is not whole is still drawn.
Leaves to others: where records are kept and made (lineage.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from heredity.records import Model


def ancestors(model: Model, by_id: Mapping[str, Model]) -> list[Model]:
    """Parents, their parents and so on, as far as they are known."""
    found: dict[str, Model] = {}
    waiting = list(model.parents)
    while waiting:
        ident = waiting.pop(0)
        if ident in by_id and ident not in found:
            found[ident] = by_id[ident]
            waiting += by_id[ident].parents
    return list(found.values())


def descendants(model: Model, models: Iterable[Model]) -> list[Model]:
    """Children, their children and so on."""
    by_parent: dict[str, list[Model]] = {}
    for each in models:
        for parent in dict.fromkeys(each.parents):
            by_parent.setdefault(parent, []).append(each)
    found: dict[str, Model] = {}
    waiting = [model.id]
    while waiting:
        for child in by_parent.get(waiting.pop(0), ()):
            if child.id not in found:
                found[child.id] = child
                waiting.append(child.id)
    return list(found.values())


def draw(model: Model, by_id: Mapping[str, Model]) -> str:
    """The model's descent as a tree of lines, the model itself on top and its foundations below."""
    return "\n".join(_branches(model, by_id, "", ""))


def _branches(model: Model, by_id: Mapping[str, Model], lead: str, below: str) -> Iterator[str]:
    yield f"{lead}{model.name}  {model.id[:12]}  {model.recipe.kind}, {model.format}, {model.licence}"
    for number, ident in enumerate(model.parents, 1):
        is_last = number == len(model.parents)
        first, rest = (below + "└─ ", below + "   ") if is_last else (below + "├─ ", below + "│  ")
        if ident in by_id:
            yield from _branches(by_id[ident], by_id, first, rest)
        else:
            yield f"{first}{ident[:12]}  (not in this store)"
