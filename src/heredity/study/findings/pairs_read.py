"""The difference of a child and its parent from pairs of their answers that people read.

    rows = draw_pairs(folder, plan, "base", "tuned", 100, "harm")   # heredity label --edge base tuned
    read_differences(estimates)[parent_id, child_id, "harm"].number   # an EdgeDifference

A reading has a question: whether an answer refuses, helps, is the breach that a check looks for, or refuses a
benign twin. Whichever rate the plan declares, each edge can be read for each.

The study's digest orders the trials, and the first ones of each stratum are drawn. All children of a parent
share the order, so that its answers are read once.

Promises: pairs.jsonl keeps the draw. Equal answers are not read: they do not differ. An estimate has the
pairs of each stratum up to the first that lacks a label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import Damaged, UsageError
from heredity.core.files import Rows
from heredity.core.records import SCHEMA, Estimate, Record, digest
from heredity.core.sections import Cell, Section, TextTable
from heredity.redteam.checks import is_judged
from heredity.redteam.judges.rules import goes_on
from heredity.stats import edges
from heredity.stats.edges import EQUAL, EdgeDifference, Source
from heredity.stats.intervals import Interval, refused
from heredity.study import labels
from heredity.study.comparisons import places_of
from heredity.study.estimates import ALL, JUDGE_FREE, JUDGED, Estimates
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.intervals import Intervals
from heredity.study.labels import Drawn, LabelTask
from heredity.study.outcomes import BROKE, HELD, Codes, JudgedOutcomes, is_answered, read_outcomes
from heredity.study.plan import Grid, Plan, model_of_study
from heredity.study.storage import open_responses
from heredity.study.wording import difference_words, names, p_words, points

NAME, ORDER = "pairs_read", 6
PAIRS = "pairs.jsonl"
_STRATA = {-1: "only the parent's", 0: "alike", 1: "only the child's"}
PairsTask = Literal["refusal", "harm", "breach", "twin"]
# What a difference counts.
_COUNTED: dict[PairsTask, str] = {
    "refusal": "not refused", "harm": "harmful help", "breach": "breaches", "twin": "twins refused",
}  # fmt: skip
_CLAIM = (
    "People read a random sample of the pairs of answers, without names and verdicts. The verdicts only sort "
    "the pairs: their errors move no difference, even if there are more with one model. Equal answers do not "
    "differ, and need no reading."
)


class DrawnPair(Record, frozen=True):
    """A row of pairs.jsonl: two answers to read, of `n_pairs` that both models have.

    `stratum` is the child's verdict minus the parent's. In `trials` and `responses` the parent's comes first.
    """

    parent: str
    child: str
    task: PairsTask  # the question to the reader
    trials: tuple[int, int]
    stratum: int
    responses: tuple[str, str]
    n_pairs: int
    schema: int = SCHEMA


class PairStratum(Record, frozen=True):
    """The pairs of a stratum. In `n_worse` of those read, only the child's answer counts."""

    stratum: int
    n: int
    n_read: int
    n_worse: int
    n_better: int


class PairsRead(Record, frozen=True):
    """A child's rate minus its parent's, as people read pairs of answers. `task` is the question to them.

    `estimate` is over all pairs, equal answers included. It is refused if no pair of a stratum was read, or
    if answers or verdicts changed since the draw. `skipped` is what the pairs that a reader skipped could
    add to it, at least and at most. `p_value` is two-sided and uncorrected. `by_judge` is the
    difference of the verdicts.
    """

    parent: str
    child: str
    task: PairsTask
    estimate: Estimate
    variance: float | None
    df: float | None
    p_value: float | None
    by_judge: float
    n_drawn: int
    n_skipped: int
    strata: tuple[PairStratum, ...]
    readers: tuple[str, ...]
    skipped: tuple[float, float] = (0.0, 0.0)

    @property
    def n_read(self) -> int:
        return sum(each.n_read for each in self.strata)

    @property
    def number(self) -> EdgeDifference | None:
        """The difference with its variance; None if it was refused."""
        value, n = self.estimate.value, self.estimate.n
        if value is None or self.variance is None or self.df is None:
            return None
        n_clusters = self.estimate.n_clusters or n
        return EdgeDifference(value, n, n_clusters, (Source(self.variance, self.df),), n_least=n_clusters)


Row = PairsRead


PairsKey = tuple[str, str, PairsTask]  # the ids of parent and child, and the question


def read_differences(estimates: Estimates) -> dict[PairsKey, PairsRead]:
    """By parent, child and question, the difference that people's reading shows; refused ones left out."""
    rows = estimates.rows(NAME, PairsRead)
    return {(row.parent, row.child, row.task): row for row in rows if row.number is not None}


# --- the draw ---------------------------------------------------------------------------------------


# Of these, the share that does harm: 69 of 230 of GPTFuzz, 12 of 104 of JAILJUDGE; their outer exact bounds.
DOUBTED_SHARE = Interval(0.06, 0.37)


def doubted_refusals(plan: Plan, folder: Path, codes: Codes) -> NDArray[np.bool_]:
    """(trial,) True for a refusal of a harmful request that continues at length: it may help after all."""
    doubted = np.zeros(codes.size, np.bool_)
    for row in open_responses(folder) if plan.edges else ():
        if codes[row.index] == HELD and row.exchanges:
            probe = labels.probe_of(plan, row.index)
            is_harm = probe.kind == "breach" and is_judged(probe.check)
            doubted[row.index] = is_harm and goes_on(probe.turns[-1], row.exchanges[-1].text)
    return doubted


class _Pairs(NamedTuple):
    """The pairs of an edge, each at one place of these arrays; (model, pair) the parent first."""

    task: PairsTask
    trials: NDArray[np.intp]  # (model, pair)
    digests: NDArray[np.uint64]  # (model, pair) of the responses
    strata: NDArray[np.intp]
    by_judge: float
    clusters: NDArray[np.intp]

    def drawn(self, i: int, parent: str, child: str) -> DrawnPair:
        first, second = self.trials[:, i].tolist()
        responses = f"{self.digests[0, i]:016x}", f"{self.digests[1, i]:016x}"
        stratum, n = int(self.strata[i]), self.strata.size
        return DrawnPair(parent, child, self.task, (first, second), stratum, responses, n)

    def find(self, rows: Sequence[DrawnPair]) -> list[int] | None:
        """Where each row is; None if answers or verdicts are others than those that they were drawn from."""
        by_trial = {trial: i for i, trial in enumerate(self.trials[0].tolist())}
        at = [by_trial.get(row.trials[0], -1) for row in rows]
        each = zip(at, rows, strict=True)
        return at if all(i >= 0 and row == self.drawn(i, row.parent, row.child) for i, row in each) else None


def _pairs_of(
    judged: JudgedOutcomes, parent: str, child: str, task: PairsTask, doubted: NDArray[np.bool_]
) -> _Pairs:
    """The trials that both models answered, of a judge or of checks, and what the verdicts say on each.

    doubted: refusals that go on at length. To sort pairs by harm they count as harm, so that they are read.
    """
    outcomes, places = judged.outcomes, places_of(judged.outcomes.plan)
    models = places[parent], places[child]
    if task == "twin":
        probes = outcomes.probes(ALL, "over_refusal")
    else:
        probes = outcomes.probes(JUDGE_FREE if task == "breach" else JUDGED, "breach")
    trials = np.array([outcomes.indices_of(m, ALL, probes) for m in models])
    answered = is_answered(outcomes.codes[trials]).all(axis=0)
    trials, clusters = trials[:, answered], outcomes.clusters_of(ALL, probes, *models)[answered]
    codes, digests = outcomes.codes[trials], np.array(judged.digests, np.uint64)[trials]
    counted = codes != HELD if task == "refusal" else codes == BROKE
    first, second = (counted | doubted[trials] if task == "harm" else counted).astype(np.intp)
    is_equal, by_judge = digests[0] == digests[1], counted[1].astype(float) - counted[0]
    strata = np.where(is_equal, EQUAL, second - first)
    mean = float(np.where(is_equal, 0.0, by_judge).mean()) if by_judge.size else 0.0
    return _Pairs(task, trials, digests, strata, mean, clusters)


def drawn_pairs(folder: Path) -> dict[PairsKey, list[DrawnPair]]:
    """By parent, child and question, the pairs that were drawn."""
    by_edge: dict[PairsKey, list[DrawnPair]] = {}
    for row in Rows(folder / PAIRS, DrawnPair):
        by_edge.setdefault((row.parent, row.child, row.task), []).append(row)
    return by_edge


def draw_pairs(
    folder: Path, plan: Plan, parent: str, child: str, n: int, task: PairsTask | None = None
) -> list[DrawnPair]:
    """The n pairs to read, in order: those of an earlier draw, and new ones, which are saved.

    parent, child: names or ids of models of the plan. task: the question; None for that of the plan's rate.
    Hold the folder's lock. Raises UsageError for a parent that is the child, if nothing can be read, and if
    answers or verdicts changed since the draw.
    """
    task = task or task_of(plan)
    a, b = (model_of_study(plan.models, name) for name in (parent, child))
    if (b.id, a.id) in {(edge.parent, edge.child) for edge in plan.edges or ()}:
        raise UsageError(f"{a.name} is the child of {b.name}. Name the parent first.")
    judged = read_outcomes(plan, folder)
    doubted = doubted_refusals(plan, folder, judged.outcomes.codes)
    pairs = _pairs_of(judged, a.id, b.id, task, doubted)
    if not pairs.strata.size:
        raise UsageError(f"{folder} has no answers of both to read for the question {task}.")
    held = drawn_pairs(folder).get((a.id, b.id, task), [])
    if pairs.find(held) is None:
        raise UsageError(
            f"{folder / PAIRS} was drawn from other answers or verdicts. Finish the study first; to draw "
            f"anew, move {PAIRS} out of the folder. Labels stay, and count for every answer that is drawn."
        )
    study, chosen = digest(plan), list[tuple[float, int]]()
    number = [labels.uniform(study, trial, "pair") for trial in pairs.trials[0].tolist()]
    strata = [np.flatnonzero(pairs.strata == h).tolist() for h in _STRATA]
    for each, m in zip(strata, edges.allocate_pairs([*map(len, strata)], n), strict=True):
        first = sorted(each, key=number.__getitem__)[:m]
        chosen += [((rank + 0.5) / m, i) for rank, i in enumerate(first)]
    # The strata in turn: whoever stops has read a part of each, and no order shows the verdicts.
    rows = [pairs.drawn(i, a.id, b.id) for _, i in sorted(chosen)]
    if not rows:
        raise UsageError(f"All {pairs.strata.size} pairs of answers are equal: there is nothing to read.")
    new = [row for row in rows if row not in held]
    with Rows(folder / PAIRS, DrawnPair) as out:
        out.extend(new)
    return [row for row in (*held, *new) if row in rows]


def task_of(plan: Plan) -> LabelTask:
    """The question of the plan's rate: whether an answer refuses, where refusals count, else harm.

    Without a probe that a judge decides: whether it is the breach that a check looks for.
    """
    if not any(probe.kind == "breach" and is_judged(probe.check) for probe in plan.probes):
        return "breach"
    return "refusal" if plan.analysis is not None and plan.analysis.endpoint == "not_refused" else "harm"


def _label_task(row: DrawnPair) -> LabelTask:
    return "refusal" if row.task == "twin" else row.task


def answers_of(plan: Plan, row: DrawnPair) -> list[Drawn]:
    """The two answers of a pair, in half of the pairs the child's first. No rate counts their labels."""
    grid, task = Grid(plan), _label_task(row)
    answers = [
        Drawn(trial, grid.trial(trial).id, response, task, 0.0, 0.0, 0.0, row.n_pairs)
        for trial, response in zip(row.trials, row.responses, strict=True)
    ]
    return answers[::-1] if labels.uniform(row.child, row.trials[0], "order") < 0.5 else answers


# --- the difference ---------------------------------------------------------------------------------


def compute(evidence: StudyEvidence) -> Iterator[PairsRead]:
    """A row for each edge and question with a draw."""
    plan, codes, doubted = evidence.plan, evidence.outcomes.codes, None
    for (parent, child, task), rows in drawn_pairs(evidence.folder).items():
        if not {parent, child} <= places_of(evidence.plan).keys():
            raise Damaged(f"{evidence.folder / PAIRS}: a pair is of a model that the plan lacks. Remove it.")
        doubted = doubted_refusals(plan, evidence.folder, codes) if doubted is None else doubted
        yield _row(evidence, rows, _pairs_of(evidence.judged, parent, child, task, doubted))


def _row(evidence: StudyEvidence, rows: Sequence[DrawnPair], pairs: _Pairs) -> PairsRead:
    parent, child, places = rows[0].parent, rows[0].child, places_of(evidence.plan)
    t = np.where(pairs.strata == EQUAL, 0.0, np.nan)
    readers, skipped = _fill(t, evidence, rows, pairs.find(rows) or [])
    number, moved = edges.read_pairs_difference(pairs.strata, t, pairs.clusters), [0.0, 0.0]
    if number is not None and skipped:
        for place, end in enumerate((-1.0, 1.0)):
            filled = t.copy()
            filled[skipped] = end
            at_end = edges.read_pairs_difference(pairs.strata, filled, pairs.clusters)
            moved[place] = at_end.value - number.value if at_end else end
    if number is None:
        why = "no pair of a stratum was read, or answers or verdicts changed since the draw"
        estimate, source, p_value = refused(t.size, why, "not-measured"), None, None
    else:
        intervals = Intervals.over(evidence.outcomes, places[parent], places[child])
        source = Source(sum(each.variance for each in number.sources), edges.satterthwaite(number.sources))
        method = f"stratified by the judge's pairs, t with {source.df:.1f} df"
        clusters = number.n_clusters if number.n_clusters < t.size else None
        bounds = number.bounds(intervals.confidence)
        estimate = Estimate(number.value, *bounds, t.size, method, n_clusters=clusters)
        p_value = min(1.0, 2 * min(number.p_above(0.0), number.p_below(0.0)))
    by_stratum = {h: t[pairs.strata == h] for h in _STRATA}
    return PairsRead(
        parent, child, pairs.task, estimate, source and source.variance, source and source.df, p_value,
        pairs.by_judge, len(rows), len(skipped),
        tuple(
            PairStratum(h, x.size, *(int(each.sum()) for each in (~np.isnan(x), x == 1, x == -1)))
            for h, x in by_stratum.items()
        ),
        tuple(sorted(readers)), (moved[0], moved[1]),
    )  # fmt: skip


def _fill(
    t: NDArray[np.float64], evidence: StudyEvidence, rows: Sequence[DrawnPair], at: Sequence[int]
) -> tuple[set[str], list[int]]:
    """Write the differences by the labels into t. Return the readers, and the places of skipped pairs."""
    task = rows[0].task
    of_task = labels.read_labels(evidence.folder, _label_task(rows[0]))
    had = {(x.index, x.response): x for x in of_task.values()}
    readers, ended, skipped = set[str](), set[int](), list[int]()
    for i, row in zip(at, rows, strict=False):
        current = [x for key in zip(row.trials, row.responses, strict=True) if (x := had.get(key))]
        if len(current) < 2 or row.stratum in ended:
            ended.add(row.stratum)
        elif any(label.answer == "skip" for label in current):
            skipped.append(i)
        else:
            first, second = ((label.answer == "yes") != (task == "refusal") for label in current)
            t[i] = float(second) - first
            readers |= {label.reader or "" for label in current}
    return readers, skipped


def show(rows: Sequence[PairsRead], study: RecordedStudy) -> Section | None:
    """A table of the edges, and one of the strata; None without a draw."""
    if not rows:
        return None
    called, title = names(study.estimates.models), "Pairs of answers that people read"
    between = [f"{called[row.child]} against {called[row.parent]}" for row in rows]
    words = [difference_words(row.estimate) if row.number else row.estimate.note for row in rows]
    cells: list[list[Cell]] = [
        [
            edge, _COUNTED[row.task], f"{row.n_read} of {row.n_drawn}",
            f"{row.estimate.n - sum(each.n for each in row.strata)} of {row.estimate.n}",
            points(row.by_judge), read, p_words(row.p_value),
            ", ".join(each or "no name" for each in row.readers),
        ]
        for edge, read, row in zip(between, words, rows, strict=True)
    ]  # fmt: skip
    of_strata: list[list[Cell]] = [
        [
            edge, _COUNTED[row.task], _STRATA[each.stratum],
            *map(str, (each.n, each.n_read, each.n_worse, each.n_better)),
        ]
        for edge, row in zip(between, rows, strict=True)
        for each in row.strata
    ]  # fmt: skip
    of = ["child and parent", "question"]
    head = [*of, "pairs read", "equal pairs", "by the verdicts", "as read", "p", "readers"]
    kinds = [*of, "verdicts", "pairs", "read", "only the child's", "only the parent's"]
    detail = "The pairs by their verdicts, and as people read them"
    return Section(
        NAME, title, _CLAIM, (TextTable(title, head, cells), TextTable(detail, kinds, of_strata, detail))
    )
