"""Models behind guards as models of a study: each is compared with itself without them, trial by trial.

    --model A --guard links --guard secrets+spotlight      A, A+links, A+secrets+spotlight

Promises: a guarded model is not in the store. Its id covers the model and every setting of its guards.
Leaves to others: the guards (application/guarded.py), and the comparison, which is an edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from heredity.application import guards
from heredity.application.guarded import KnownAnswers, guarded
from heredity.application.guards import GuardSpec
from heredity.application.guards.protocols import GuardReaders
from heredity.application.spec import Application
from heredity.core.errors import Damaged, UsageError
from heredity.core.records import Model, RecipeRecord, digest
from heredity.lineage.types import Grown
from heredity.study.plan import Plan, PlannedModel

if TYPE_CHECKING:
    from heredity.core.cache import ResponseCache
    from heredity.engines.protocols import Engine

RECIPE = "behind_guards"


def with_guards(models: Sequence[Grown], named: Sequence[str], application: Application) -> list[Grown]:
    """The models, each followed by itself behind each of the guards.

    named: guards that a study switches on together, as "links" or "links+secrets". Raises UnknownName, and
    UsageError for one that holds for all models anyway.
    """
    chosen = [guards.chosen(names, application) for names in named]
    standing = {spec.label for spec in guards.standing(application)}
    if twice := next((s.label for some in chosen for s in some if s.label in standing), None):
        raise UsageError(
            f"The guard '{twice}' of application '{application.name}' is always on. Write is_on = false there"
            " to compare a model with it and without."
        )
    found: list[Grown] = []
    for model in models:
        found.append(model)
        found += [behind(model, some) for some in chosen]
    return found


def planned(model: Model) -> PlannedModel:
    """A model as a plan holds it."""
    found = PlannedModel(model.id, model.name, model.family, model.licence, model.format)
    if model.recipe.kind != RECIPE:
        return found
    specs = msgspec.convert(model.recipe.settings["guards"], tuple[GuardSpec, ...])
    return replace(found, of=model.parents[0], guards=specs)


def loaded(plan: Plan, model: PlannedModel) -> PlannedModel:
    """The model of a plan that is loaded for one of its models. Raises Damaged if the plan lacks it."""
    if (model.of or model.guards) and model.id != _id(model.of or "", model.guards or ()):
        raise Damaged(f"The id of '{model.name}' in the plan is not that of a model behind these guards.")
    attacker = [plan.attacker] if isinstance(plan.attacker, PlannedModel) else []
    for each in (*plan.models, *attacker):
        if each.id == (model.of or model.id) and not each.of:
            return each
    raise Damaged(f"The plan has '{model.name}', but not the model behind its guards.")


def is_guarded(model: Model) -> bool:
    """Whether a record is that of a model behind guards."""
    return model.recipe.kind == RECIPE


def behind_guards(
    engine: Engine,
    model: PlannedModel,
    application: Application,
    cache: ResponseCache | None,
    readers: GuardReaders | None,
) -> Engine:
    """The engine of a planned model: behind the application's guards and its own.

    readers: the models of guards.
    """
    own = () if model.guards is None else model.guards
    known = None if cache is None else KnownAnswers(cache, model.of or model.id)
    return guarded(engine, application, own, known, readers)


def behind(model: Grown, specs: tuple[GuardSpec, ...]) -> Grown:
    """A model behind these guards, as a model of a study."""
    record, labels = model.record, "+".join(spec.label for spec in specs)
    settings: dict[str, object] = {"guards": msgspec.to_builtins(specs)}
    made = replace(
        record,
        id=_id(record.id, specs),
        name=f"{record.name}+{labels}",
        parents=(record.id,),
        recipe=RecipeRecord(RECIPE, settings),
    )
    return Grown(made, model.folder)


def _id(of: str, specs: tuple[GuardSpec, ...]) -> str:
    return digest([RECIPE, of, {"guards": msgspec.to_builtins(guards.content(specs))}])
