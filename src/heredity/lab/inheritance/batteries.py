"""The studies of a lineage: their applications, their probes, and what each can show before it starts.

Promises: every model of a battery is asked the same questions. The forecast is that of the study itself, with
stand-ins for models that are not made yet.
Leaves to others: asking and judging (study/), and what the answers mean (findings.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from heredity.application.spec import Application
from heredity.core.errors import UsageError
from heredity.core.files import read_lines
from heredity.core.records import Decoding, Model, Probe
from heredity.lab.inheritance.children import Lineage, Task
from heredity.lab.inheritance.plan import BatteryPlan, LineagePlan
from heredity.lineage.store import Store, stand_in
from heredity.lineage.types import EngineLoader, Grown
from heredity.redteam import probes
from heredity.study.storage import RESPONSES, RUNS, run_records
from heredity.study.study import Study

DEFAULT_TOKENS = 64  # of an answer under the models' own default


def application(battery: BatteryPlan) -> Application:
    """The application of a battery. Without a file it has no system message. Raises BadInput."""
    if battery.application:
        found = Application.load(battery.application)
    else:
        found = Application("own-default", decoding=Decoding(max_tokens=DEFAULT_TOKENS))
    if not battery.max_tokens:
        return found
    decoding = msgspec.structs.replace(found.decoding, max_tokens=battery.max_tokens)
    return msgspec.structs.replace(found, decoding=decoding)


def chosen_probes(battery: BatteryPlan) -> list[Probe]:
    """The probes of a battery: all, or those of some behaviours of each technique, with their twins.

    Raises UsageError if no probe seeks a breach.
    """
    loaded = list(probes.load(battery.probes))
    seeking = [probe for probe in loaded if probe.kind == "breach" and not probe.is_baseline]
    if not seeking:
        raise UsageError(
            f"No probe of '{battery.name}' seeks a breach, and a verdict compares breaches. "
            "Add a technique: heredity probes",
            code="no-breach-probes",
        )
    if not battery.has_twins:
        loaded = seeking
    if not battery.behaviours:
        return loaded
    kept: set[tuple[str, str]] = set()
    for technique in dict.fromkeys(probe.technique for probe in loaded):
        mine = list(dict.fromkeys(p.cluster for p in loaded if p.technique == technique))
        step = max(1.0, len(mine) / battery.behaviours)
        places = range(min(battery.behaviours, len(mine)))
        kept |= {(technique, mine[int(place * step)]) for place in places}
    return [probe for probe in loaded if (probe.technique, probe.cluster) in kept]


def study(
    plan: LineagePlan,
    battery: BatteryPlan,
    models: Sequence[Grown | Model],
    store: Store,
    out: Path,
    engine_loader: EngineLoader | None = None,
) -> Study:
    """The study of a battery, in its own folder. Nothing is asked yet."""
    return Study(
        models, application(battery), chosen_probes(battery), battery.attacks, store=store,
        out=out / battery.name, margin=plan.margin, judge=plan.judge or None, engine_loader=engine_loader,
        error_share=plan.error_share,
        endpoint="all_trials" if isinstance(plan.endpoint, msgspec.UnsetType) else plan.endpoint,
    )  # fmt: skip


def n_stored(folder: Path) -> int:
    """The answers in the folder of a study; 0 if it has not begun."""
    return sum(1 for _ in read_lines(folder / RESPONSES))


def n_computed(folder: Path) -> int:
    """The answers that models computed for this folder, without those that an earlier study had stored."""
    if not (folder / RUNS).exists():
        return 0
    return sum(row.n_asked - row.n_cached for row in run_records(folder))


def asked_models(lineage: Lineage, battery: BatteryPlan) -> list[Grown]:
    """The models that a battery asks, those of every seed among them."""
    wanted = set(battery.models)
    seeds = {child.name_of(seed): child.name for child in lineage.plan.child for seed in child.each_seed}
    found = {
        model.record.id: model
        for name, model in lineage.models.items()
        if not wanted or {name, seeds.get(name, name)} & wanted
    }
    return list(found.values())


def forecast(plan: LineagePlan, battery: BatteryPlan, made: Sequence[Task], store: Store, out: Path) -> Study:
    """The study of a battery with a stand-in for each model: it has the same comparisons and questions."""
    models = {name: stand_in(name) for name in plan.models}
    first = {name: name for name in plan.models}
    for task in made:
        parents = [models[first[name]].id for name in task.child.parents]
        models[task.name] = stand_in(task.name, tuple(parents))
        first.setdefault(task.child.name, task.name)
    wanted = set(battery.models)
    names = {task.name: task.child.name for task in made}
    asked = [model for name, model in models.items() if not wanted or {name, names.get(name, name)} & wanted]
    return study(plan, battery, asked, store, out)
