"""Make and ask again what a folder holds, and compare each edge's differences with those from before.

    reproduced = reproduce(Path("runs/inheritance"), Path("runs/inheritance-again"), Store())

    differs   the two differences of a child are not the same, by the items and by what a run changes
    agrees    they are within the margin of each other, by two one-sided tests
    open      neither is shown

Promises: no answer and no child from before is used. A lineage makes its children again, in a store of its
own; a study asks the same models. The change of a difference is taken trial by trial, so that what both runs
share is in no variance. Holm corrects "differs" over all numbers of all edges, and "agrees" as well. The
level is that of the study's plan. A trial without an answer is in no difference.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from heredity.core.cache import ResponseCache
from heredity.core.errors import UsageError
from heredity.core.files import write_atomic
from heredity.core.progress import Watch
from heredity.core.records import Estimate, Record, encode
from heredity.core.sections import TextTable
from heredity.lab import inherit as lineages
from heredity.lab.plan import MADE, LineagePlan
from heredity.lab.runner import Log, change, read_made
from heredity.lineage.store import Store
from heredity.lineage.types import EngineLoader
from heredity.recipes.adopt import link_files
from heredity.stats.edges import EdgeDifference, Question, Source, edge_difference, satterthwaite
from heredity.stats.paired import holm
from heredity.study.findings.edge_verdicts import QUESTIONS, EdgeTrials, edge_trials
from heredity.study.plan import PLAN as STUDY_PLAN
from heredity.study.plan import read_plan
from heredity.study.study import Study
from heredity.study.wording import bare, points

FILE, AGAIN = "reproduced.json", "again"
Agreement = Literal["agrees", "differs", "open"]


class ReproducedNumber(Record, frozen=True):
    """A paired difference of an edge before and again; change: the second less the first. p: by Holm."""

    study: str
    child: str
    parent: str
    question: Question
    before: float
    again: float
    change: Estimate
    p: float
    word: Agreement


class Reproduction(Record, frozen=True):
    """Every difference of a folder, before and again. missing: those that were not measured again."""

    folder: str
    numbers: tuple[ReproducedNumber, ...]
    missing: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        """Whether one of the differences is shown to be another one."""
        return any(number.word == "differs" for number in self.numbers)

    def table(self) -> TextTable:
        """A row for each difference."""
        rows = [
            [
                each.child, each.parent, each.study, QUESTIONS[each.question], bare(points(each.before)),
                bare(points(each.again)), change(each.change), f"{each.p:.2g}", each.word,
            ]
            for each in self.numbers
        ]  # fmt: skip
        head = ["child", "parent", "study", "number", "before", "again", "change, points", "p", "verdict"]
        return TextTable("Reproduced", head, rows)


class _AskedAgain(Store):
    """The same models, and no answer that is known."""

    answers: Path

    def cache(self) -> ResponseCache:
        return ResponseCache(self.answers)


class _Pair(NamedTuple):
    """A study before and again, and the id of each model again by its id before."""

    name: str
    before: Path
    again: Path
    ids: Mapping[str, str]
    is_asked_again: bool = False  # of the same models


def reproduce(
    folder: Path,
    out: Path,
    store: Store,
    watch: Watch | None = None,
    log: Log = lambda line: None,  # noqa: ARG005
    engine_loader: EngineLoader | None = None,
) -> Reproduction:
    """Make and ask again what `folder` holds, in the new folder `out`, and compare. The same call resumes.

    Raises UsageError for a folder of neither a lineage nor a study, and for a study without an edge.
    """
    if (folder / lineages.PLAN).exists():
        pairs = list(_lineage(folder, out, store, watch, log, engine_loader))
    elif not (folder / STUDY_PLAN).exists():
        raise UsageError(f"{folder} holds neither a lineage nor a study: it has no plan.")
    elif not read_plan(folder).edges:
        raise UsageError(f"{folder} has no parent and child: there is no difference to compare.")
    else:
        pairs = [_study(folder, out, store, watch, engine_loader)]
    rows = [row for pair in pairs for row in _changes(pair)]
    missing = tuple(row for row in rows if isinstance(row, str))
    compared = [row for row in rows if not isinstance(row, str)]
    ps = agreements([each.by for each in compared], [each.margin for each in compared])
    numbers = tuple(_worded(each, p) for each, p in zip(compared, ps, strict=True))
    reproduction = Reproduction(folder.name, numbers, missing)
    write_atomic(out / FILE, encode(reproduction) + b"\n")
    return reproduction


def _study(
    folder: Path, out: Path, store: Store, watch: Watch | None, engine_loader: EngineLoader | None
) -> _Pair:
    again = _AskedAgain(store.root, store.mirrors, store.wanted_device)
    out.mkdir(parents=True, exist_ok=True)
    again.answers = out / "cache.sqlite"
    study = Study.open(folder, store=again, engine_loader=engine_loader)
    study.folder = out / AGAIN
    study.run(watch)
    ids = {model.id: model.id for model in study.resolved.models}
    return _Pair(folder.name, folder, study.folder, ids, is_asked_again=True)


def _lineage(
    folder: Path, out: Path, store: Store, watch: Watch | None, log: Log, engine_loader: EngineLoader | None
) -> Iterator[_Pair]:
    held = lineages.read_plan_file(folder)
    made = read_made(folder / lineages.GROWN, held.digest)
    fresh = Store(out / "store", store.mirrors, store.wanted_device)
    fresh.downloads = store.downloads
    for name in _given(held.plan):
        _carry(made.models[name], store, fresh)
    lineages.inherit(held.plan, fresh, out / AGAIN, watch, log, engine_loader)
    now = read_made(out / AGAIN / lineages.GROWN, held.digest).models
    ids = {ident: now[name] for name, ident in made.models.items() if name in now}
    for battery in held.plan.battery:
        yield _Pair(battery.name, folder / battery.name, out / AGAIN / battery.name, ids)


def _given(plan: LineagePlan) -> Iterator[str]:
    """The names of the models that the plan does not make."""
    yield from plan.models
    yield from (child.name for child in plan.child if child.recipe == MADE)


def _carry(ident: str, store: Store, fresh: Store) -> None:
    """Link a model with its ancestors into another store."""
    model = store.by_id(ident)
    for record in [model.record, *store.ancestors(model.record)]:
        home = fresh.root / "models" / record.id
        if not (home / "model.json").exists():  # it is copied last
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            link_files(store.by_id(record.id), home / "files")
            shutil.copyfile(store.root / "models" / record.id / "model.json", home / "model.json")


class _Change(NamedTuple):
    number: ReproducedNumber
    by: EdgeDifference
    margin: float
    alpha: float


def _changes(pair: _Pair) -> Iterator[_Change | str]:
    """Each difference before and again, trial by trial, with its p-value before the correction.

    The name of one that was not measured again.
    """
    plan = read_plan(pair.before)
    called = {model.id: model.name for model in plan.models}
    again = edge_trials(read_plan(pair.again), pair.again, is_asked_again=pair.is_asked_again)
    before = edge_trials(plan, pair.before, is_asked_again=pair.is_asked_again)
    for (parent, child), questions in before.items():
        others = again.get((pair.ids.get(parent, ""), pair.ids.get(child, "")), {})
        for (question, place), first in questions.items():
            second = others.get((question, place))
            if second is None or not (np.isfinite(first.d).any() and np.isfinite(second.d).any()):
                yield f"{called[child]} of {called[parent]}: {QUESTIONS[question]}"
                continue
            by = _change(first, second)
            bounds, method = by.bounds(plan.confidence), "paired t of both runs"
            estimate = Estimate(by.value, *bounds, by.n, method, n_clusters=by.n_clusters)
            was, now = (float(np.nanmean(each.d)) for each in (first, second))
            number = ReproducedNumber(
                pair.name, called[child], called[parent], question, was, now, estimate, 1.0, "open"
            )
            yield _Change(number, by, plan.margin, 1 - plan.confidence)


def _change(first: EdgeTrials, second: EdgeTrials) -> EdgeDifference:
    """The second difference less the first. Runs that answered other trials are independent."""
    parts = [first.runs, second.runs]
    runs = Source(sum(part.variance for part in parts), satterthwaite(parts))
    if first.d.shape == second.d.shape and np.array_equal(first.clusters, second.clusters):
        moved = second.d - first.d
        if (both := np.isfinite(moved)).any():
            return edge_difference(moved[both], first.clusters[both], runs)
    answered = [(each, np.isfinite(each.d)) for each in (first, second)]
    one, two = (edge_difference(each.d[at], each.clusters[at]) for each, at in answered)
    sources = (*one.sources, *two.sources, runs)
    return EdgeDifference(
        two.value - one.value, min(one.n, two.n), min(one.n_clusters, two.n_clusters), sources
    )


def agreements(changes: Sequence[EdgeDifference], margins: Sequence[float]) -> list[tuple[float, float]]:
    """Of each change, the p-values of no change and of one by at least its margin, both by Holm over all."""
    differs = holm([min(1.0, 2 * min(by.p_above(0.0), by.p_below(0.0))) for by in changes])
    each = zip(changes, margins, strict=True)
    return [*zip(differs, holm([max(by.p_above(-m), by.p_below(m)) for by, m in each]), strict=True)]


def _worded(change: _Change, p_values: tuple[float, float]) -> ReproducedNumber:
    p, p_apart = p_values
    word: Agreement = "differs" if p < change.alpha else "agrees" if p_apart < change.alpha else "open"
    return msgspec.structs.replace(change.number, p=p, word=word)
