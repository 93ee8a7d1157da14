"""Ancestors, descendants, edges, and the drawing of a descent, computed from records only.

Promises: every model is named once, nearest first; a lineage that is not whole is still drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec import UNSET, UnsetType, structs

from heredity.core.errors import Unavailable
from heredity.core.records import Model, Record, digest, why_not_generative
from heredity.engines import DTYPE, KV_CACHE
from heredity.lineage.catalog import evidence_words, how
from heredity.lineage.types import CONTROLS, ForEncoders, Recipe

# Recipes whose child is its first parent in another form: the same weights, read, folded, computed otherwise.
FORMS = ("dequantize", "merge_adapter", "engine", DTYPE)
# Recipes that teach nothing: a base that was made here, and what is of one, goes on with a text.
TEXT_ALONE = ("pretrain", "quantize", "prune", "merge", KV_CACHE, *FORMS)
# Recipes of which further parents are teachers: what they wrote or computed is learned.
TAUGHT = ("distill", "instruct", "finetune", "lora", "alora")


class Edge(Record, frozen=True):
    """A parent and its child, both in one study.

    `recipe` is the child's recipe. If models between them are not in the study, it lists every step, as in
    "finetune > lora", without mere changes of form. `role` is the parent's part: "start" or "teacher" of a
    distilled child, else "". Of a control it is NOISE or CONTROL.
    `descent` is how another tool made an adopted child, and the level of the evidence: "lora (shown)".
    `seeds_of` is the same for children of one parent that differ only in the seed of their training, which is
    `seed`. Both are unset for a child without such a sibling in the study.
    """

    parent: str
    child: str
    recipe: str
    role: str = ""
    seeds_of: str | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    descent: str | UnsetType = UNSET

    @property
    def name(self) -> str:
        return f"{self.child[:8]} from {self.parent[:8]}"

    @property
    def is_control(self) -> bool:
        """Whether the verdict on the child is known in advance."""
        return self.role in CONTROLS


class Family(NamedTuple):
    """A model and its descendants: those to ask, and those left out, each with why."""

    asked: list[Model]
    left_out: list[tuple[Model, str]]


def ancestors(model: Model, by_id: Mapping[str, Model]) -> list[Model]:
    """Parents, their parents and so on, as far as they are known."""
    ancestors: dict[str, Model] = {}
    waiting = list(model.parents)
    while waiting:
        ident = waiting.pop(0)
        if ident in by_id and ident not in ancestors:
            ancestors[ident] = by_id[ident]
            waiting += by_id[ident].parents
    return list(ancestors.values())


def is_base(model: Model, by_id: Mapping[str, Model]) -> bool:
    """Whether it was made here from random weights and nothing in its line taught it to converse.

    It may have a template nevertheless, for its children. False if a parent is not known.
    """
    line = [model, *ancestors(model, by_id)]
    is_whole = all(parent in by_id for each in line for parent in each.parents)
    return is_whole and all(each.recipe.kind in TEXT_ALONE for each in line)


def why_childless(model: Model, needs_text: bool = True) -> str:
    """Why nothing can be derived from a model; "" if something can.

    needs_text: a recipe makes the child, and none does of a model that generates no text. Another tool may.
    """
    if model.recipe.kind in (KV_CACHE, DTYPE):
        return "it is its parent with a setting of the engine, so derive from the parent"
    return why_not_generative(model) if needs_text else ""


def refuse_childless(recipe: Recipe, parents: Iterable[Model]) -> None:
    """Raise Unavailable if a recipe cannot make a child of a parent, and UsageError if it is not for it."""
    for parent in parents:
        if isinstance(recipe, ForEncoders):
            recipe.check_parent(parent)
        if why := why_childless(parent, needs_text=not isinstance(recipe, ForEncoders)):
            raise Unavailable(f"Nothing is derived from '{parent.name}': {why}.")


def descendants(model: Model, models: Iterable[Model]) -> list[Model]:
    """Children, their children and so on."""
    by_parent = _children(models)
    by_id: dict[str, Model] = {}
    waiting = [model.id]
    while waiting:
        for child in by_parent.get(waiting.pop(0), ()):
            if child.id not in by_id:
                by_id[child.id] = child
                waiting.append(child.id)
    return list(by_id.values())


def family(model: Model, models: Iterable[Model], unable: Callable[[Model], str]) -> Family:
    """The model and its descendants, each of them once in whatever forms it is there.

    unable: why a model cannot answer, "" where it can. A mere form (FORMS) of a model that is asked is left
    out; the model itself is always asked.
    """
    kin = {model.id: model} | {each.id: each for each in descendants(model, models)}
    reasons = {ident: why for ident, each in kin.items() if ident != model.id and (why := unable(each))}
    family = Family([], [])
    for ident, each in kin.items():
        same = _same(each, model, kin, reasons)
        why = reasons.get(ident) or (f"another form of '{same.name}', which is asked" if same else "")
        if why:
            family.left_out.append((each, why))
        else:
            family.asked.append(each)
    return family


def _same(each: Model, root: Model, kin: Mapping[str, Model], reasons: Mapping[str, str]) -> Model | None:
    """The asked model of which `each` is only another form; None if there is no such model."""
    at, seen = each, {each.id}
    while at.id != root.id and at.recipe.kind in FORMS and at.parents:
        if at.parents[0] not in kin or at.parents[0] in seen:
            return None
        at = kin[at.parents[0]]
        seen.add(at.id)
    return at if at.id != each.id and at.id not in reasons else None


def edges(models: Sequence[Model], known: Mapping[str, Model]) -> tuple[Edge, ...]:
    """Every child among `models` with its nearest ancestors among them, along each of its parents.

    known: models by id, those between a child and its ancestor among them. Of a mere form the one parent is
    what it is a form of. If `models` lacks that, a child in a named engine ("vllm:NAME") has an edge from its
    ancestor in the same engine, if `models` has one. The edge then shows the descent, not the engine.
    """
    asked = {model.id for model in models}
    computed = {
        (model.parents[0], arithmetic): model.id
        for model in models
        if model.parents and (arithmetic := _arithmetic(model))
    }
    by_pair: dict[tuple[str, str], Edge] = {}
    for child in models:
        for number, parent in enumerate(_parents(child)):
            for ident, steps, role in _nearest(parent, child, _role(child, number), asked, computed, known):
                made = evidence_words(child) or UNSET
                by_pair.setdefault(
                    (ident, child.id),
                    Edge(
                        ident,
                        child.id,
                        " > ".join([step for step in steps if step not in FORMS] or steps[-1:]),
                        role,
                        descent=made,
                    ),
                )
    return _with_seeds(tuple(by_pair.values()), {model.id: model for model in models}, known)


def _with_seeds(
    edges: tuple[Edge, ...], asked: Mapping[str, Model], known: Mapping[str, Model]
) -> tuple[Edge, ...]:
    """The edges, with `seeds_of` and `seed` where children of one parent differ in their seed only."""
    made = [_making(asked[edge.child], asked, known, frozenset()) for edge in edges]
    keys = [digest([edge.parent, edge.recipe, how])[:16] for edge, (how, _) in zip(edges, made, strict=True)]
    seeds: dict[str, set[int]] = {}
    for key, (_, seed) in zip(keys, made, strict=True):
        seeds.setdefault(key, set()).update(seed[:1])
    return tuple(
        structs.replace(edge, seeds_of=key, seed=seed[0])
        if seed and len(seeds[key]) == keys.count(key) > 1
        else edge
        for edge, key, (_, seed) in zip(edges, keys, made, strict=True)
    )


def _unnamed(value: object) -> object:
    """A setting; of data only what a digest is of, because the same rows may lie in files of two names."""
    if isinstance(value, Mapping) and "digest" in value:
        return {name: each for name, each in value.items() if name != "name"}
    return value


def without_seeds(edges: tuple[Edge, ...] | None) -> tuple[Edge, ...] | None:
    """The edges as releases recorded them that looked neither for seeds nor for the evidence of a descent."""
    if edges is None:
        return None
    return tuple(structs.replace(edge, seeds_of=UNSET, seed=UNSET, descent=UNSET) for edge in edges)


def _making(
    child: Model, asked: Mapping[str, Model], known: Mapping[str, Model], above: frozenset[str]
) -> tuple[object, tuple[int, ...]]:
    """How a model was made from asked or unknown ancestors, without seeds; and the seeds, its own first."""
    settings = {name: _unnamed(value) for name, value in child.recipe.settings.items() if name != "seed"}
    own = child.recipe.settings.get("seed")
    seeds: tuple[int, ...] = (own,) if isinstance(own, int) else ()
    parents: list[object] = []
    for ident in child.parents:
        at = known.get(ident)
        if ident in asked or at is None or ident in above:
            parents.append(ident)
            continue
        how, more = _making(at, asked, known, above | {child.id})
        parents.append(how)
        seeds += more
    return [child.recipe.kind, settings, parents], seeds


def _role(child: Model, number: int) -> str:
    """The part of the parent with this number: "start" or "teacher" of a taught child of several, else ""."""
    is_taught = child.recipe.kind in TAUGHT or child.recipe.settings.get("made") == "distill"
    return "" if not is_taught or len(_parents(child)) < 2 else "teacher" if number else "start"


def _nearest(
    parent: str,
    child: Model,
    role: str,
    asked: set[str],
    computed: Mapping[tuple[str, str], str],
    known: Mapping[str, Model],
) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """The nearest asked models at or above `parent`, each with the recipes down to the child and its role.

    role: the parent's. A mere form of a taught child has the roles of that child's parents.
    computed: the asked forms of models in other arithmetic, by the model's id and `_arithmetic`.
    """
    seen, arithmetic = {child.id}, _arithmetic(child)
    waiting: list[tuple[str, tuple[str, ...], str]] = [(parent, (child.recipe.kind,), role)]
    while waiting:
        ident, steps, role = waiting.pop(0)
        if ident in seen:
            continue
        seen.add(ident)
        if (same := computed.get((ident, arithmetic), child.id)) != child.id:
            yield same, steps[:-1], role
        elif ident in asked:
            yield ident, steps, role
        elif (at := known.get(ident)) is not None:
            is_form = all(step in (KV_CACHE, *FORMS) for step in steps)
            waiting += [
                (above, (at.recipe.kind, *steps), _role(at, number) if is_form else role)
                for number, above in enumerate(_parents(at))
            ]


def _arithmetic(model: Model) -> str:
    """The engine, or the setting of one, in which a record has its parent computed; "" for other recipes."""
    is_computed = model.recipe.kind in ("engine", DTYPE, KV_CACHE)
    return digest([model.recipe.kind, model.recipe.settings]) if is_computed else ""


def _parents(model: Model) -> tuple[str, ...]:
    return model.parents[:1] if model.recipe.kind in FORMS else model.parents


def _children(
    models: Iterable[Model], parents: Callable[[Model], tuple[str, ...]] = lambda model: model.parents
) -> dict[str, list[Model]]:
    by_parent: dict[str, list[Model]] = {}
    for each in models:
        for parent in dict.fromkeys(parents(each)):
            by_parent.setdefault(parent, []).append(each)
    return by_parent


def draw(model: Model, by_id: Mapping[str, Model]) -> str:
    """The model's descent as a tree of lines, the model itself on top and its foundations below."""
    return "\n".join(_branches(model, by_id, "", ""))


def _branches(model: Model, by_id: Mapping[str, Model], lead: str, below: str) -> Iterator[str]:
    yield f"{lead}{model.name}  {model.id[:12]}  {how(model)}, {model.format}, {model.licence}"
    for number, ident in enumerate(model.parents, 1):
        is_last = number == len(model.parents)
        first, rest = (below + "└─ ", below + "   ") if is_last else (below + "├─ ", below + "│  ")
        if ident in by_id:
            yield from _branches(by_id[ident], by_id, first, rest)
        else:
            yield f"{first}{ident[:12]}  (not in this store)"


def forest(models: Sequence[Model]) -> str:
    """The whole lineage as lines: foundations first, each with its descendants below it.

    A model of several parents is drawn with its descendants below the first parent, and as one line below
    the others.
    """
    by_parent, known = _children(models, _parents), {model.id for model in models}
    drawn: set[str] = set()
    foundations = [model for model in models if not known & {*model.parents}]
    lines: list[str] = []
    for model in (*foundations, *models):  # the second time for what no foundation leads to
        if model.id not in drawn:
            lines += _downward(model, by_parent, known, drawn)
    return "\n".join(lines)


def _downward(
    top: Model, by_parent: Mapping[str, list[Model]], known: set[str], drawn: set[str]
) -> Iterator[str]:
    waiting = [(top, "", "")]  # not by recursion: a descent may be longer than Python's stack
    while waiting:
        model, lead, below = waiting.pop()
        if model.id in drawn:
            yield f"{lead}{model.name}  {model.id[:12]}  (drawn above)"
            continue
        drawn.add(model.id)
        missing = [ident[:12] for ident in model.parents if ident not in known]
        gone = f"  (of {', '.join(missing)}, not in this store)" if missing else ""
        yield f"{lead}{model.name}  {model.id[:12]}  {how(model)}, {model.format}{gone}"
        children = by_parent.get(model.id, [])
        for number, child in enumerate(reversed(children)):
            first, rest = ("├─ ", "│  ") if number else ("└─ ", "   ")
            waiting.append((child, below + first, below + rest))
