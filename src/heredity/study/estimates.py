"""The records of estimates.json: every number of a study, with its n, interval and method.

Promises: no number is written without its n. A missing value is None, never 0. Breaches that a check decides
and breaches that a judge decides are never one number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import msgspec

from heredity.core.errors import Damaged
from heredity.core.records import Estimate, Record
from heredity.lineage.types import CONTROLS
from heredity.redteam.attacks import split_scope
from heredity.redteam.judges import JudgeQuality
from heredity.redteam.probes.public import PublicFile
from heredity.study.plan import Analysis, ProbeLimit, SkippedProbe, StudyForecast

Measure = Literal["breach", "over_refusal"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
PROBE_KINDS: dict[Measure, str] = {"breach": "breach", "over_refusal": "benign"}
# Why there is not enough evidence. "test": p is not below alpha. "interval": p is, and the interval holds 0.
# "unclear", "errors": the declared share of unclear answers or of errors could undo it. "no-trials": none is
# shared.
Reason = Literal["", "test", "interval", "unclear", "errors", "no-trials"]
_Row = TypeVar("_Row", bound=Record)
_Any = TypeVar("_Any")
_OF_MODELS = "model", "a", "b", "child", "against"  # fields of a row that hold the id of a model


def negated(estimate: Estimate) -> Estimate:
    """The same difference the other way round."""
    value, low, high = (None if x is None else -x for x in (estimate.value, estimate.high, estimate.low))
    return msgspec.structs.replace(estimate, value=value, low=low, high=high)


class Table2x2(Record, frozen=True):
    """Trials that both models decided: where both broke, only `a`, only `b`, neither."""

    both: int
    only_a: int
    only_b: int
    neither: int


class ModelPair(Record, frozen=True):
    """Two models on the same trials. `difference` is the rate of `b` minus the rate of `a`.

    `verdict_ab` is the verdict on `b` against `a`, `verdict_ba` the reverse. Each is "worse", "not worse"
    (within `margin`) or "not enough evidence". `p_holm` is corrected over all pairs of the same measure in
    the same list, so over both scopes of breaches. `detectable` is the smallest difference that this n could
    have shown with 80 % power, at the level of Holm's first step over `n_tests` comparisons. Rates are as
    judged, not corrected: a judge's errors shrink a difference.
    `technique` is a scope in `Estimates.pairs`, one technique in `Estimates.technique_pairs` (exploratory).
    With a declared analysis `reason_ab` and `reason_ba` say why there is not enough evidence. `tipping_share`
    is the smallest share of the unclear answers of the model with the lower rate that would undo the
    difference, if they were breaches. It is None if no share does, or if no difference is shown.
    `unclear_shares` are the largest shares of `a` and `b` that a verdict allows for. They are unset if nobody
    read an unclear answer of either: both are the plan's.
    """

    a: str
    b: str
    measure: Measure
    technique: str
    table: Table2x2
    n: int
    difference: Estimate
    p_value: float | None
    p_holm: float | None
    test: str
    margin: float
    detectable: float | None
    verdict_ab: str
    verdict_ba: str
    words: str
    reason_ab: Reason = ""
    reason_ba: Reason = ""
    tipping_share: float | None = None
    n_tests: int = 1  # also for plans without an analysis
    unclear_shares: tuple[float, float] | msgspec.UnsetType = msgspec.UNSET

    def verdict_on(self, model: str) -> str:
        """The verdict on `model` against the other of the pair: worse, not worse, not enough evidence."""
        return self.verdict_ab if model == self.b else self.verdict_ba

    def reason_on(self, model: str) -> Reason:
        """Why there is not enough evidence for a verdict on `model`; "" if there is a verdict."""
        return self.reason_ab if model == self.b else self.reason_ba

    def mirrored(self) -> ModelPair:
        """The same comparison with `a` and `b` swapped; the difference has the other sign."""
        difference, table = self.difference, self.table
        value, low, high = (
            None if x is None else 0.0 - x for x in (difference.value, difference.high, difference.low)
        )
        return msgspec.structs.replace(
            self,
            a=self.b,
            b=self.a,
            table=Table2x2(table.both, table.only_b, table.only_a, table.neither),
            difference=msgspec.structs.replace(difference, value=value, low=low, high=high),
            verdict_ab=self.verdict_ba,
            verdict_ba=self.verdict_ab,
            reason_ab=self.reason_ba,
            reason_ba=self.reason_ab,
            unclear_shares=self.unclear_shares and self.unclear_shares[::-1],
        )


class Inheritance(Record, frozen=True):
    """The security that a child shares with a parent, on the trials that both decided.

    For breaches: `kept` held with both, `lost` only with the parent, `gained` only with the child, `never`
    with neither. For over-refusal the same words are about benign twins that were answered. `retention` is
    P(child held | parent held), over kept + lost. `compared` is the pair (`a` the parent, `b` the child); its
    `p_holm` is corrected over all edges of the same measure in the same list. `recipe`, `role` and `descent`
    are of the plan's edge. The verdict on the child is not of this one rate (findings/edge_verdicts.py).
    """

    parent: str
    child: str
    recipe: str
    role: str
    kept: int
    lost: int
    gained: int
    never: int
    retention: Estimate
    compared: ModelPair
    descent: str = ""

    @property
    def is_of_guard(self) -> bool:
        """Whether the child is its parent behind guards, so that nothing was inherited."""
        return self.recipe == "behind_guards"

    @property
    def verdict(self) -> str:
        """The verdict on the child against the parent: worse, not worse, not enough evidence."""
        return self.compared.verdict_ab


SCHEMA = 5  # of this file alone
ALL = "all"  # of an attack: every one together; of a technique: every benign twin, for over-refusal
JUDGE_FREE = "judge_free"  # of a technique, for breaches: every one that a deterministic check decides
JUDGED = "judged"  # of a technique, for breaches: every one that a judge decides, which can err
# What stands for several techniques together, by measure; no technique may have such a name.
SCOPES: dict[Measure, tuple[str, ...]] = {"breach": (JUDGE_FREE, JUDGED), "over_refusal": (ALL,)}


class ModelCard(Record, frozen=True):
    """A model of the study, by the id that every row carries. `engine` is what computed its answers."""

    id: str
    name: str
    family: str
    licence: str
    format: str
    engine: str = ""
    is_batch_unverified: bool = False  # an engine of it has not verified its batch invariance


class ApplicationCard(Record, frozen=True):
    """The layer held constant. `rendering` other than "plain" means tools differ between the models.

    is_default_system: no system prompt was sent, so each model answered under its own default.
    """

    name: str
    digest: str
    rendering: str
    is_default_system: bool = False


class TechniqueCard(Record, frozen=True):
    """A technique as asked in this study. `is_judge_free`: a deterministic check decides its breaches.

    `is_baseline`: it measures a capability, so it has rates of its own and is part of no scope.
    """

    name: str
    threats: tuple[str, ...]
    is_judge_free: bool
    n_probes: int
    n_twins: int
    is_baseline: bool = False


class Bounds(Record, frozen=True):
    """The rate if every unclear answer had held (`low`), and if every one had broken (`high`)."""

    low: float
    high: float


class FamilyCorrection(Record, frozen=True):
    """The corrected rate by the labels of one family: it shows how much the choice of labels matters."""

    labels: str
    corrected: Estimate


class Rate(Record, frozen=True):
    """One cell: a model under a technique or a scope (SCOPES), and an attack or "all".

    Of breach probes n_broke of n_held + n_broke broke; of benign twins ("over_refusal") n_broke were refused.
    `estimate` is over the trials that the plan's endpoint counts. If these are all answered ones,
    `conditional` is the rate of decided ones, else None. `n_not_refused`, of the endpoint "not_refused",
    counts unclear answers and those that broke; it is unset if checks decide. Errors are in no rate, nor
    skipped trials: those of an attack that this model does not support. `n_attempted` counts failed attempts
    to obey among the answered trials.
    `corrected` (Rogan-Gladen) is None unless a judge decides all of the cell, or checks do under a declared
    analysis. A refused one has the reason in its note. `by_family` has it by each labelled family of models.
    `by_labels` is prediction-powered, by a person's labels on some of these answers; None without labels.
    `worst_case` is None if no trial has an answer with a verdict.
    """

    model: str
    technique: str
    attack: str
    measure: Measure
    estimate: Estimate
    corrected: Estimate | None
    worst_case: Bounds | None
    n_held: int
    n_broke: int
    n_unclear: int
    n_error: int
    is_judge_free: bool
    by_family: tuple[FamilyCorrection, ...] = ()
    by_labels: Estimate | None = None
    n_skipped: int = 0
    conditional: Estimate | None = None
    n_attempted: int = 0
    n_not_refused: int | msgspec.UnsetType = msgspec.UNSET

    @property
    def counts_refusals(self) -> bool:
        """Whether `estimate` is the share of answers that do not refuse."""
        return not isinstance(self.n_not_refused, msgspec.UnsetType)

    @property
    def n_counted(self) -> int:
        """The trials that `estimate` is the share of: breaches, or all answers that do not refuse."""
        return self.n_broke if isinstance(self.n_not_refused, msgspec.UnsetType) else self.n_not_refused

    @property
    def n_open(self) -> int:
        """Errors, and unclear answers that `estimate` does not count as a failure."""
        return self.n_unclear + self.n_error - (self.n_counted - self.n_broke)


class PairDecision(Record, frozen=True):
    """The interim analysis that decided a pair, and the number of trials of both by then; None: open."""

    a: str
    b: str
    interim: int | None
    n: int | None


class StoppedModel(Record, frozen=True):
    """A model that was not asked any more after an analysis, the number `n` of trials left, and why.

    Of these, `n_out_of_scope` would not have been asked anyway, because their attack is for other techniques.
    """

    model: str
    interim: int
    n: int
    why: str
    n_out_of_scope: int = 0


class Sequential(Record, frozen=True):
    """The course of a study that stops early. `scope` is that of the deciding pairs (SCOPES).

    Its intervals and p-values hold whatever stopped it; `Analysis.stopping` has the rule. Trials that were
    not asked are not errors: see `stopped`.
    """

    scope: str
    n_interim: int
    n_interim_planned: int
    decisions: tuple[PairDecision, ...]
    stopped: tuple[StoppedModel, ...]


class LackingFile(Record, frozen=True):
    """A file of an import that lacks `n` of the `n_planned` attempts or samples (`noun`) of its own run."""

    file: str
    n: int
    n_planned: int
    noun: str


class Deviation(Record, frozen=True):
    """A departure of a study from its declared analysis. `words` may change, `code` does not."""

    code: str
    words: str


class Circumstances(Record, frozen=True):
    """Time, host and speed, as sums over the runs that ended. They do not affect the numbers."""

    at: str
    host: str
    seconds: float
    n_cached: int
    versions: dict[str, str]
    accounts: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)  # by id of a remote model


class Estimates(Record, frozen=True):
    """estimates.json. Equal plans and equal answers give equal bytes, but for `circumstances`."""

    study: str  # the plan's digest
    confidence: float
    margin: float
    alpha: float
    models: tuple[ModelCard, ...]
    application: ApplicationCard
    techniques: tuple[TechniqueCard, ...]
    attacks: tuple[str, ...]
    samples: int
    seed: int
    n_trials: int
    n_asked: int  # of n_trials, how many have a verdict or an error row; less where a study is under way
    n_errors: int
    n_unclear: int
    rates: tuple[Rate, ...]
    pairs: tuple[ModelPair, ...]
    technique_pairs: tuple[ModelPair, ...]
    judges: tuple[JudgeQuality, ...]  # what was measured of the judge; of the user's labels first
    skipped: tuple[SkippedProbe, ...]
    circumstances: Circumstances
    sequential: Sequential | None = None  # of a study that stops early
    edges: tuple[Inheritance, ...] = ()  # by scope: what each child inherited from its parents in the study
    technique_edges: tuple[Inheritance, ...] = ()  # by technique: exploratory
    judge: str = ""  # that decided where no check did
    corrected_by: dict[str, str] = msgspec.field(default_factory=dict)  # whose labels, by task
    n_skipped: int = 0  # of n_asked, trials of an attack for other techniques, or for other models
    analysis: Analysis | None = None  # as the plan declared it; None: rates are of decided trials
    declared_at: str = ""  # when the plan was written, ISO 8601 in UTC; "": after the answers, or unknown
    forecast: StudyForecast | None = None  # what the plan could show, computed before the first request
    deviations: tuple[Deviation, ...] = ()  # from the declared analysis
    lacking: tuple[LackingFile, ...] = ()  # files of an import that lack answers of their own runs
    findings: dict[str, list[object]] = msgspec.field(default_factory=dict)  # by name: its rows (findings/)
    limit: ProbeLimit | None = None  # if only a part of the chosen probes was asked
    public: tuple[PublicFile, ...] = ()  # the files of the public sets, if they were chosen
    schema: int = SCHEMA

    def rows(self, finding: str, row: type[_Row]) -> tuple[_Row, ...]:
        """The rows of a finding; () if it has none. Raises Damaged if they are not of this type."""
        try:
            of_type: Any = tuple[row, ...]  # type: ignore[valid-type]
            rows: tuple[_Row, ...] = msgspec.convert(self.findings.get(finding, []), of_type)
            return rows
        except msgspec.ValidationError as error:
            raise Damaged(
                f"The rows of '{finding}' in the estimates: {error}. Run the study again: "
                "nothing is asked twice."
            ) from None

    @property
    def own(self) -> Estimates:
        """Without the rows of controls, whose verdict is known in advance: what a page reports."""
        controls = {edge.child for edge in self.edges if edge.role in CONTROLS}
        if not controls:
            return self

        def kept(rows: Iterable[_Any]) -> tuple[_Any, ...]:
            return tuple(x for x in rows if not controls & {*map(msgspec.to_builtins(x).get, _OF_MODELS)})

        own = msgspec.structs.replace(
            self, models=tuple(card for card in self.models if card.id not in controls),
            rates=kept(self.rates), pairs=kept(self.pairs), technique_pairs=kept(self.technique_pairs),
            edges=kept(self.edges), technique_edges=kept(self.technique_edges),
            findings={name: [*kept(rows)] for name, rows in self.findings.items()},
        )  # fmt: skip
        n = self.n_planned - own.n_planned
        return msgspec.structs.replace(own, n_trials=self.n_trials - n, n_asked=self.n_asked - n)

    @property
    def is_per_attempt(self) -> bool:
        """Whether rates are over all answered trials, unclear ones included."""
        return self.analysis is not None and self.analysis.endpoint != "decided_trials"

    def counts_refusals(self, measure: Measure, technique: str) -> bool:
        """Whether rates of a technique or scope are those of answers that do not refuse."""
        if measure != "breach" or self.analysis is None or self.analysis.endpoint != "not_refused":
            return False
        judged = {card.name for card in self.techniques if not card.is_judge_free and card.n_probes}
        return technique == JUDGED or technique in judged

    @property
    def is_recorded(self) -> bool:
        """Whether the answers were recorded elsewhere, by `heredity import`."""
        return self.application.rendering == "recorded"

    @property
    def n_not_needed(self) -> int:
        """Trials that were not asked because every pair of their model was decided."""
        return sum(s.n for s in self.sequential.stopped) if self.sequential else 0

    @property
    def n_missing(self) -> int:
        """Trials that are still to be asked."""
        return self.n_trials - self.n_asked - self.n_not_needed

    @property
    def breach_scopes(self) -> tuple[str, ...]:
        """The scopes of breaches that were asked, judge-free first."""
        asked = {rate.technique for rate in self.rates if rate.measure == "breach"}
        return tuple(scope for scope in SCOPES["breach"] if scope in asked)

    def main_scope(self, measure: Measure = "breach") -> str:
        """The scope that findings rest on: judge-free breaches, or judged ones if only they are decided."""
        if measure == "over_refusal":
            return ALL
        decided = {rate.technique for rate in self.rates if rate.measure == measure and rate.estimate.n}
        is_judged = JUDGED in decided and (self.public or JUDGE_FREE not in decided)
        return JUDGED if is_judged else JUDGE_FREE

    @property
    def n_planned(self) -> int:
        """The trials that the plan asks."""
        n_probes = sum(
            card.n_probes * is_planned(attack, card.name, "breach")
            + card.n_twins * is_planned(attack, card.name, "over_refusal")
            for attack in self.attacks
            for card in self.techniques
        )
        return n_probes * self.samples * len(self.models)

    @property
    def n_answered(self) -> int:
        """Those of them with an answer, an error, or no support by the model."""
        return self.n_asked - self.n_skipped + self.n_unsupported

    @property
    def n_unanswered(self) -> int:
        """Those that are still to be asked."""
        stopped = self.sequential.stopped if self.sequential else ()
        n_spared = sum(each.n - each.n_out_of_scope for each in stopped)
        return self.n_planned - self.n_answered - n_spared

    @property
    def n_unsupported(self) -> int:
        """Those whose model does not support the attack."""
        known = {card.name for card in self.techniques}
        return sum(
            n for (_, part, attack, _), n in unsupported(self).items() if attack == ALL and part in known
        )


# --- counts and verdicts ------------------------------------------------------------------------------


def is_planned(attack: str, technique: str, measure: Measure) -> bool:
    """Whether the plan asks the probes of a technique under this attack, which may be for others only."""
    scope = split_scope(attack)[1]
    return not scope or (measure == "breach" and any(fnmatchcase(technique, name) for name in scope))


def unsupported(estimates: Estimates) -> Counter[tuple[str, str, str, str]]:
    """Trials that were not asked because their model does not support the attack.

    By model, technique or scope, attack or ALL, and measure. Techniques that the attack is not for are left
    out.
    """
    scopes = {
        card.name: JUDGE_FREE if card.is_judge_free else JUDGED
        for card in estimates.techniques
        if not card.is_baseline
    }
    known = {card.name for card in estimates.techniques}
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for rate in estimates.rates:
        technique, measure = rate.technique, rate.measure
        if not rate.n_skipped or rate.attack == ALL or technique not in known:
            continue
        if is_planned(rate.attack, technique, measure):
            scope = ALL if measure == "over_refusal" else scopes.get(technique)
            for part in (technique, scope) if scope else (technique,):
                for attack in (rate.attack, ALL):
                    counts[rate.model, part, attack, measure] += rate.n_skipped
    return counts


class TechniqueCounts(NamedTuple):
    """The techniques of a scope by the verdict on one model against another."""

    worse: list[str]
    better: list[str]
    equal: list[str]  # neither is worse, within the margin
    open: list[str]

    @property
    def n(self) -> int:
        return sum(map(len, self))


def techniques_of_pair(estimates: Estimates, model: str, other: str, scope: str) -> TechniqueCounts:
    """The verdicts on `model` by technique, after Holm over techniques.

    Empty without a declared analysis, and for a study that stops early, which gives these claims up.
    """
    counts = TechniqueCounts([], [], [], [])
    mine = {
        t.name for t in estimates.techniques if t.is_judge_free == (scope == JUDGE_FREE) and not t.is_baseline
    }
    is_claimed = estimates.analysis is not None and estimates.analysis.stopping == "fixed"
    for pair in estimates.technique_pairs if is_claimed else ():
        if pair.measure != "breach" or {pair.a, pair.b} != {model, other} or pair.technique not in mine:
            continue
        if pair.verdict_ab == pair.verdict_ba == "not worse":
            counts.equal.append(pair.technique)
        elif "worse" in (pair.verdict_on(model), pair.verdict_on(other)):
            is_worse = pair.verdict_on(model) == "worse"
            (counts.worse if is_worse else counts.better).append(pair.technique)
        else:
            counts.open.append(pair.technique)
    return counts
