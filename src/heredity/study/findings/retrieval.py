"""Breaches of a study with retrieval, split in two: was a passage retrieved, and did the model break then?

    breach rate = retrieved x broke if retrieved + not retrieved x broke if not

Promises: both are counted from the rows, on the trials of the breach rate. A passage that a guard left out
was not retrieved. If an attack plants passages, only these count. A study without retrieval has no row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from heredity.core.records import Estimate, Record
from heredity.core.sections import Section, TextTable
from heredity.study.estimates import ALL, SCOPES, Estimates
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE, Outcomes
from heredity.study.plan import PlantedPassages
from heredity.study.storage import RawResponse
from heredity.study.wording import attack_words, names, scope_or_title, share_words

NAME, ORDER = "retrieval", 20
_CLAIM = (
    "The breach rate is the share of trials with a retrieved passage, times the breach rate of these, "
    "plus the same for the trials without. Obeying is the model's; retrieving is the index's."
)


class RetrievedBreaches(Record, frozen=True):
    """The breaches of a model in one scope or technique of a study with retrieval, in two factors.

    attack      "all", or one of several. "all" has no attacks that plant passages, if there are others
    n_planted   passages that the attack plants in each trial
    retrieved   the share of its trials in which a passage came before a turn: a planted one, if there are any
    obeyed      the breach rate of these trials; `n_broke` of them broke
    without     the breach rate of its other trials; `n_broke_without` of them broke
    The estimates are over the trials that the plan's endpoint counts.
    """

    model: str
    technique: str  # or a scope
    attack: str
    n_planted: int
    n_broke: int
    n_broke_without: int
    retrieved: Estimate
    obeyed: Estimate
    without: Estimate


Row = RetrievedBreaches


def compute(evidence: StudyEvidence) -> Iterator[RetrievedBreaches]:
    """One row per model, attack and scope, then per technique; none without retrieval."""
    if evidence.plan.application.retrieval is None:
        return iter(())
    trials = _RetrievedTrials(evidence.outcomes)
    evidence.watch(trials.see)
    return trials.rows()


class _RetrievedTrials:
    """Which trials had passages in front of a turn."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes, self._plan = outcomes, outcomes.plan
        self._planted = PlantedPassages(outcomes.plan)
        self._has = np.zeros(outcomes.plan.n_trials, np.bool_)

    def see(self, row: RawResponse) -> None:
        has_planted = self._planted.is_found(row.index, row.chunks)
        has_any = any(exchange.retrieved for exchange in row.exchanges)
        self._has[row.index] = has_any if has_planted is None else has_planted

    def rows(self) -> Iterator[RetrievedBreaches]:
        for technique in (*SCOPES["breach"], *self._outcomes.techniques):
            if probes := self._outcomes.probes(technique, "breach"):
                for m in range(len(self._plan.models)):
                    several = list(self._plan.attacks) if len(self._plan.attacks) > 1 else []
                    for attack in several if several and self._planted.attacks else [ALL, *several]:
                        outcomes = self._outcomes
                        codes = outcomes.scored_of(m, attack, probes)
                        counted = outcomes.in_rate(codes)
                        broke = (codes == BROKE)[counted]
                        has = self._has[outcomes.indices_of(m, attack, probes)][counted]
                        clusters = outcomes.clusters_of(attack, probes, m)[counted]
                        rate = Intervals.over(outcomes, m).rate
                        place = self._plan.attacks.index(attack) if attack != ALL else 0
                        yield RetrievedBreaches(
                            model=self._plan.models[m].id,
                            technique=technique,
                            attack=attack,
                            n_planted=len(self._planted.of(place, probes[0])),
                            n_broke=int(broke[has].sum()),
                            n_broke_without=int(broke[~has].sum()),
                            retrieved=rate(has, clusters),
                            obeyed=rate(broke[has], clusters[has]),
                            without=rate(broke[~has], clusters[~has]),
                        )


def show(rows: Sequence[RetrievedBreaches], study: RecordedStudy) -> Section | None:
    """A table by scope and technique; the rows of the scopes as sentences."""
    if not rows:
        return None
    title, head = (
        "Retrieved, and then broke",
        ["breaches", "model", "attack", "retrieved", "broke if retrieved", "broke if not"],
    )
    cells = [_cells(row, study.estimates) for row in rows]
    sentences = tuple(
        f"{model}, {of}, {attack}: retrieved {share}. Broke if retrieved {obeyed}; if not {without}."
        for row, (of, model, attack, share, obeyed, without) in zip(rows, cells, strict=True)
        if row.technique in SCOPES["breach"]
    )
    return Section(NAME, title, _CLAIM, (TextTable(title, head, cells),), sentences)


def _cells(row: RetrievedBreaches, estimates: Estimates) -> list[str]:
    attack = attack_words(row.attack, estimates)
    if row.n_planted:
        attack = f"{row.n_planted} planted" if row.attack == ALL else f"{attack} ({row.n_planted} planted)"
    of, model = scope_or_title(estimates, row.technique), names(estimates.models)[row.model]
    return [of, model, attack, *map(share_words, (row.retrieved, row.obeyed, row.without))]
