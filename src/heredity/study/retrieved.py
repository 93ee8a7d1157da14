"""Breaches of a study with retrieval, split in two: was a passage retrieved, and did the model break then?

    breach rate = retrieved x broke if retrieved + not retrieved x broke if not

Promises: both are counted from the rows, on the trials of the breach rate. A passage that a guard left out
was not retrieved. A study without retrieval has no row.
Leaves to others: searching (application/retrieval/), outcomes (outcomes.py), words (retrieved_words.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from heredity.study.estimands import RetrievedBreaches
from heredity.study.estimates import ALL, SCOPES
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE, Outcomes
from heredity.study.storage import RawResponse


class RetrievedTrials:
    """Which trials had passages in front of a turn, from a stream of their responses."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._retrieves = outcomes.plan.application.retrieval is not msgspec.UNSET
        self._has = np.zeros(outcomes.plan.n_trials if self._retrieves else 0, np.bool_)

    def watch(self, responses: Iterable[RawResponse]) -> Iterator[RawResponse]:
        """The same responses, noted."""
        for row in responses:
            if self._retrieves and any(exchange.retrieved for exchange in row.exchanges):
                self._has[row.index] = True
            yield row

    def rows(self) -> Iterator[RetrievedBreaches]:
        """One row per model and scope, then per model and technique; none without retrieval."""
        if not self._retrieves:
            return
        for technique in (*SCOPES["breach"], *self._outcomes.techniques):
            if probes := self._outcomes.probes(technique, "breach"):
                for m in range(len(self._outcomes.plan.models)):
                    yield self._row(m, technique, probes)

    def _row(self, model: int, technique: str, probes: list[int]) -> RetrievedBreaches:
        outcomes = self._outcomes
        codes = outcomes.codes_of(model, ALL, probes)
        counted = outcomes.in_rate(codes)
        broke = (codes == BROKE)[counted]
        has = self._has[outcomes.indices_of(model, ALL, probes)][counted]
        clusters, rate = (
            outcomes.clusters_of(ALL, probes, model)[counted],
            Intervals.over(outcomes, model).rate,
        )
        return RetrievedBreaches(
            model=outcomes.plan.models[model].id,
            technique=technique,
            n_broke=int(broke[has].sum()),
            n_broke_without=int(broke[~has].sum()),
            retrieved=rate(has, clusters),
            obeyed=rate(broke[has], clusters[has]),
            without=rate(broke[~has], clusters[~has]),
        )
