"""Make the children of a lineage plan, each once, and name those that cannot be made.

Promises: a child that the store has is not made again. A child whose recipe, setting or data is not in this
version is left out with the reason, and so are its own children. No other model takes its place. A child
that is the same model as another one is left out, too: it would count twice. Where the user made every
child, none is left out: one that cannot be had is an error.
Leaves to others: the recipes, and the order of the whole (run.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from msgspec import UnsetType

from heredity.application.spec import Application
from heredity.core.errors import BadInput, HeredityError, OutOfMemory, Refused, Unavailable, UsageError
from heredity.core.progress import Watch, phase
from heredity.lab import repair as repairing
from heredity.lab.examples import (
    load_data,
)
from heredity.lab.plan import (
    ANSWERS,
    BEHIND,
    ENGINE,
    MADE,
    REPAIR,
    ChildPlan,
    LeftOutChild,
    LineagePlan,
)
from heredity.lineage.references import is_elsewhere
from heredity.lineage.store import Store, target_of, target_prefixes
from heredity.lineage.types import EngineLoader, Grown, Recipe
from heredity.recipes import derivable, derivable_class, recipe
from heredity.recipes.adopt import Adopt
from heredity.study.named_models import guarded_model
from heredity.train.data.chat import Data

KEPT_ANSWERS = "answers.jsonl"  # of a model that learned the answers of a teacher
_SHAPES = {"model_type": "of another architecture", "vocab_size": "of another vocabulary size"}
_NOT_MADE = (UsageError, Unavailable, Refused, OutOfMemory)


class Task(NamedTuple):
    """A child to make from one seed; None for a child without seeds."""

    child: ChildPlan
    seed: int | None

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.child.name_of(self.seed)


def tasks(plan: LineagePlan) -> list[Task]:
    """The children in the order in which they are made, one task a seed."""
    return [Task(child, seed) for child in plan.child for seed in child.each_seed]


@dataclass
class Lineage:
    """The models of a plan as they are made.

    models: by the plan's names, foundations first; `NAME-SEED` for a child of several seeds.
    repair_out: the folder for the studies of repairs.
    data: the sets of the plan that are read.
    warn: receives what is doubtful about a training; None for nobody.
    """

    plan: LineagePlan
    store: Store
    repair_out: Path
    watch: Watch | None = None
    engine_loader: EngineLoader | None = None
    models: dict[str, Grown] = field(default_factory=dict)
    left_out: list[LeftOutChild] = field(default_factory=list)
    data: dict[str, Data | Path] = field(default_factory=dict)
    warn: Callable[[str], None] | None = None

    def pull(self) -> None:
        """Get the foundations, each once. Raises the errors of Store.pull."""
        for name, ref in self.plan.models.items():
            if name not in self.models:
                self.models[name] = stored(self.store, ref, self.watch)

    def preview(self) -> list[Task]:
        """The tasks that this version can do; the others are added to `left_out`. Nothing is made."""
        possible, missing, every = [], set[str](), tasks(self.plan)
        with phase(self.watch, "checking the children", n_total=len(every)) as meter:
            for task in every:
                why = self._obstacle(task, missing)
                meter.tick()
                if not why:
                    possible.append(task)
                elif task.child.name not in missing:
                    missing.add(task.child.name)
                    self.left_out.append(LeftOutChild(task.child.name, why))
        return possible

    def _obstacle(self, task: Task, missing: Collection[str]) -> str:
        """Why a task is left out, next to the children that are missing; "" if it is not. Raises BadInput."""
        if parent := next((each for each in task.child.parents if each in missing), ""):
            return f"its parent '{parent}' is left out"
        try:
            child = task.child
            if child.recipe == ENGINE:
                prefix, _, ref = str(child.settings.get("ref", "")).partition(":")
                if prefix not in target_prefixes():
                    return f"no engine or setting is named '{prefix}'"
                target = target_of(f"{prefix}:")
                if target is None or not target.WRAPS_MODEL or ref != "{parent}":  # "call:" would run code
                    return f"its ref is not 'ENGINE:{{parent}}' but '{prefix}:{ref}'"
                return ""
            if child.recipe not in (MADE, REPAIR, BEHIND):
                self._recipe(task)
            return ""
        except BadInput:
            raise
        except _NOT_MADE as error:
            return str(error)

    def make(self, task: Task) -> HeredityError | None:
        """Make the child of one task, or find it in the store. Returns the error for which it is left out.

        Raises it instead if the user made every child of the plan.
        """
        if task.name in self.models:
            return None
        try:
            made = self._made(task)
            for name, model in self.models.items():
                if model.record.id == made.record.id:
                    raise UsageError(f"'{task.name}' is the same model as '{name}'.", code="name-twice")
            self.models[task.name] = made
        except _NOT_MADE as error:
            if isinstance(error, BadInput) or self.plan.is_of_models:
                raise
            self.left_out.append(LeftOutChild(task.name, str(error)))
            return error
        return None

    def doubt(self, task: Task) -> str:
        """Why the model that a user named may be no child of its parent, as a question; "" without doubt."""
        parent, made = self.models[task.child.parents[0]], self.models[task.name]
        known = {model.id: model for model in self.store.models()}
        is_declared = made.record.recipe.kind == Adopt.kind and not made.record.recipe.settings
        if not is_declared or made.record.parents[1] not in known:
            return ""
        given = self.store.by_id(made.record.parents[1])
        source = given.record.recipe
        is_known = source.kind == "pull" and "name" in source.settings
        first, second = _shape(parent), _shape(given)
        differ = [_SHAPES[key] for key in first.keys() & second.keys() if first[key] != second[key]]
        parts = [*(["a foundation of the catalogue"] if is_known else []), *sorted(differ)[:1]]
        if not parts:
            return ""
        return f"{given.record.name} is {', '.join(parts)}: is it a child of {parent.record.name}?"

    def seeds_of(self, child: ChildPlan) -> Iterator[tuple[int | None, Grown]]:
        """The models of a child that were made, with their seeds."""
        for seed in child.each_seed:
            if (model := self.models.get(child.name_of(seed))) is not None:
                yield seed, model

    def parent_of(self, child: ChildPlan, name: str, seed: int | None) -> Grown:
        """A parent of a child: of several seeds that of the same seed, else the first.

        Raises Unavailable if it is left out.
        """
        if not (models := self._models_of(name, seed)):
            raise Unavailable(f"The parent '{name}' of '{child.name}' is left out.")
        return models[0]

    # --- inside ---

    def _models_of(self, name: str, seed: int | None) -> list[Grown]:
        """The models of a name of the plan that are made, that of this seed first."""
        plans = {each.name: each for each in self.plan.child}
        seeds = (seed, *plans[name].each_seed) if name in plans else ()
        names = [plans[name].name_of(s) for s in seeds] or [name]
        return [self.models[each] for each in names if each in self.models]

    def _made(self, task: Task) -> Grown:
        child = task.child
        parents = [self.parent_of(child, name, task.seed) for name in child.parents]
        if child.recipe == MADE:
            return adopted(self.store, parents[0], stored(self.store, child.reference, self.watch))
        if child.recipe == ENGINE:
            ref = str(child.settings["ref"]).replace("{parent}", parents[0].record.id)
            return self.store.get(ref)
        if child.recipe == REPAIR:
            how = repairing.Setting(
                Application("default"),
                str(child.settings.get("probes", "harmful_request")).split(","),
                margin=self.plan.margin,
                judge=self.plan.judge or None,
                store=self.store,
                out=self.repair_out / child.name,
                engine_loader=self.engine_loader,
                watch=self.watch,
            )
            repaired = repairing.repair(parents[0], parents[1], how)
            if repaired.model is None:
                raise Unavailable("No step of the repair is shown to be enough.")
            return repaired.model
        if not isinstance(child.guards, UnsetType):
            return guarded_model(parents[0], child.guards)
        return self.store.grow_once(self._recipe(task), parents)

    def _recipe(self, task: Task) -> Recipe:
        child = task.child
        settings: dict[str, object] = dict(child.settings)
        for setting, name in child.data.items():
            settings[setting] = self._examples(name, task.seed)
        if child.recipe in derivable():
            known = derivable_class(child.recipe).__dataclass_fields__
            if "watch" in known:
                settings["watch"] = _titled(self.watch, task.name)
            if "warn" in known:
                settings["warn"] = self.warn
            if task.seed is not None:
                settings["seed"] = task.seed
        try:
            return recipe(child.recipe, name=task.name, **settings)
        except TypeError as error:  # of a text where the recipe compares numbers
            raise UsageError(
                f"A setting of '{child.name}' has another type than '{child.recipe}' takes: {error}.",
                code="wrong-type",
            ) from None

    def _examples(self, name: str, seed: int | None) -> Data | Path:
        if name.startswith(ANSWERS):
            return self._answers(name.removeprefix(ANSWERS), seed)
        if name not in self.data:
            self.data[name] = load_data(self.plan.data[name], self.plan.examples)
        return self.data[name]

    def _answers(self, name: str, seed: int | None) -> Data | Path:
        """The answers that the teacher of a child wrote; before that child is made, a stand-in."""
        model = next(iter(self._models_of(name, seed)), None)
        if model is None:
            return Data.of(name, [("A question?", "An answer.")])
        path = model.folder / KEPT_ANSWERS
        if not path.exists():
            raise Unavailable(f"'{name}' keeps no answers of its teacher.")
        return path


def adopted(store: Store, parent: Grown, made: Grown) -> Grown:
    """A model as a child of `parent`: itself if its record has that ancestor, else a recorded declaration."""
    if made.record.id == parent.record.id:
        raise UsageError(f"{made.record.name} cannot be its own child.")
    if made.record.format == "scripted":
        raise Refused(f"'{made.record.name}': scripted models have no weights.")
    if parent.record.id in {each.id for each in store.ancestors(made.record)}:
        return made
    declared = Adopt()
    return store.made_by(declared, [parent, made]) or store.grow(declared, [parent, made])


def _shape(model: Grown) -> dict[str, object]:
    """The architecture and the size of the vocabulary, from the config of a model; {} without one."""
    try:
        config = json.loads((model.folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return {key: config[key] for key in _SHAPES if key in config} if isinstance(config, dict) else {}


def stored(store: Store, ref: str, watch: Watch | None) -> Grown:
    """A model of the store, or one that is pulled."""
    if is_elsewhere(ref, store):
        return store.pull(ref, watch)
    try:
        return store.get(ref)
    except Unavailable:
        return store.pull(ref, watch)


def _titled(watch: Watch | None, title: str) -> Watch | None:
    """The watch with a model's name on each event of a training."""
    if watch is None:
        return None
    return lambda progress: watch(progress._replace(model=title))
