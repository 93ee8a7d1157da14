"""Breaches of a study with retrieval, split in two: was a passage retrieved, and did the model break then?

    breach rate = retrieved x broke if retrieved + not retrieved x broke if not

Promises: both are counted from the rows, on the trials of the breach rate. A passage that a guard left out
was not retrieved. If an attack plants passages, only these count. A study without retrieval has no row.
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
from heredity.study.planted import PlantedPassages
from heredity.study.storage import RawResponse


class RetrievedTrials:
    """Which trials had passages in front of a turn, from a stream of their responses."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes, self._plan = outcomes, outcomes.plan
        self._retrieves = outcomes.plan.application.retrieval is not msgspec.UNSET
        self._planted = PlantedPassages(outcomes.plan)
        self._has = np.zeros(outcomes.plan.n_trials if self._retrieves else 0, np.bool_)

    def watch(self, responses: Iterable[RawResponse]) -> Iterator[RawResponse]:
        """The same responses, noted."""
        for row in responses:
            if self._retrieves:
                self._has[row.index] = self._was_retrieved(row)
            yield row

    def _was_retrieved(self, row: RawResponse) -> bool:
        is_found = self._planted.is_found(row)
        return any(exchange.retrieved for exchange in row.exchanges) if is_found is None else is_found

    def rows(self) -> Iterator[RetrievedBreaches]:
        """One row per model, attack and scope, then per technique; none without retrieval."""
        if not self._retrieves:
            return
        for technique in (*SCOPES["breach"], *self._outcomes.techniques):
            if probes := self._outcomes.probes(technique, "breach"):
                for m in range(len(self._plan.models)):
                    for attack in self._attacks():
                        yield self._row(m, technique, attack, probes)

    def _attacks(self) -> list[str]:
        several = list(self._plan.attacks) if len(self._plan.attacks) > 1 else []
        return several if several and self._planted.attacks else [ALL, *several]

    def _row(self, model: int, technique: str, attack: str, probes: list[int]) -> RetrievedBreaches:
        outcomes = self._outcomes
        codes = outcomes.codes_of(model, attack, probes)
        counted = outcomes.in_rate(codes)
        broke = (codes == BROKE)[counted]
        has = self._has[outcomes.indices_of(model, attack, probes)][counted]
        clusters = outcomes.clusters_of(attack, probes, model)[counted]
        rate = Intervals.over(outcomes, model).rate
        place = self._plan.attacks.index(attack) if attack != ALL else 0
        return RetrievedBreaches(
            model=self._plan.models[model].id,
            technique=technique,
            attack=attack,
            n_planted=len(self._planted.of(place, probes[0])),
            n_broke=int(broke[has].sum()),
            n_broke_without=int(broke[~has].sum()),
            retrieved=rate(has, clusters),
            obeyed=rate(broke[has], clusters[has]),
            without=rate(broke[~has], clusters[~has]),
        )
