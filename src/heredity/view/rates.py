"""The rates of a study, also while it runs, with intervals that stay valid while one watches.

    board = board_of(study)
    board.rate(model=0, technique="planted_secret", measure="breach")     # ShownRate(estimate=..., ...)

Promises: a finished study shows the numbers of its own estimates, a running one anytime-valid intervals over
behaviours (study/intervals.py). Which trials count, and for what, is the plan's endpoint in both. A trial
without a verdict is in no rate.
Leaves to others: how many trials have which state (queries.py), and words and figures (pages/).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import numpy as np

from heredity.core.errors import HeredityError
from heredity.core.records import Estimate
from heredity.redteam.checks import is_judged
from heredity.stats.edges import KINDS as EDGE_KINDS
from heredity.study import outcomes
from heredity.study.comparisons import StoppingRule
from heredity.study.estimates import ALL, Estimates, Measure, ModelPair
from heredity.study.findings.edge_verdicts import EdgeVerdict, edge_verdicts
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE, ERROR, HELD, SKIPPED, UNCLEAR, Outcomes, in_scope
from heredity.study.wording import find, names
from heredity.view.index import OUTSIDE, UNJUDGED
from heredity.view.places import OpenStudy

CODES = {
    "held": HELD, "answered": HELD, "broke": BROKE, "refused": BROKE, "unclear": UNCLEAR, "error": ERROR,
    "skipped": SKIPPED, OUTSIDE: SKIPPED, UNJUDGED: 0,
}  # fmt: skip


class ShownRate(NamedTuple):
    """A rate with its interval. n_counted: the trials it is the share of. is_final: of a finished study."""

    estimate: Estimate
    n_counted: int
    is_final: bool


class StoppingState(NamedTuple):
    """The pairs of models that are decided, and the interim analyses so far.

    n_to_next: trials without a verdict that the next analysis needs; 0 if there is no more analysis.
    """

    n_decided: int
    n_pairs: int
    n_interim: int
    n_interim_planned: int
    n_to_next: int


class Board:
    """The outcomes of a study at one moment.

    estimates: those of the study, if they are about these very rows; else None.
    """

    def __init__(self, study: OpenStudy, codes: outcomes.Codes) -> None:
        self._study, self.outcomes = study, Outcomes(study.plan, codes)
        self.estimates, self.why_not = _current(study, int(np.count_nonzero(codes)))
        self._rates: dict[tuple[int, str, Measure], ShownRate | None] = {}
        self._probes = lru_cache(self.outcomes.probes)  # asked again for every model

    def rate(self, model: int, technique: str, measure: Measure) -> ShownRate | None:
        """The rate of a cell or scope; None without a trial that counts."""
        key = model, technique, measure
        if key not in self._rates:
            if self.estimates is None:
                self._rates[key] = self._running(*key)
            else:
                rate = find(self.estimates, self._study.plan.models[model].id, technique, ALL, measure)
                has_value = rate is not None and rate.estimate.value is not None
                self._rates[key] = (
                    ShownRate(rate.estimate, rate.n_counted, True) if rate and has_value else None
                )
        return self._rates[key]

    def _running(self, model: int, technique: str, measure: Measure) -> ShownRate | None:
        probes = self._probes(technique, measure)
        if not probes:
            return None
        codes = self.outcomes.scored_of(model, ALL, probes)
        counts = self.outcomes.in_rate(codes)
        if not counts.any():
            return None
        broke = codes[counts] == BROKE
        clusters = self.outcomes.clusters_of(ALL, probes)[counts]
        rate = Intervals.while_asking(self._study.plan).rate(broke, clusters)
        return ShownRate(rate, int(np.count_nonzero(broke)), False)

    @property
    def main_scope(self) -> str:
        """The scope of the verdicts; before there are estimates, the first that is asked; "" for none."""
        if self.estimates is not None:
            return self.estimates.main_scope()
        return next(iter(self.outcomes.breach_scopes), "")

    def alone(self, scope: str) -> list[tuple[int, ...]]:
        """By model the trials of a scope, or of all breach probes for "", that no other model broke."""
        outcomes, plan = self.outcomes, self._study.plan
        wanted = [p for p, each in enumerate(plan.probes) if each.kind == "breach"]
        probes = outcomes.probes(scope, "breach") if scope else wanted
        codes = [outcomes.scored_of(m, ALL, probes) for m in range(len(plan.models))]
        counts = np.logical_and.reduce([outcomes.in_rate(each) for each in codes])
        broke = np.array([each == BROKE for each in codes])
        is_alone = counts & (broke.sum(axis=0) == 1)
        places = [outcomes.indices_of(m, ALL, probes)[is_alone & broke[m]] for m in range(len(codes))]
        return [tuple(each.tolist()) for each in places]

    def is_judge_free(self, technique: str) -> bool:
        """Whether a deterministic check decides its breaches."""
        probes = [p for p in self._study.plan.probes if p.technique == technique and p.kind == "breach"]
        return bool(probes) and not any(is_judged(probe.check) for probe in probes)

    @cached_property
    def stopping(self) -> StoppingState | None:
        """Of a plan that stops early, its state by the rows so far; None for others."""
        if not self._study.plan.stops_early:
            return None
        rule = StoppingRule(self.outcomes).replay()
        record, n_to_next = rule.record(), 0
        if not rule.is_over:
            low, high = rule.block()
            is_open = (self.outcomes.array == 0) & in_scope(self._study.plan)[:, :, None]
            n_to_next = int(np.count_nonzero(is_open[rule.open_models, :, low:high]))
        n_decided = sum(each.interim is not None for each in record.decisions)
        return StoppingState(
            n_decided, len(record.decisions), record.n_interim, record.n_interim_planned, n_to_next
        )


def board_of(study: OpenStudy) -> Board:
    """The outcomes as the index has them now; made once for the same rows."""
    version = (*study.index.version(), *study.stamp())
    if study.board is None or study.board[0] != version:
        codes = np.zeros(len(study.grid), np.int8)
        with study.index.reading() as rows:
            # One text of numbers a state: a row for each trial takes several times as long.
            by_state = "SELECT state, group_concat(idx) FROM trials WHERE state IS NOT NULL GROUP BY state"
            for state, places in rows.execute(by_state):
                codes[np.fromstring(places, np.intp, sep=",")] = CODES.get(state, 0)
        study.board = version, Board(study, codes)
    board = study.board[1]
    assert isinstance(board, Board)
    return board


def _current(study: OpenStudy, n_judged: int) -> tuple[Estimates | None, str]:
    """The estimates, if they are about all the rows that there are; else why they are not shown."""
    estimates = study.estimates()
    if estimates is None or not study.is_whole:  # the page says that its rows are still being read
        return None, ""
    if isinstance(estimates, HeredityError):
        return None, str(estimates)
    if estimates.study != study.saved.study:
        return None, "estimates.json is of another study, so it is not shown."
    if estimates.n_asked != n_judged:
        return None, "estimates.json is older than the rows, so rates are computed from the rows."
    return estimates, ""


# --- verdicts -----------------------------------------------------------------------------------------
# Every word is that of the report (study/headline.py, study/wording.py); nothing is computed here.

Kind = Literal["worse", "same", "unknown"]
_KINDS: dict[str, Kind] = {"worse": "worse", "not worse": "same", "not enough evidence": "unknown"}
_MAX_CHIPS = 3


class Chip(NamedTuple):
    """A verdict in a few words; `kind` is its class in the style sheet."""

    text: str
    kind: Kind


def chips(estimates: Estimates) -> list[Chip]:
    """The verdicts of a study, the gravest first: on its children, or else on its pairs of models."""
    edges = edge_verdicts(estimates)
    if edges:
        return list(_of_edges(edges, estimates))
    scope = estimates.main_scope()
    pairs = [p for p in estimates.pairs if (p.measure, p.technique) == ("breach", scope)]
    made = [_of_pair(pair, names(estimates.models)) for pair in pairs]
    order: list[Kind] = ["worse", "same", "unknown"]
    made.sort(key=lambda chip: order.index(chip.kind))
    left = len(made) - _MAX_CHIPS
    return made[:_MAX_CHIPS] + ([Chip(f"and {left} more", "unknown")] if left > 0 else [])


def _of_edges(edges: dict[tuple[str, str], EdgeVerdict], estimates: Estimates) -> Iterator[Chip]:
    called = names(estimates.models)
    order = sorted(edges.values(), key=lambda row: list(EDGE_KINDS).index(row.word))
    if len(edges) <= _MAX_CHIPS:
        for row in order:
            yield Chip(f"{called[row.child]}: {row.word}, of {called[row.parent]}", _KINDS[row.kind])
        return
    for word, n in Counter(row.word for row in order).items():
        yield Chip(f"{n} of {len(edges)} children: {word}", _KINDS[EDGE_KINDS[word]])


def _of_pair(pair: ModelPair, called: dict[str, str]) -> Chip:
    a, b = called[pair.a], called[pair.b]
    if pair.verdict_ab == "worse":
        return Chip(f"{b}: worse than {a}", "worse")
    if pair.verdict_ba == "worse":
        return Chip(f"{a}: worse than {b}", "worse")
    if pair.verdict_ab == pair.verdict_ba == "not worse":
        return Chip(f"{a} and {b}: not worse than each other", "same")
    return Chip(f"{a} and {b}: not enough evidence", "unknown")
