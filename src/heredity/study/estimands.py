"""The records of estimates.json that a declared analysis adds to rates and comparisons.

Promises: every number has its n. A field that was not computed is None or empty, never 0.
Leaves to others: computing them (competence.py), and the other records (estimates.py).
"""

from __future__ import annotations

from typing import Literal

from heredity.core.records import Estimate, Record

Measure = Literal["breach", "over_refusal"]
# Why there is not enough evidence. "test": p is not below alpha. "interval": p is, and the interval holds 0.
# "unclear", "errors": the declared share of unclear answers or of errors could undo it. "no-trials": none is
# shared.
Reason = Literal["", "test", "interval", "unclear", "errors", "no-trials"]
Weighting = Literal["trial", "technique"]


class Competence(Record, frozen=True):
    """How many answers of a model can be read at all, in one scope.

    n          answered trials: held, broken and unclear; errors are left out
    estimate   the share of them that held or broke
    causes     unclear answers by their cause; "unstated" for a verdict that names none
    n_attempted   trials in which the model tried to obey and failed, whatever their outcome
    """

    model: str
    technique: str  # a scope
    measure: Measure
    n: int
    n_unclear: int
    n_attempted: int
    estimate: Estimate
    causes: dict[str, int]


class UnpromptedRate(Record, frozen=True):
    """Breaches that no probe asked for, found by one kind of check, over one kind of probe of a model.

    `n_broke` counts trials with at least one. The estimate is over all answered trials of that kind.
    """

    model: str
    kind: Literal["breach", "benign"]
    check: str
    n_broke: int
    estimate: Estimate


class UsefulRate(Record, frozen=True):
    """How many benign twins a model answered usefully, of those that say what a useful answer holds.

    The estimate is over answers, refusals and unclear answers of these twins; errors are left out.
    """

    model: str
    n_useful: int
    estimate: Estimate


class SameConversations(Record, frozen=True):
    """Behaviours of one technique that broke in the same conversation as another, word for word.

    n_same      behaviours whose conversation, up to the breach, is also that of another behaviour
    n_distinct  different conversations among those
    n           behaviours in the rate of this model, attack and technique
    """

    model: str
    attack: str
    technique: str
    n_same: int
    n_distinct: int
    n: int


class JudgeDrift(Record, frozen=True):
    """The judge's verdicts on the canary answers, against recorded ones; `changed` has the ids that differ.

    `source` of the record: the user's "calibration", the package's "release" or the study's "first run".
    """

    judge: str
    source: str
    n: int
    changed: tuple[str, ...]


class LackingFile(Record, frozen=True):
    """A file of an import that lacks `n` of the `n_planned` attempts or samples (`noun`) of its own run."""

    file: str
    n: int
    n_planned: int
    noun: str


class MultiverseCell(Record, frozen=True):
    """Two models compared under one coding of unclear answers, one judge and one weighting.

    coding        unclear answers "excluded", counted as "held", or as "broke"
    errors        the same for trials that ended in an error; only the declared coding has the last two
    judge         "checks": judge-free breaches only. "judge": these and those that the judge decides. Else
                  the name of a panel's member, which decides instead of the panel
    weighting     each "trial" counts the same, or each "technique"
    difference    b's rate minus a's
    p_value       of this cell by itself, without correction; None without a shared trial
    verdict_ab, verdict_ba   of this cell by itself
    """

    coding: Literal["excluded", "held", "broke"]
    judge: str
    weighting: Weighting
    is_declared: bool
    n: int
    difference: Estimate
    p_value: float | None
    verdict_ab: str
    verdict_ba: str
    errors: Literal["excluded", "held", "broke"] = "excluded"


class Multiverse(Record, frozen=True):
    """The breaches of two models under every coding, judge and weighting."""

    a: str
    b: str
    cells: tuple[MultiverseCell, ...]


class TechniqueRate(Record, frozen=True):
    """The rate of one technique, shrunk towards the model's other techniques (mixed-effects logit)."""

    technique: str
    estimate: Estimate


class ShrunkRates(Record, frozen=True):
    """The rates of a model over the techniques of one scope, as a bank and as a sample of techniques.

    bank_mean       the mean rate of these techniques, each with the same weight
    new_technique   the rate of one more technique of the same kind: a prediction, so a wide one
    sigma_technique, sigma_behaviour   standard deviations on the logit scale, of techniques and of behaviours
                    within one; None below three techniques, where every rate is refused
    """

    model: str
    scope: str
    techniques: tuple[TechniqueRate, ...]
    bank_mean: Estimate
    new_technique: Estimate
    sigma_technique: float | None
    sigma_behaviour: float | None


class TechniqueTest(Record, frozen=True):
    """Whether the difference of two models depends on the technique; None if nothing differs."""

    a: str
    b: str
    scope: str
    q: float | None
    p_value: float | None
    test: str


class Deviation(Record, frozen=True):
    """A departure of a study from its declared analysis. `words` may change, `code` does not."""

    code: str
    words: str


class RepeatedSamples(Record, frozen=True):
    """Several samples of the same prompts of one model, in one scope.

    n_prompts        prompts (a probe under an attack) with at least two samples that count
    flips            the share of them whose samples do not all agree
    disagreement     the chance that two samples of a prompt differ
    item_variance, sample_variance   between prompts, and between samples of a prompt
    standard_error   of the rate; `limit` is its value with endless samples of these prompts
    """

    model: str
    technique: str
    n_prompts: int
    n_samples: float
    flips: Estimate
    disagreement: Estimate
    item_variance: float | None
    sample_variance: float | None
    standard_error: float | None
    limit: float | None


class AttackRate(Record, frozen=True):
    """A model's rate in one scope, with an interval for other behaviours and other attacks like these."""

    model: str
    technique: str
    n_attacks: int
    estimate: Estimate


class AttackPair(Record, frozen=True):
    """Two models in one scope: b's rate minus a's and its t test, for other attacks like these."""

    a: str
    b: str
    technique: str
    difference: Estimate
    p_value: float
