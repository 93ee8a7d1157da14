"""A declared share of errors: "worse" has to survive verdicts that err in one model's favour."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from heredity.core.errors import NotComparable, UsageError
from heredity.lineage import store as lineage
from heredity.stats.judge_error import compare_at_shares
from heredity.study import plan as plans
from heredity.study.comparisons import compare_models
from heredity.study.estimates import JUDGE_FREE, ModelPair
from heredity.study.intervals import Intervals, PairedOutcomes
from heredity.study.outcomes import BROKE, ERROR, HELD, Outcomes
from heredity.study.plan import Plan
from heredity.study.resolve import resolve_plan
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from heredity.study.wording import declared_lines
from tests.support.errors import raises
from tests.support.studies import APPLICATION, probes

MODELS = ("scripted:mixed", "scripted:mixed/b")


def planned(error_share: float = 0.0, stopping: str = "fixed", n: int = 100) -> Plan:
    records = [lineage.scripted(ref).record for ref in MODELS]
    return resolve_plan(
        StudySpec(
            records, APPLICATION, probes=probes(n), error_share=error_share, stopping=stopping, margin=0.02
        )
    )


def compared(plan: Plan, first: np.ndarray, second: np.ndarray) -> ModelPair:
    outcomes = Outcomes(plan)
    outcomes.array[:] = HELD
    places = outcomes.probes(JUDGE_FREE, "breach")
    for m, broke in enumerate((first, second)):
        outcomes.array[m][:, places, 0] = np.where(broke[: len(places)], BROKE, HELD)
    (pair,) = compare_models(outcomes, "breach", [JUDGE_FREE])
    return pair


def test_errors_move_the_difference_by_their_share_of_breaches_and_of_held_trials() -> None:
    a, b, clusters = np.repeat([0.0, 1.0], (80, 20)), np.repeat([0.0, 1.0], (50, 50)), np.arange(100)
    plain, at = compare_at_shares(a, b, clusters), compare_at_shares(a, b, clusters, errors=0.05)
    assert plain.difference.value == pytest.approx(0.3)
    assert at.difference.value == pytest.approx(0.3 - 0.05 * 0.5 - 0.05 * 0.8)
    assert at.p_value > plain.p_value and at.difference.low < plain.difference.low
    assert compare_at_shares(a, b, clusters, errors=0.0) == plain
    sequential = Intervals(0.95, is_sequential=True)
    trials = PairedOutcomes(a, b, clusters, np.zeros(100, np.intp))
    found = sequential.compare_at_shares(trials, 0.0, 0.0, 0.05)
    assert found.difference.value == pytest.approx(at.difference.value)


@pytest.mark.parametrize("stopping", ["fixed", "until_decided", "group_sequential"])
def test_worse_is_withheld_if_the_declared_share_of_errors_could_undo_it(stopping: str) -> None:
    i = np.arange(400)
    first, second = i % 10 == 0, (i % 10 == 0) | (i % 8 == 1)  # twelve points more
    assert compared(planned(0.0, stopping), first, second).verdict_ab == "worse"
    small, large = (
        compared(planned(0.02, stopping), first, second),
        compared(planned(0.2, stopping), first, second),
    )
    assert small.verdict_ab == "worse" and small.reason_ab == ""
    assert (large.verdict_ab, large.reason_ab) == ("not enough evidence", "errors")
    assert (large.verdict_ba, large.reason_ba) == ("not worse", ""), "its bound lies below the margin"
    assert "errors of the checks or the judge" in large.words
    swapped = compared(planned(0.2, stopping), second, first)
    assert (swapped.verdict_ba, swapped.reason_ba) == ("not enough evidence", "errors")
    assert swapped.verdict_ab == "not worse"
    assert "better than" not in swapped.words, "no sentence gives a verdict that the row withholds"
    assert "better: the declared share of errors of the checks or the judge could undo it" in swapped.words


def test_models_that_are_judged_differently_are_seldom_told_apart() -> None:
    """Of two equal models with errors that differ by 4 points, one was called worse in one study in seven."""
    rng, n, called = np.random.default_rng(1), 150, {0.0: 0, 0.05: 0}
    plans_of = {share: planned(share) for share in called}
    for _ in range(n):
        broke = rng.random((2, 400)) < 0.25
        sens, false_alarms = rng.normal(0.9, 0.04, 2).clip(0, 1), rng.normal(0.04, 0.04, 2).clip(0, 1)
        found = rng.random((2, 400)) < np.where(broke, sens[:, None], false_alarms[:, None])
        for share, plan in plans_of.items():
            pair = compared(plan, *found)
            called[share] += "worse" in (pair.verdict_ab, pair.verdict_ba)
    assert called[0.0] > 0.1 * n and called[0.05] <= 0.05 * n


def test_a_plan_without_it_has_the_digest_that_it_always_had(tmp_path: Path) -> None:
    assert b"error_share" not in msgspec.json.encode(planned()) and planned().analysis.errors == 0.0
    assert planned(0.05).analysis.errors == 0.05
    plans.write_plan(tmp_path, planned())
    with raises(NotComparable, "another-study", ["--error-share", "0.05"]):
        plans.write_plan(tmp_path, planned(0.05))
    with raises(UsageError, "bad-setting", ["error_share", "0.5"]):
        planned(0.5)


def test_the_report_says_what_was_declared(tmp_path: Path) -> None:
    study = Study(StudySpec(MODELS, APPLICATION, probes=probes(4), out=tmp_path, error_share=0.05))
    estimates = study.run().estimates
    assert "5" in dict(declared_lines(estimates))["Errors"]


def test_worse_has_to_survive_that_all_failed_trials_of_the_other_model_were_breaches() -> None:
    """A service that fails on harmful requests was called the safer one, on the requests that it answered."""
    records = [lineage.scripted(ref).record for ref in MODELS]
    for every, verdict in ((20, "worse"), (5, "not enough evidence")):
        plan = resolve_plan(
            StudySpec(records, APPLICATION, probes=probes(100), unclear_share=0.0, margin=0.02)
        )
        outcomes = Outcomes(plan)
        outcomes.array[:] = HELD
        places = np.array(outcomes.probes(JUDGE_FREE, "breach"))
        i = np.arange(places.size)
        outcomes.array[1][:, places[i % 5 == 0]] = BROKE
        outcomes.array[0][:, places[i % every == 1]] = ERROR
        (pair,) = compare_models(outcomes, "breach", [JUDGE_FREE])
        assert pair.verdict_ab == verdict
        assert pair.n == int((i % every != 1).sum()), "no rate counts them"
