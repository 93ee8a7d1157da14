"""Run a lineage plan from nothing to its page, and resume it after a stop at any point.

Promises: the plan is written before the first child is made, with its edges, margin, expected verdicts and
the power of each study. Progress shows the step, and the time left for the whole.
Leaves to others: the children (children.py), the studies (batteries.py), the verdicts (findings.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from heredity.core.errors import Damaged, NotComparable, OutOfMemory, UsageError
from heredity.core.files import Lock, read_file, refuse_linked_folders, write_atomic
from heredity.core.progress import Watch, phase
from heredity.core.records import Record, digest, encode
from heredity.lab.course import Course, Tell
from heredity.lab.inheritance import batteries
from heredity.lab.inheritance.children import Lineage, Task
from heredity.lab.inheritance.findings import GrownFile, LineageResult, collect
from heredity.lab.inheritance.plan import JOINS, MADE, RESERVED, LineagePlan, without_place
from heredity.lineage.references import without_folder
from heredity.lineage.store import Store
from heredity.lineage.types import EngineLoader
from heredity.study.aggregate import read_proven
from heredity.study.forecast import lines
from heredity.study.plan import PLAN as STUDY_PLAN
from heredity.study.plan import StudyForecast
from heredity.study.report import html
from heredity.study.result import Result
from heredity.study.study import Study

PLAN, GROWN = "lineage.json", "grown.json"
_NOW = "To try again, stop by Ctrl-C and give the same command, before the first study begins."
_LATER = "The studies of this folder began without it. For studies with it, name another folder: --out."


class LineageFile(Record, frozen=True):
    """lineage.json: the plan of a lineage, its digest, and when it was written (ISO 8601, UTC).

    power: the forecast of each study, computed before anything was made.
    """

    digest: str
    at: str
    plan: LineagePlan
    power: dict[str, StudyForecast]
    schema: int = 1


def inherit(
    plan: LineagePlan,
    store: Store,
    out: Path,
    watch: Watch | None = None,
    tell: Tell = lambda line: None,  # noqa: ARG005
    engine_loader: EngineLoader | None = None,
) -> LineageResult:
    """Make the children of a plan, run its studies, and return the verdict on every edge.

    tell: receives a line for each step, and the lines of the power. Raises NotComparable if the folder holds
    another plan, and UsageError if no child can be made. If the user made every child, the error of one that
    cannot be had is raised.
    """
    refuse_linked_folders(out, *RESERVED, *(each.name for each in plan.battery))
    with Lock(out):
        lineage = Lineage(plan, store, out / "repairs", watch, engine_loader)
        possible = lineage.preview()
        n_never = len(lineage.left_out)
        possible = _without_former(lineage, possible, out)
        for number, each in enumerate(lineage.left_out):
            tell(f"left out: {each.name}: {each.why}{'' if number < n_never else f' {_LATER}'}")
        if not possible:
            raise UsageError("No child of this plan can be made.", code="no-children")
        power = power_of(plan, possible, store, out, tell)
        if plan.is_of_models:
            _get_named(lineage, possible, tell)
        course = _course(plan, possible, out, tell)
        held = _write_plan(plan, out, power)
        course.start("get the foundations", 0.0)
        lineage.pull()
        course.end()
        make_all(lineage, possible, course)
        if lineage.models.keys() <= plan.models.keys():
            raise UsageError(f"No child could be made: {lineage.left_out[-1].why}", code="no-children")
        ids = {name: model.record.id for name, model in lineage.models.items()}
        seconds = {name: model.record.made.seconds for name, model in lineage.models.items()}
        grown = GrownFile(held.digest, ids, tuple(lineage.left_out), seconds)
        write_atomic(out / GROWN, encode(grown) + b"\n")
        return collect(plan, grown, _ask_all(lineage, store, out, course), held.at)


class Planned(NamedTuple):
    """The studies of a plan by name, with stand-ins for its models, and the minutes that it expects."""

    studies: dict[str, Study]
    n_children: int
    minutes_to_make: float
    minutes_to_ask: float


def planned_work(plan: LineagePlan, store: Store) -> Planned:
    """The studies and minutes of a plan with this store. Nothing is made, asked or written."""
    possible = Lineage(plan, store, Path()).preview()
    studies = {each.name: batteries.forecast(plan, each, possible, store, Path()) for each in plan.battery}
    asking = sum(each.minutes for each in plan.battery)
    return Planned(studies, len(possible), _minutes(plan, possible) - asking, asking)


def read_result(out: Path) -> LineageResult:
    """The verdicts of a finished lineage, from the files of its folder. Raises Damaged or UsageError."""
    held = read_plan_file(out)
    grown = _read_grown(out, held.digest)
    refuse_linked_folders(out, *(each.name for each in held.plan.battery))
    results = {each.name: Result(out / each.name, read_proven(out / each.name)) for each in held.plan.battery}
    return collect(held.plan, grown, results, held.at)


def _read_grown(out: Path, digest: str) -> GrownFile:
    try:
        grown = msgspec.json.decode(read_file(out / GROWN), type=GrownFile)
    except (OSError, msgspec.DecodeError) as error:
        raise Damaged(f"{out / GROWN} cannot be read: {error}.", code="plan-damaged") from None
    if grown.digest != digest:
        raise Damaged(f"{out / GROWN} is of another plan than {PLAN}.", code="plan-damaged")
    return grown


def _without_former(lineage: Lineage, possible: Sequence[Task], out: Path) -> list[Task]:
    """The tasks without those that an earlier run in this folder left out, if a study of it has begun."""
    has_begun = any((out / battery.name / STUDY_PLAN).exists() for battery in lineage.plan.battery)
    if not (has_begun and (out / GROWN).exists() and _is_of(held := read_plan_file(out), lineage.plan)):
        return list(possible)
    former = {each.name: each for each in _read_grown(out, held.digest).left_out}
    lineage.left_out += [former[task.name] for task in possible if task.name in former]
    return [task for task in possible if task.name not in former]


def _course(plan: LineagePlan, possible: Sequence[Task], out: Path, tell: Tell) -> Course:
    n_steps = 1 + len(possible) + len(plan.battery)
    return Course(n_steps, _minutes(plan, possible), tell, is_resumed=(out / PLAN).exists())


def _get_named(lineage: Lineage, possible: Sequence[Task], tell: Tell) -> None:
    """Get the models that a user named. One that cannot be had ends the run before its folder has a plan."""
    lineage.pull()
    for task in possible:
        lineage.make(task)
        if doubt := lineage.doubt(task):
            tell(f"warning: {doubt}")


def make_all(lineage: Lineage, possible: Sequence[Task], course: Course) -> None:
    """Make the child of each task, as steps of the course; one that cannot be made is reported."""
    lineage.watch = course.watching(lineage.watch)
    if not lineage.plan.battery[0].is_quick:  # its few steps are on purpose
        lineage.warn = cache(lambda line: course.tell(f"warning: {line}"))  # once, and not for each child
    for task in possible:
        is_there = task.child.recipe == MADE
        title = f"get {task.name}" if is_there else f"make {task.name} ({task.child.recipe})"
        course.start(title, task.child.minutes)
        if (error := lineage.make(task)) is not None:
            advice = f" {_NOW}" if isinstance(error, OutOfMemory) else ""
            course.tell(f"left out: {task.name}: {error}{advice}")
        course.end()


def _ask_all(lineage: Lineage, store: Store, out: Path, course: Course) -> dict[str, Result]:
    results: dict[str, Result] = {}
    for battery in lineage.plan.battery:
        models = batteries.asked_models(lineage, battery)
        found = batteries.study(lineage.plan, battery, models, store, out, lineage.engine_loader)
        n, n_before = found.resolved.n_trials, batteries.n_computed(found.folder)
        title = f"ask {len(models)} models: {battery.title or battery.name}"
        course.start(title, battery.minutes, batteries.n_stored(found.folder) / n)
        with phase(lineage.watch, "preparing the study"):
            results[battery.name] = result = found.run(lineage.watch)
        with phase(lineage.watch, "writing the report"):
            html.write(result.folder, result.folder / "report.html")
        course.end((batteries.n_computed(found.folder) - n_before) / n)
    return results


def _minutes(plan: LineagePlan, possible: Sequence[Task]) -> float:
    return sum(task.child.minutes for task in possible) + sum(each.minutes for each in plan.battery)


def power_of(
    plan: LineagePlan, possible: Sequence[Task], store: Store, out: Path, tell: Tell
) -> dict[str, StudyForecast]:
    """The power of each study, also given to `tell` in lines."""
    power: dict[str, StudyForecast] = {}
    for battery in plan.battery:
        with phase(store.report, "computing the power"):
            planned = batteries.forecast(plan, battery, possible, store, out)
            if plan.judge:
                planned.require_judge()
            found = planned.forecast()
        tell(f"{battery.title or battery.name}:")
        if found is not None:
            power[battery.name] = found
            for line in lines(planned.resolved, found):
                tell(f"  {line}")
    return power


def _write_plan(plan: LineagePlan, out: Path, power: dict[str, StudyForecast]) -> LineageFile:
    """Save the plan before anything is made, or find it there. Raises NotComparable for another plan."""
    path = out / PLAN
    if path.exists():
        held = read_plan_file(out)
        if not _is_of(held, plan):
            raise NotComparable(
                f"{path} holds another plan. Name another folder: --out.", code="another-plan"
            )
        return held
    held = LineageFile(plan_digest(plan), datetime.now(UTC).isoformat(timespec="seconds"), plan, power)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, msgspec.json.format(encode(held), indent=2) + b"\n")
    return held


def read_plan_file(out: Path) -> LineageFile:
    """The plan in the folder of a lineage. Raises Damaged if it was edited or cannot be read.

    Raises UsageError for a folder without one, such as that of a study.
    """
    path = out / PLAN
    if not path.exists():
        what = f"{out} holds no lineage: there is no {PLAN} in it."
        if (out / STUDY_PLAN).exists():
            what = f"{out} is the folder of a study, not of a lineage. Its report: heredity report {out}"
        raise UsageError(what, code="not-a-lineage")
    try:
        held = msgspec.json.decode(read_file(path), type=LineageFile)
    except (OSError, msgspec.DecodeError) as error:
        raise Damaged(f"{path} cannot be read: {error}.", code="plan-damaged") from None
    if not _is_of(held, held.plan):
        raise Damaged(f"{path} was edited: its digest is not that of its plan.", code="plan-damaged")
    return held


def plan_digest(plan: LineagePlan) -> str:
    """Names a plan, wherever its files lie: of their paths only the names count. Expected minutes do not.

    The studies have the digests of applications, probes and models, and the children those of their data. A
    model that is its own name in the plan, as on the command line, counts with its path.
    """
    models = {name: ref if ref == name else without_folder(ref) for name, ref in plan.models.items()}
    return _digest_with_paths(msgspec.structs.replace(plan, models=models))


def _is_of(held: LineageFile, plan: LineagePlan) -> bool:
    """Whether the folder is of this plan. In the first ones the path of a model counted as it was written."""
    return held.digest in (plan_digest(plan), _digest_with_paths(plan))


def _digest_with_paths(plan: LineagePlan) -> str:
    """The digest of a plan whose models count with their paths."""
    placed = [
        msgspec.structs.replace(
            each,
            application=Path(each.application).name,
            probes=tuple(Path(name).name for name in each.probes),
            minutes=0.0,
        )
        for each in plan.battery
    ]
    data = {
        name: JOINS.join(Path(part).name for part in source.split(JOINS))
        for name, source in plan.data.items()
    }
    children = tuple(msgspec.structs.replace(without_place(child), minutes=0.0) for child in plan.child)
    return digest(msgspec.structs.replace(plan, child=children, battery=tuple(placed), data=data))
