"""Compare heredity's verdicts with those of other judges: rates, pairs of models, and agreement.

Promises: every judge is counted on the decided trials of the same breach probes, with n. Models are paired by
prompt. Agreement comes with Cohen's kappa, which corrects for chance, and with intervals.
Leaves to others: which judge is right, which needs human labels (redteam/judges/calibration/), and the layout
of the tables.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from heredity import stats
from heredity.core.files import Rows, write_atomic
from heredity.core.records import Estimate, Record
from heredity.core.sanitize import label
from heredity.core.sections import TextTable
from heredity.study import plan as plans
from heredity.study import wording
from heredity.study.estimates import Estimates, Table2x2
from heredity.study.importers._study import VERDICTS as RECORDED
from heredity.study.importers._study import RecordedVerdict
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE, HELD, Outcomes
from heredity.study.plan import Grid, Plan
from heredity.study.storage import open_verdicts
from heredity.study.wording import interval, p_words, percent, points, points_interval

FILE = "agreement.json"
OWN = "heredity"  # the judge that the study itself used
ALL = "all"
SCHEMA = 1
_Codes = NDArray[np.int8]


class JudgedRate(Record, frozen=True):
    """How often one model broke by one judge; `estimate.n` are the trials that this judge decided."""

    judge: str
    model: str
    n_broke: int
    estimate: Estimate


class JudgedPair(Record, frozen=True):
    """Two models on the same prompts by one judge. `difference` is the rate of `b` minus that of `a`."""

    judge: str
    a: str
    b: str
    table: Table2x2
    n: int
    difference: Estimate
    p_value: float
    test: str


class Agreement(Record, frozen=True):
    """Two judges on the answers that both decided; `model` is a model's id or "all"."""

    a: str
    b: str
    model: str
    table: Table2x2  # broke by both, only by `a`, only by `b`, by neither
    n: int
    agreement: Estimate
    kappa: Estimate


class Agreements(Record, frozen=True):
    """agreement.json."""

    judges: tuple[str, ...]
    rates: tuple[JudgedRate, ...]
    pairs: tuple[JudgedPair, ...]
    agreements: tuple[Agreement, ...]
    schema: int = SCHEMA


def agreement(folder: Path) -> Agreements:
    """Compute agreement.json from the verdicts in `folder`, and save it."""
    found = agreements(folder)
    write_atomic(folder / FILE, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    return found


def agreements(folder: Path) -> Agreements:
    """Compute the content of agreement.json from the verdicts in `folder`."""
    planned = plans.read_plan(folder)
    codes = _codes(folder, planned)
    clusters = _clusters(planned)
    return Agreements(
        judges=tuple(codes),
        rates=tuple(
            _rate(judge, planned, of, m, clusters) for judge, of in codes.items() for m in range(len(of))
        ),
        pairs=tuple(
            _pair(judge, planned, of, a, b, clusters)
            for judge, of in codes.items()
            for a, b in combinations(range(len(of)), 2)
        ),
        agreements=tuple(
            _agreement(first, second, model, codes[first][part], codes[second][part], Intervals.of(planned))
            for first, second in combinations(codes, 2)
            for model, part in _parts(planned)
        ),
    )


def _codes(folder: Path, planned: Plan) -> dict[str, _Codes]:
    """Map each judge to one code per trial, a row per model in the plan's order; 0 is undecided."""
    shape = (len(planned.models), planned.n_per_model)
    codes = {OWN: np.zeros(planned.n_trials, np.int8)}
    code_of = {"held": HELD, "broke": BROKE}
    grid = Grid(planned)
    for verdict in open_verdicts(folder):
        if grid.matches(verdict.index, verdict.trial):
            codes[OWN][verdict.index] = code_of.get(verdict.outcome or "", 0)
    for row in Rows(folder / RECORDED, RecordedVerdict):
        if grid.matches(row.index, row.trial):
            of = codes.setdefault(row.judge, np.zeros(planned.n_trials, np.int8))
            of[row.index] = 0 if row.broke is None else BROKE if row.broke else HELD
    is_twin = Outcomes(planned).twin_trials
    for of in codes.values():
        of[is_twin] = 0
    return {judge: of.reshape(shape) for judge, of in codes.items()}


def _clusters(planned: Plan) -> NDArray[np.int64]:
    """The behaviour of each trial of one model, as a number."""
    numbers: dict[str, int] = {}
    of = [numbers.setdefault(probe.cluster, len(numbers)) for probe in planned.probes]
    return np.tile(np.repeat(np.array(of, np.int64), planned.samples), len(planned.attacks))


def _parts(planned: Plan) -> list[tuple[str, slice]]:
    """All models together if there are several, then each one, as slices of the codes."""
    each = [(model.id, slice(m, m + 1)) for m, model in enumerate(planned.models)]
    return [(ALL, slice(None)), *each] if len(each) > 1 else each


def _rate(judge: str, planned: Plan, of: _Codes, m: int, clusters: NDArray[np.int64]) -> JudgedRate:
    is_decided = of[m] > 0
    broke = of[m][is_decided] == BROKE
    found = Intervals.of(planned).rate(broke, clusters[is_decided])
    return JudgedRate(judge, planned.models[m].id, int(broke.sum()), found)


def _pair(judge: str, planned: Plan, of: _Codes, a: int, b: int, clusters: NDArray[np.int64]) -> JudgedPair:
    is_shared = (of[a] > 0) & (of[b] > 0)
    broke = of[a][is_shared] == BROKE, of[b][is_shared] == BROKE
    found = Intervals.of(planned).compare(*broke, clusters[is_shared])
    table = Table2x2(*found.table)
    ids = planned.models[a].id, planned.models[b].id
    return JudgedPair(judge, *ids, table, found.table.n, found.difference, found.p_value, found.test)


def _agreement(first: str, second: str, model: str, a: _Codes, b: _Codes, intervals: Intervals) -> Agreement:
    is_shared = (a > 0) & (b > 0)
    table = stats.tabulate(a[is_shared] == BROKE, b[is_shared] == BROKE)
    agreed = intervals.rate_of_counts(table.both + table.neither, table.n)
    return Agreement(first, second, model, Table2x2(*table), table.n, agreed, intervals.kappa(table))


# --- tables -------------------------------------------------------------------------------------------


def judge_tables(folder: Path, estimates: Estimates) -> list[TextTable]:
    """Rates by judge, pairs of models by judge, and pairs of judges; [] if there is only one judge.

    For a study of recorded answers (Estimates.is_recorded).
    """
    found = agreements(folder)
    if len(found.judges) < 2:
        return []
    names = wording.names(estimates.models)
    return [
        _rate_table(found, names),
        *([_pair_table(found, names)] if found.pairs else []),
        _agreement_table(found, names),
    ]


def _rate_table(found: Agreements, names: dict[str, str]) -> TextTable:
    rows = []
    for judge in found.judges:
        of = {rate.model: rate.estimate for rate in found.rates if rate.judge == judge}
        cells = (f"{percent(of[m].value)} ({interval(of[m])}), n {of[m].n}" for m in names)
        rows.append([label(judge), *cells])
    return TextTable("Breach rate by judge", ["judge", *names.values()], rows)


def _pair_table(found: Agreements, names: dict[str, str]) -> TextTable:
    rows = [
        [
            f"{names[pair.a]}, {names[pair.b]}",
            label(pair.judge),
            _counts(pair.table),
            f"{points(pair.difference.value)} ({points_interval(pair.difference)})",
            p_words(pair.p_value),
        ]
        for pair in found.pairs
    ]
    return TextTable(
        "Model against model by judge", ["a, b", "judge", "both/a/b/neither", "b minus a", "p, raw"], rows
    )


def _agreement_table(found: Agreements, names: dict[str, str]) -> TextTable:
    rows = [
        [
            f"{label(one.a)}, {label(one.b)}",
            names.get(one.model, "all models"),
            f"{one.n}",
            f"{percent(one.agreement.value)} ({interval(one.agreement)})",
            _kappa(one.kappa),
            _counts(one.table),
        ]
        for one in found.agreements
    ]
    head = ["1st, 2nd judge", "answers of", "n", "agreement", "kappa", "both/1st/2nd/neither"]
    return TextTable("Agreement of judges", head, rows)


def _counts(of: Table2x2) -> str:
    """Answers that broke by both, only by the first, only by the second, and by neither."""
    return f"{of.both}/{of.only_a}/{of.only_b}/{of.neither}"


def _kappa(found: Estimate) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "-"
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})".replace("-0.00", "0.00")
