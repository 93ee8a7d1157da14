"""The trials of a study by outcome, technique, model and attack, and those on which its models differ.

    for found in list_trials(folder, TrialFilter(outcome="broke", models=("qwen",))):
        print(found.trial.index, found.text)

Promises: an unknown name is an UnknownName with the nearest one. Answers without a verdict are found, too.
Leaves to others: whole conversations (Result.trials, `heredity show`), and how a line looks (cli/).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import UnknownName, UsageError
from heredity.core.records import Response, is_out_of_scope
from heredity.core.sanitize import label
from heredity.redteam import attacks
from heredity.study.named_models import model_of_study
from heredity.study.outcomes import (
    BROKE,
    ERROR,
    HELD,
    SKIPPED,
    UNCLEAR,
    Outcomes,
    breach_order,
    read_outcomes,
)
from heredity.study.plan import Grid, Trial, TrialSet, read_plan
from heredity.study.storage import answered_rows, open_responses

TrialOutcome = Literal["held", "broke", "answered", "refused", "unclear", "error", "skipped"]
# By code: the outcome of a breach probe, and that of a benign twin.
_NAMES: dict[int, tuple[TrialOutcome, TrialOutcome]] = {
    HELD: ("held", "answered"),
    BROKE: ("broke", "refused"),
    UNCLEAR: ("unclear", "unclear"),
    ERROR: ("error", "error"),
    SKIPPED: ("skipped", "skipped"),
}


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

    text: the last reply, or the error of a trial that failed. Both are hostile text.
    """

    trial: Trial
    outcome: TrialOutcome | None
    text: str


def outcome_name(code: int, is_twin: bool) -> TrialOutcome | None:
    """The word for a code of Outcomes; None for a trial without a verdict."""
    return _NAMES[code][is_twin] if code in _NAMES else None


def select_trials(outcomes: Outcomes, wanted: TrialFilter) -> NDArray[np.bool_]:
    """(trial,) True for the trials that match, in the plan's order. Raises UnknownName, and UsageError.

    A trial without a verdict matches a filter that names no outcome, and is never one on which models differ.
    """
    plan, codes = outcomes.plan, outcomes.array  # (model, attack, probe, sample)
    found = np.ones(plan.shape, np.bool_)
    models = [plan.models.index(model_of_study(plan.models, name)) for name in wanted.models]
    if models:
        found[[m for m in range(len(plan.models)) if m not in models]] = False
    if wanted.attack is not None:
        attack = attack_spec(plan.attacks, wanted.attack)
        _check_name("attack of this study", attack, plan.attacks)
        found &= _is_equal(plan.attacks, attack)[:, None, None]
    if wanted.technique is not None:
        techniques = [probe.technique for probe in plan.probes]
        _check_name("technique of this study", wanted.technique, outcomes.techniques)
        found &= _is_equal(techniques, wanted.technique)[:, None]
    if wanted.outcome is not None:
        found &= _has_outcome(outcomes, wanted.outcome)
    if wanted.differ:
        compared = codes[models if len(models) > 1 else slice(None)]
        found &= (compared == HELD).any(0) & (compared == BROKE).any(0)
    return found.ravel()


def list_trials(folder: Path, wanted: TrialFilter, longest: int | None = None) -> list[ListedTrial]:
    """The answered trials of a folder that match: breaches first (breach_order), then in the plan's order.

    With `differ` every question is a breach of some model, and its trials are together.
    longest: characters of each text that are kept. Trials that an attack does not ask are left out, unless
    the filter wants skipped ones. Raises as `select_trials` does, and Damaged for a row of another plan.
    """
    plan = read_plan(folder)
    outcomes = read_outcomes(plan, folder).outcomes
    is_wanted, grid = select_trials(outcomes, wanted), Grid(plan)
    found: list[ListedTrial] = []
    for row in answered_rows(open_responses(folder), grid, TrialSet(len(grid))):
        if not is_wanted[row.index] or (is_out_of_scope(row) and wanted.outcome != "skipped"):
            continue
        trial = grid.trial(row.index)
        outcome = outcome_name(int(outcomes.codes[row.index]), trial.probe.kind == "benign")
        found.append(ListedTrial(trial, outcome, reply_text(row)[:longest]))
    # The index within one model is the number of the question: the same for all models.
    n = plan.n_per_model if wanted.differ else plan.n_trials
    breaches = [each for each in found if wanted.differ or each.outcome == "broke"]
    breaches.sort(key=lambda b: (breach_order(b.trial.probe), b.trial.index % n, b.trial.index))
    others = (each for each in found if not (wanted.differ or each.outcome == "broke"))
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


def _has_outcome(outcomes: Outcomes, wanted: str) -> NDArray[np.bool_]:
    _check_name("outcome", wanted, get_args(TrialOutcome))
    found = np.zeros(outcomes.plan.shape, np.bool_)
    for code, names in _NAMES.items():
        of_kind = np.where(outcomes.is_twin, names[1] == wanted, names[0] == wanted)
        found |= (outcomes.array == code) & of_kind[:, None]
    return found


def _check_name(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise UnknownName(kind, label(name), known, ", ".join(known))
