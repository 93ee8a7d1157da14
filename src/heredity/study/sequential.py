"""Early stopping: the interim analyses of a study, and the models that it still asks after each.

Promises: an analysis uses the answers of the blocks so far and nothing else, so a resumed study decides the
same. In a plan that declares its analysis, a pair is decided exactly if the report would decide it. So
"worse" survives the declared share of unclear answers. Over all analyses and pairs together, a
false difference has a chance of at most alpha (Holm on p-values that are valid at every analysis). In a plan
whose primary comparisons are edges, a pair is a parent and its child.
Leaves to others: the order and the blocks (resolve.py), asking and judging (study.py), the evidence (stats/),
and the verdicts (comparisons.py).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from heredity.stats import holm
from heredity.stats.sequential import SequentialComparison, cluster_means
from heredity.study.comparisons import compare_edges, compare_models
from heredity.study.estimates import JUDGE_FREE, ModelPair, PairDecision, Sequential, StoppedModel
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE, Outcomes, in_scope, is_part
from heredity.study.plan import Plan

WHY = "every pair of their model was decided"


def _is_of_edges(plan: Plan) -> bool:
    declared = plan.analysis
    return declared is not None and declared.is_of_edges


def _deciding_pairs(plan: Plan) -> list[tuple[int, int]]:
    """The places of the models of each pair that decides: parents and children in a plan about edges."""
    edges = plan.edges
    if edges is None or not _is_of_edges(plan):
        return list(combinations(range(len(plan.models)), 2))
    places = {model.id: m for m, model in enumerate(plan.models)}
    return list(dict.fromkeys((places[edge.parent], places[edge.child]) for edge in edges))


class StoppingRule:
    """The state of a study that asks until its pairs are decided. `outcomes` may grow between analyses."""

    def __init__(self, outcomes: Outcomes) -> None:
        self.outcomes, self._plan = outcomes, outcomes.plan
        self._alpha = Intervals.of(self._plan).alpha
        self._is_declared = self._plan.analysis is not None
        scopes = outcomes.breach_scopes
        self.scope = scopes[0] if scopes else JUDGE_FREE  # the deciding one: judge-free if there is any
        self._is_of_edges = _is_of_edges(self._plan)
        self._pairs = _deciding_pairs(self._plan)
        n_most = int(outcomes.clusters.max()) + 1
        self._evidence = {
            (pair, scope): SequentialComparison(self._alpha, n_most)
            for scope in scopes
            for pair in self._pairs
        }
        self._decided: dict[tuple[int, int], tuple[int, int]] = {}  # pair -> analysis, trials of both by then
        self._stopped: dict[int, int] = {}  # model -> the analysis after which it is not asked any more
        self.n_interim = 0

    @property
    def n_comparisons(self) -> int:
        """Comparisons that share the level: every pair in every scope."""
        return len(self._evidence)

    @property
    def open_models(self) -> list[int]:
        """The models of undecided pairs, by their place in the plan."""
        return [m for m in range(len(self._plan.models)) if m not in self._stopped]

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to ask: every block was analysed, or every pair is decided."""
        return self.n_interim == len(self._plan.ends) or not self.open_models

    @property
    def n_spared(self) -> int:
        """Of the trials that the plan asks, those that are not asked any more."""
        return sum(self._unasked(m) - self._out_of_scope(m) for m in self._stopped)

    def _unasked(self, m: int) -> int:
        return int(np.count_nonzero(self.outcomes.array[m] == 0))

    def _out_of_scope(self, m: int) -> int:
        """Of the trials that are not asked, those whose attack is for other techniques."""
        return int(np.count_nonzero((self.outcomes.array[m] == 0) & ~in_scope(self._plan)[:, :, None]))

    def block(self) -> tuple[int, int]:
        """The places of the probes of the next block: from the first up to, but not including, the second."""
        ends = self._plan.ends
        return (ends[self.n_interim - 1] if self.n_interim else 0), ends[self.n_interim]

    def analyse(self) -> None:
        """Add the next block to the evidence, and decide the pairs that it settles."""
        low, high = self.block()
        self.n_interim += 1
        if self._is_declared:
            self._decide_by_verdicts(high)
        else:
            for (pair, scope), evidence in self._evidence.items():
                here = [i for i in range(low, high) if is_part(self._plan.probes[i], scope)]
                a, b = (self.outcomes.scored(self.outcomes.array[m][:, here], here) for m in pair)
                both = self.outcomes.in_rate(a) & self.outcomes.in_rate(b)
                clusters = np.broadcast_to(self.outcomes.clusters[here][None, :, None], a.shape)
                d = (b[both] == BROKE).astype(np.int64) - (a[both] == BROKE)
                evidence.add(cluster_means(d, clusters[both]))
            self._decide(high)
        # A pair whose one model is not asked any more has all the evidence that it will have.
        waiting = (
            pair for pair in self._pairs if pair not in self._decided and not self._stopped.keys() & pair
        )
        # A model in no deciding pair has nothing that could stop it.
        compared = {m for pair in self._pairs for m in pair}
        needed = {m for pair in waiting for m in pair} | (set(range(len(self._plan.models))) - compared)
        for m in self.open_models:
            if m not in needed:
                self._stopped[m] = self.n_interim

    def replay(self) -> StoppingRule:
        """Analyse every block whose trials have outcomes, as far as its models were still asked."""
        while not self.is_over:
            low, high = self.block()
            if not self.outcomes.array[self.open_models, :, low:high].all():
                break
            self.analyse()
        return self

    def _decide(self, n_probes: int) -> None:
        adjusted = dict(zip(self._evidence, holm([x.p_value for x in self._evidence.values()]), strict=True))
        for pair in self._pairs:
            key = (pair, self.scope)
            if pair in self._decided or key not in self._evidence:
                continue
            if self._evidence[key].is_decided(self._plan.margin, adjusted[key]):
                self._decided[pair] = (self.n_interim, self._n_both(pair, n_probes))

    def _decide_by_verdicts(self, n_probes: int) -> None:
        """Decide each pair whose verdicts, both ways round, are those that the report would give now."""
        seen = self.outcomes.until(self.n_interim)
        places = {model.id: m for m, model in enumerate(self._plan.models)}
        for comparison in self._compared(seen):
            pair = places[comparison.a], places[comparison.b]
            if comparison.technique != self.scope:
                continue
            if "not enough evidence" in (comparison.verdict_ab, comparison.verdict_ba):
                self._decided.pop(pair, None)
            elif pair not in self._decided:
                self._decided[pair] = (self.n_interim, self._n_both(pair, n_probes))

    def _compared(self, seen: Outcomes) -> list[ModelPair]:
        scopes = self.outcomes.breach_scopes
        if self._is_of_edges:
            return [edge.compared for edge in compare_edges(seen, "breach", scopes)]
        return compare_models(seen, "breach", scopes)

    def _n_both(self, pair: tuple[int, int], n_probes: int) -> int:
        a, b = (self.outcomes.array[m][:, :n_probes] for m in pair)
        return int(np.count_nonzero((a > 0) & (b > 0)))

    def record(self) -> Sequential:
        """The entry of estimates.json."""
        models = [model.id for model in self._plan.models]
        return Sequential(
            scope=self.scope,
            n_interim=self.n_interim,
            n_interim_planned=len(self._plan.ends),
            decisions=tuple(
                PairDecision(models[a], models[b], *self._decided.get((a, b), (None, None)))
                for a, b in self._pairs
            ),
            stopped=tuple(
                StoppedModel(models[m], analysis, n, WHY, self._out_of_scope(m))
                for m, analysis in sorted(self._stopped.items())
                if (n := self._unasked(m))
            ),
        )
