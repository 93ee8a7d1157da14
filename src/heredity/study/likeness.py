"""A judge's correction is refused where the study's answers are unlike all answers that people labelled.

Promises: at most 200 answers a model and measure are read, spread evenly over its trials, in the pass that
counts costs. A refused correction names what to do.
Leaves to others: the measure (redteam/judges/calibration/likeness.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from heredity.redteam.judges import needs_judge
from heredity.redteam.judges.calibration.likeness import AnswerForm, summarise, unlike
from heredity.stats.intervals import refused
from heredity.study.comparisons import MEASURES
from heredity.study.estimates import ALL, Measure, Rate
from heredity.study.judge_correction import JudgeCorrection
from heredity.study.outcomes import Outcomes, is_decided
from heredity.study.storage import RawResponse

MOST = 200  # answers of one model and measure
_KINDS: dict[Measure, str] = {"breach": "breach", "over_refusal": "benign"}


class AnswerSample:
    """Answers that a judge decided, by model and measure."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._plan = outcomes.plan
        self._wanted: dict[int, tuple[str, Measure]] = {}
        self._found: dict[tuple[str, Measure], list[tuple[int, str, str]]] = {}
        for m, model in enumerate(self._plan.models):
            for measure in MEASURES:
                self._want(outcomes, m, (model.id, measure))

    def _want(self, outcomes: Outcomes, m: int, key: tuple[str, Measure]) -> None:
        kind = _KINDS[key[1]]
        probes = [i for i, p in enumerate(self._plan.probes) if p.kind == kind and needs_judge(p)]
        if not probes:
            return
        indices = outcomes.indices_of(m, ALL, probes)
        decided = indices[is_decided(outcomes.codes[indices])]
        places = np.unique(np.linspace(0, decided.size - 1, min(MOST, decided.size)).astype(np.intp))
        self._wanted |= {int(decided[place]): key for place in places}

    def see(self, row: RawResponse) -> None:
        """Keep a response of the sample."""
        key = self._wanted.get(row.index)
        if key is not None and row.exchanges:
            probe = self._plan.probes[row.index // self._plan.samples % len(self._plan.probes)]
            text = msgspec.json.decode(row.exchanges[-1].text, type=str)
            prompt = probe.turns[-1] if probe.turns else ""
            self._found.setdefault(key, []).append((row.index, prompt, text))

    def forms(self) -> dict[tuple[str, Measure], AnswerForm]:
        """The form of the answers, by model id and measure."""
        return {
            key: summarise(key[0], [(asked, text) for _, asked, text in sorted(rows)])
            for key, rows in self._found.items()
        }


def refuse_unlike(
    rates: Iterable[Rate], forms: dict[tuple[str, Measure], AnswerForm], correction: JudgeCorrection
) -> Iterator[Rate]:
    """The rates; a judged one whose model's answers are unlike all labelled ones is not corrected."""
    reasons = {key: unlike(form, correction.families(key[1])) for key, form in forms.items()}
    for rate in rates:
        why = reasons.get((rate.model, rate.measure), "")
        if rate.is_judge_free or not why or rate.corrected is None or rate.corrected.value is None:
            yield rate
            continue
        said = f"{why}. Label some of this study's answers: heredity label"
        corrected = refused(rate.corrected.n, said, "unlike-labels")
        yield msgspec.structs.replace(rate, corrected=corrected, by_family=())
