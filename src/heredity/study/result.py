"""The result of a study: rates, comparisons, inheritance and trials, looked up by name.

    result = Study(StudySpec(["parent", "child"], application="support-desk.toml")).run()
    print(result.table())
    result.edge("parent", "child").retention        # Estimate(value=0.87, low=0.79, high=0.92, n=112, ...)
    result.trials(outcome="broke", model="child")[0].text

Promises: nothing is computed here but the rate of several models together. An unknown name is an
UnknownName with the nearest known one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import Unavailable, UnknownName, UsageError
from heredity.core.records import Estimate, Model, Response, Verdict, is_out_of_scope
from heredity.core.sanitize import label, plural
from heredity.lineage.types import Grown
from heredity.redteam import attacks
from heredity.study import storage, wording
from heredity.study.aggregate import read_proven
from heredity.study.estimates import ALL, SCOPES, Estimates, Inheritance, Measure, ModelCard, ModelPair, Rate
from heredity.study.findings import retrieval
from heredity.study.findings.answer_kinds import incoherent_share
from heredity.study.findings.same_conversations import note_conversations
from heredity.study.headline import headline
from heredity.study.intervals import Intervals
from heredity.study.outcomes import (
    BROKE,
    ERROR,
    HELD,
    LEAKED,
    SKIPPED,
    UNCLEAR,
    JudgedOutcomes,
    breach_order,
    read_outcomes,
)
from heredity.study.plan import Grid, Plan, Trial, TrialSet, model_of_study, read_plan, unknown_model
from heredity.study.storage import RunRecord, answered_rows, open_responses

TrialOutcome = Literal["held", "broke", "answered", "refused", "unclear", "error", "skipped"]
# By code: the outcome of a breach probe, and that of a benign twin.
_NAMES: dict[int, tuple[TrialOutcome, TrialOutcome]] = {
    HELD: ("held", "answered"),
    BROKE: ("broke", "refused"),
    UNCLEAR: ("unclear", "unclear"),
    ERROR: ("error", "error"),
    SKIPPED: ("skipped", "skipped"),
}


# --- trials ------------------------------------------------------------------------------------------
# The trials of a study by outcome, technique, model and attack, and those on which its models differ.
# Promises: an unknown name is an UnknownName with the nearest one. Answers without a verdict are found,
# too.
@dataclass(frozen=True)
class TrialFilter:
    """The trials that are wanted: those that match everything that is given.

    models   names, catalogue aliases or starts of ids; (): all
    attack   with its variant ("encoding:base64") or without
    differ   trials of a question on which one model held and another broke. Compared are the given models if
             there are several, and else all of the study
    """

    outcome: str | None = None
    technique: str | None = None
    models: Sequence[str] = ()
    attack: str | None = None
    differ: bool = False


class ListedTrial(NamedTuple):
    """A trial in a list; `outcome` is None before its answer is judged.

    text: the last reply, or the error of a trial that failed. Both are hostile text. is_leaked: it holds a
    breach that its probe did not ask for.
    """

    trial: Trial
    outcome: TrialOutcome | None
    text: str
    is_leaked: bool = False


def outcome_name(code: int, is_twin: bool) -> TrialOutcome | None:
    """The word for a code of Outcomes; None for a trial without a verdict."""
    return _NAMES[code][is_twin] if code in _NAMES else None


def select_trials(judged: JudgedOutcomes, wanted: TrialFilter) -> NDArray[np.bool_]:
    """(trial,) True for the trials that match, in the plan's order. Raises UnknownName, and UsageError.

    A trial without a verdict matches a filter that names no outcome, and is never one on which models differ.
    """
    outcomes = judged.outcomes
    plan, codes = outcomes.plan, outcomes.array  # (model, attack, probe, sample)
    selected = np.ones(plan.shape, np.bool_)
    models = [plan.models.index(model_of_study(plan.models, name)) for name in wanted.models]
    if models:
        selected[[m for m in range(len(plan.models)) if m not in models]] = False
    if wanted.attack is not None:
        attack = attack_spec(plan.attacks, wanted.attack)
        _check_name("attack of this study", attack, plan.attacks)
        selected &= _is_equal(plan.attacks, attack)[:, None, None]
    if wanted.technique is not None:
        techniques = [probe.technique for probe in plan.probes]
        _check_name("technique of this study", wanted.technique, outcomes.techniques)
        selected &= _is_equal(techniques, wanted.technique)[:, None]
    if wanted.outcome == LEAKED:
        selected &= np.isin(np.arange(plan.n_trials), [*_leaked(judged)]).reshape(plan.shape)
    elif wanted.outcome is not None:
        _check_name("outcome", wanted.outcome, (*get_args(TrialOutcome), LEAKED))
        matches = np.zeros(outcomes.plan.shape, np.bool_)
        for code, names in _NAMES.items():
            of_kind = np.where(outcomes.is_twin, names[1] == wanted.outcome, names[0] == wanted.outcome)
            matches |= (outcomes.array == code) & of_kind[:, None]
        selected &= matches
    if wanted.differ:
        compared = codes[models if len(models) > 1 else slice(None)]
        selected &= (compared == HELD).any(0) & (compared == BROKE).any(0)
    return selected.ravel()


def list_trials(folder: Path, wanted: TrialFilter, longest: int | None = None) -> list[ListedTrial]:
    """The answered trials of a folder that match: breaches first (breach_order), then in the plan's order.

    With `differ` every question is a breach of some model, and its trials are together.
    longest: characters of each text that are kept. Trials that an attack does not ask are left out, unless
    the filter wants skipped ones. Raises as `select_trials` does, and Damaged for a row of another plan.
    """
    plan = read_plan(folder)
    judged = read_outcomes(plan, folder)
    outcomes, leaked = judged.outcomes, _leaked(judged)
    is_wanted, grid = select_trials(judged, wanted), Grid(plan)
    listed_trials: list[ListedTrial] = []
    for row in answered_rows(open_responses(folder), grid, TrialSet(len(grid))):
        if not is_wanted[row.index] or (is_out_of_scope(row) and wanted.outcome != "skipped"):
            continue
        trial = grid.trial(row.index)
        outcome = outcome_name(int(outcomes.codes[row.index]), trial.probe.kind == "benign")
        listed_trials.append(ListedTrial(trial, outcome, reply_text(row)[:longest], row.index in leaked))
    # The index within one model is the number of the question: the same for all models.
    n = plan.n_per_model if wanted.differ else plan.n_trials
    breaches = [each for each in listed_trials if wanted.differ or each.outcome == "broke"]
    breaches.sort(key=lambda b: (breach_order(b.trial.probe), b.trial.index % n, b.trial.index))
    others = (each for each in listed_trials if not (wanted.differ or each.outcome == "broke"))
    return [*breaches, *sorted(others, key=lambda each: each.trial.index)]


def reply_text(response: Response) -> str:
    """The end of a trial: its error, the last reply, or the calls of a reply without text."""
    if response.error is not None:
        return response.error
    last = response.exchanges[-1] if response.exchanges else None
    if last is None:
        return ""
    return last.text or "; ".join(f"=> calls {call.name} {call.arguments}" for call in last.tool_calls)


def attack_spec(known: Sequence[str], name: str) -> str:
    """The attack with its variant written out: "encoding" is "encoding:base64"; an unknown name as it is."""
    if name not in known:
        with suppress(UsageError):
            return attacks.load(name).spec
    return name


def _is_equal(values: Sequence[str], wanted: str) -> NDArray[np.bool_]:
    return np.array([each == wanted for each in values], np.bool_)


def _leaked(judged: JudgedOutcomes) -> set[int]:
    return {each.trial for each in judged.unprompted}


if TYPE_CHECKING:
    import pandas

RowKind = Literal["rates", "pairs", "edges", "trials"]
_SCOPES = {scope for scopes in SCOPES.values() for scope in scopes}


@dataclass(frozen=True)
class TrialResult:
    """One judged trial: its place in the plan, the response and the verdict."""

    trial: Trial
    model: str  # name
    outcome: TrialOutcome
    response: Response
    verdict: Verdict
    prompt: str  # the whole text before the first reply; "" without a reply

    @property
    def text(self) -> str:
        """The model's last reply; "" if it gave none. Model output is hostile text: escape it in HTML."""
        return self.response.exchanges[-1].text if self.response.exchanges else ""

    @property
    def technique(self) -> str:
        """The technique of the probe."""
        return self.trial.probe.technique


@dataclass(frozen=True)
class ResultTable:
    """A table that prints aligned, shows as HTML in a notebook, and iterates over its rows as dicts."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(self.columns, row, strict=True)) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        cells = [self.columns, *(tuple(map(_cell, row)) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(column)}</th>" for column in self.columns)
        rows = ("".join(f"<td>{escape(_cell(value))}</td>" for value in row) for row in self.rows)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else label(str(value))


@dataclass(frozen=True)
class Result:
    """The result of a study: `estimates` in full, and look-ups for the common questions."""

    folder: Path
    estimates: Estimates

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The result in the folder of a finished study. Raises Damaged if its verdicts give another one."""
        return cls(folder, read_proven(folder))

    def __repr__(self) -> str:
        models = ", ".join(label(name) for name in wording.names(self.estimates.models).values())
        return f"Result({str(self.folder)!r}: {models}; {plural(self.estimates.n_answered, 'trial')})"

    @cached_property
    def plan(self) -> Plan:
        """The plan of the study. Raises Damaged if it was edited."""
        return read_plan(self.folder)

    @property
    def intervals(self) -> Intervals:
        """The methods of the study, for further rates and differences of its answers."""
        return Intervals.of(self.plan)

    @property
    def runs(self) -> list[RunRecord]:
        """Each time that a model was asked: its seconds and its answers."""
        return list(storage.run_records(self.folder))

    @property
    def n_planned(self) -> int:
        """The trials that the plan asks."""
        return self.estimates.n_planned

    def table(self, by: Literal["scope", "technique", "attack"] = "scope") -> ResultTable:
        """The rates of every model, with interval, n, unclear answers and errors.

        By scope (all judge-free breaches, all judged ones, all benign twins), by technique, or by attack.
        """
        called = wording.names(self.estimates.models)
        columns = ("model", "measure", "technique", "attack", "rate", "low", "high", "n", "unclear", "errors")
        rows = tuple(
            (called[r.model], r.measure, r.technique, r.attack, r.estimate.value, r.estimate.low,
             r.estimate.high, r.estimate.n, r.n_unclear, r.n_error)
            for r in self.estimates.rates
            if (r.technique in _SCOPES) == (by != "technique") and (r.attack == ALL) == (by != "attack")
        )  # fmt: skip
        return ResultTable(columns, rows)

    def trials(
        self, outcome: TrialOutcome | None = None, technique: str | None = None,
        model: str | Grown | Model | None = None, attack: str | None = None, differ: bool = False,
    ) -> list[TrialResult]:  # fmt: skip
        """The judged trials that match every given filter, in the plan's order, with response and verdict.

        differ: only trials on which one model held and another broke. Raises UnknownName for an outcome that
        does not exist, and for a model, technique or attack that the study does not have.
        """
        plan = self.plan
        grid, models = Grid(plan), () if model is None else (self._card(model).id,)
        wanted = TrialFilter(outcome, technique, models, attack, differ)
        judged = read_outcomes(plan, self.folder)
        outcomes = judged.outcomes
        is_wanted, called = select_trials(judged, wanted), wording.names(plan.models)
        verdicts = {r.index: r for r in storage.open_verdicts(self.folder) if is_wanted[r.index]}
        responses = {r.index: r for r in storage.open_responses(self.folder) if r.index in verdicts}
        trials, prefixes = [], storage.Prefixes(self.folder)
        for index, response in sorted(responses.items()):
            trial, verdict = grid.trial(index), verdicts[index]
            own = outcome_name(int(outcomes.codes[index]), trial.probe.kind == "benign")
            if own is not None:
                prompt = prefixes.prompt(response.exchanges[0]) if response.exchanges else ""
                trials.append(TrialResult(trial, called[trial.model.id], own, response, verdict, prompt))
        return trials

    def edges(self, measure: Measure = "breach", scope: str | None = None) -> tuple[Inheritance, ...]:
        """Every parent and child of the study under one scope or technique (default: as for `rate`)."""
        wanted = (measure, scope or self.estimates.main_scope(measure))
        every = (*self.estimates.edges, *self.estimates.technique_edges)
        return tuple(e for e in every if (e.compared.measure, e.compared.technique) == wanted)

    def to_dataframe(self, rows: RowKind = "rates") -> pandas.DataFrame:
        """All rates, pairs, edges or trials of the study, one per row. Needs pandas."""
        _check_name("kind of row", rows, get_args(RowKind))
        try:
            import pandas
        except ImportError:
            raise Unavailable(
                "to_dataframe needs pandas: pip install pandas. Without it, use table() or a CSV report."
            ) from None
        if rows == "trials":
            return pandas.DataFrame([_trial_row(each) for each in self.trials()])
        listed: dict[str, Sequence[Any]] = {
            "rates": self.estimates.rates,
            "pairs": (*self.estimates.pairs, *self.estimates.technique_pairs),
            "edges": (*self.estimates.edges, *self.estimates.technique_edges),
        }
        called = wording.names(self.estimates.models)
        return pandas.DataFrame([_flat_row(each, called) for each in listed[rows]])

    def _repr_html_(self) -> str:
        about = f"{self.estimates.application.name}: {plural(self.estimates.n_answered, 'trial')}"
        page = f"<p><strong>{escape(label(headline(self.estimates).sentence, 400))}.</strong></p>"
        return f"{page}<p>{escape(label(about))}</p>{self.table()._repr_html_()}"

    def rate(
        self, model: str | Grown | Model, technique: str | None = None, attack: str = ALL,
        measure: Measure = "breach",
    ) -> Rate:  # fmt: skip
        """The rate of one cell, by default of all judge-free breaches, or else of all judged ones.

        `technique` is one of the study's, or "judge_free", "judged"; for over-refusal "all". Raises
        UnknownName if the study has no such cell."""
        technique, attack = technique or self.estimates.main_scope(measure), self._attack(attack)
        key = (self._card(model).id, technique, attack, measure)
        for rate in self.estimates.rates:
            if (rate.model, rate.technique, rate.attack, rate.measure) == key:
                return rate
        known = [*{r.technique for r in self.estimates.rates}, *self.estimates.attacks]
        raise UnknownName(f"{measure} rate", f"{technique} under {attack}", known)

    def incoherent_share(self, model: str | Grown | Model) -> float:
        """The share of incoherent and empty answers without a breach, of a model, with its twins."""
        return incoherent_share(self.estimates, self._card(model).id)

    def rate_together(
        self, models: Sequence[str | Grown | Model], technique: str, measure: Measure = "breach"
    ) -> Estimate:
        """The rate of several models together, such as the seeds of a recipe; a behaviour is one cluster."""
        outcomes = read_outcomes(read_plan(self.folder), self.folder).outcomes
        note_conversations(outcomes, self.folder)
        ids = [model.id for model in outcomes.plan.models]
        places = [ids.index(self._card(model).id) for model in models]
        probes = outcomes.probes(technique, measure)
        codes = np.concatenate([outcomes.scored_of(place, ALL, probes) for place in places])
        counted = outcomes.in_rate(codes)
        clusters = np.tile(outcomes.clusters_of(ALL, probes, *places), len(places))[counted]
        return Intervals.over(outcomes, *places).rate(codes[counted] == BROKE, clusters)

    def retrieved(
        self, model: str | Grown | Model, technique: str | None = None, attack: str = ALL
    ) -> retrieval.RetrievedBreaches:
        """The breaches of a study with retrieval, split: `.retrieved` times `.obeyed`, and `.without`.

        `technique` is as for `rate`. `attack` names one if several attacks plant passages. Raises
        UnknownName without retrieval, or if the study has no such row.
        """
        technique, attack = technique or self.estimates.main_scope(), self._attack(attack)
        key = (self._card(model).id, technique, attack)
        rows = self.estimates.rows(retrieval.NAME, retrieval.Row)
        for row in rows:
            if (row.model, row.technique, row.attack) == key:
                return row
        known = list(dict.fromkeys(f"{r.technique} under {r.attack}" for r in rows))
        raise UnknownName("retrieval rate", f"{technique} under {attack}", known)

    def pair(
        self, a: str | Grown | Model, b: str | Grown | Model, measure: Measure = "breach",
        scope: str | None = None,
    ) -> ModelPair:  # fmt: skip
        """`b` compared with `a` on the same trials: `difference` is the rate of `b` minus that of `a`.

        `scope` is as for `rate`. Raises UnknownName if the study has no such pair."""
        first, second = self._card(a), self._card(b)
        wanted = (measure, scope or self.estimates.main_scope(measure))
        for pair in (*self.estimates.pairs, *self.estimates.technique_pairs):
            if (pair.measure, pair.technique) != wanted:
                continue
            if (pair.a, pair.b) == (first.id, second.id):
                return pair
            if (pair.a, pair.b) == (second.id, first.id):
                return pair.mirrored()
        raise UnknownName("pair", f"{first.name} and {second.name}", [])

    def edge(
        self, parent: str | Grown | Model, child: str | Grown | Model, measure: Measure = "breach",
        scope: str | None = None,
    ) -> Inheritance:  # fmt: skip
        """The inheritance of `child` from `parent`: `.retention`, losses, gains and the verdict.

        `scope` is as for `rate`. Raises UnknownName if the study has no such edge."""
        above, below = self._card(parent), self._card(child)
        wanted = (above.id, below.id, measure, scope or self.estimates.main_scope(measure))
        for edge in (*self.estimates.edges, *self.estimates.technique_edges):
            if (edge.parent, edge.child, edge.compared.measure, edge.compared.technique) == wanted:
                return edge
        raise UnknownName("edge", f"{above.name} to {below.name}", [])

    def _attack(self, attack: str) -> str:
        """The attack with its variant written out: "encoding" is "encoding:base64"."""
        return attack if attack == ALL else attack_spec(self.estimates.attacks, attack)

    def _card(self, model: str | Grown | Model) -> ModelCard:
        record = model.record if isinstance(model, Grown) else model
        cards = self.estimates.models
        if isinstance(record, str):
            return model_of_study(cards, record)
        if cards_of_model := [card for card in cards if card.id == record.id]:
            return cards_of_model[0]
        raise unknown_model(cards, record.name)


def _check_name(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise UnknownName(kind, label(name), known, ", ".join(known))


def _trial_row(trial_result: TrialResult) -> dict[str, Any]:
    trial, verdict = trial_result.trial, trial_result.verdict
    return {
        "index": trial.index,
        "model": trial_result.model,
        "technique": trial_result.technique,
        "attack": trial.attack,
        "probe": trial.probe.id,
        "kind": trial.probe.kind,
        "sample": trial.sample,
        "outcome": trial_result.outcome,
        "manner": verdict.manner,
        "judge": verdict.judge,
        "text": trial_result.text,
        "error": trial_result.response.error or verdict.error,
    }


def _flat_row(record: Rate | ModelPair | Inheritance, called: dict[str, str]) -> dict[str, Any]:
    """A record without nesting: names for ids, `NAME_low`, `NAME_high` and so on for an estimate."""
    row: dict[str, Any] = {}
    for field in record.__struct_fields__:
        value = getattr(record, field)
        if isinstance(value, Estimate):
            own = "" if field == "estimate" else f"{field}_"
            row |= {f"{own}{part}": getattr(value, part) for part in ("value", "low", "high", "n")}
        elif isinstance(value, ModelPair):
            row |= {key: each for key, each in _flat_row(value, called).items() if key not in ("a", "b")}
        elif isinstance(value, msgspec.Struct):
            row |= {f"{field}_{part}": getattr(value, part) for part in value.__struct_fields__}
        elif not isinstance(value, tuple):
            row[field] = called.get(value, value) if isinstance(value, str) else value
    return row
