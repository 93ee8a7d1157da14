"""Compare heredity's verdicts with those of other judges: rates, pairs of models, and agreement.

Promises: every judge is counted on the decided trials of the same breach probes, with n. Models are paired by
prompt. Agreement comes with Cohen's kappa, which corrects for chance, and with intervals.
Leaves to others: which judge is right, which needs human labels (redteam/judges/calibration/).
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from heredity import stats
from heredity.core.files import write_atomic
from heredity.core.records import Estimate, Record, Verdict
from heredity.core.rows import Rows
from heredity.stats.agreement import cohens_kappa
from heredity.study import plan as plans
from heredity.study.estimates import Table2x2
from heredity.study.importers._study import VERDICTS as RECORDED
from heredity.study.importers._study import RecordedVerdict
from heredity.study.outcomes import BROKE, HELD, Outcomes
from heredity.study.plan import Grid, Plan
from heredity.study.storage import VERDICTS

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
            _agreement(first, second, model, codes[first][part], codes[second][part], planned.confidence)
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
    for verdict in Rows(folder / VERDICTS, Verdict):
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
    found = stats.clustered_rate(broke, clusters[is_decided], planned.confidence)
    return JudgedRate(judge, planned.models[m].id, int(broke.sum()), found)


def _pair(judge: str, planned: Plan, of: _Codes, a: int, b: int, clusters: NDArray[np.int64]) -> JudgedPair:
    is_shared = (of[a] > 0) & (of[b] > 0)
    found = stats.compare(
        of[a][is_shared] == BROKE, of[b][is_shared] == BROKE, clusters[is_shared], planned.confidence
    )
    table = Table2x2(*found.table)
    ids = planned.models[a].id, planned.models[b].id
    return JudgedPair(judge, *ids, table, found.table.n, found.difference, found.p_value, found.test)


def _agreement(first: str, second: str, model: str, a: _Codes, b: _Codes, confidence: float) -> Agreement:
    is_shared = (a > 0) & (b > 0)
    table = stats.tabulate(a[is_shared] == BROKE, b[is_shared] == BROKE)
    agreed = stats.wilson(table.both + table.neither, table.n, confidence)
    kappa = cohens_kappa(table, confidence)
    return Agreement(first, second, model, Table2x2(*table), table.n, agreed, kappa)
