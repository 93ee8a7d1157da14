"""A group-sequential study: its declared analyses, what stops at one, and what its intervals are worth."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest

from heredity.core.errors import NotComparable, UsageError
from heredity.core.records import digest
from heredity.lineage import store as lineage
from heredity.stats.sequential import nominal_levels, one_sided_levels
from heredity.study import aggregate
from heredity.study import plan as plans
from heredity.study.comparisons import StoppingRule, compare_models
from heredity.study.estimates import ALL, JUDGE_FREE, Estimates, techniques_of_pair
from heredity.study.findings import severity
from heredity.study.forecast import forecast_lines, forecast_study
from heredity.study.headline import headline
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE, ERROR, HELD, UNCLEAR, Outcomes
from heredity.study.plan import Plan
from heredity.study.resolve import STAGES, resolve_plan
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from heredity.study.wording import declared_lines, stopping_words
from tests.study.test_inherited import family
from tests.study.test_resume import Stopped, stop_after
from tests.support.errors import raises
from tests.support.findings import rows_of
from tests.support.report_studies import with_severities
from tests.support.studies import APPLICATION, by_index, drop_circumstances, probes, study

CLEAR = ("scripted:leaky", "scripted:careful")
ALIKE = ("scripted:mixed", "scripted:mixed/b")


def planned(
    models: tuple[str, ...] = CLEAR, n: int = 80, stopping: str = "group_sequential", **more: object
) -> Plan:
    records = [lineage.scripted(ref).record for ref in models]
    settings = {"margin": 0.1, "stopping": stopping} | more
    return resolve_plan(StudySpec(records, APPLICATION, probes=probes(n), **settings))  # type: ignore[arg-type]


def with_codes(plan: Plan, first: np.ndarray, second: np.ndarray) -> Outcomes:
    """Everything held, but for these codes of the breach probes, in their order."""
    outcomes = Outcomes(plan)
    outcomes.array[:] = HELD
    places = Outcomes(plan).probes(JUDGE_FREE, "breach")
    outcomes.array[0][:, places, 0], outcomes.array[1][:, places, 0] = first, second
    return outcomes


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    study(folder, planned()).run()
    return folder


def found(folder: Path) -> Estimates:
    return aggregate.read_study(folder).estimates


# --- the plan ---------------------------------------------------------------------------------------


def test_the_analyses_and_their_levels_are_declared_before_the_first_answer() -> None:
    plan = planned()
    assert plan.stopping == plan.analysis.stopping == "group_sequential" and not plan.is_until_decided
    analyses = plan.analysis.interim
    assert [analysis.n_probes for analysis in analyses] == list(plan.ends) and plan.ends[-1] == len(
        plan.probes
    )
    assert plan.information == STAGES
    assert [analysis.level for analysis in analyses] == list(nominal_levels(STAGES, 0.05))
    assert [analysis.one_sided for analysis in analyses] == list(one_sided_levels(STAGES, 0.05))


def test_each_analysis_has_the_same_share_of_every_technique_and_whole_behaviours() -> None:
    plan = planned()
    assert sorted(p.id for p in plan.probes) == sorted(p.id for p in planned(stopping="fixed").probes)
    for end, share in zip(plan.ends, STAGES, strict=True):
        seen = {(p.technique, p.cluster) for p in plan.probes[:end]}
        assert not seen & {(p.technique, p.cluster) for p in plan.probes[end:]}
        every = Counter(technique for technique, _ in {(p.technique, p.cluster) for p in plan.probes})
        for technique, n in Counter(technique for technique, _ in seen).items():
            assert abs(n - share * every[technique]) <= 0.5
    assert planned(seed=1).probes != plan.probes == planned().probes


def test_a_study_of_few_behaviours_has_fewer_analyses() -> None:
    plan = planned(n=1)
    assert plan.information[-1] == 1.0 and len(plan.information) == len(plan.ends) < 3


def test_a_plan_that_asks_all_has_no_analyses_and_the_digest_that_it_always_had() -> None:
    fixed = planned(stopping="fixed")
    assert b'"analyses"' not in msgspec.json.encode(fixed) and fixed.information == ()
    assert planned(stopping="until_decided") == planned(stopping="fixed", until_decided=True)
    assert (
        len({digest(planned(stopping=rule)) for rule in ("fixed", "until_decided", "group_sequential")}) == 3
    )


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with raises(UsageError, "unknown-name", ["group-seq", "group_sequential"]):
        planned(stopping="group-seq")
    with raises(UsageError, "bad-setting"):
        planned(until_decided=True)
    with raises(UsageError, "bad-usage"):
        planned(CLEAR[:1])
    plans.write_plan(tmp_path, planned(stopping="fixed"))
    with raises(NotComparable, "another-study", ["--stopping", "group_sequential"]):
        plans.write_plan(tmp_path, planned())


# --- deciding ---------------------------------------------------------------------------------------


def test_a_clear_answer_stops_at_the_first_analysis_and_a_close_one_at_the_last() -> None:
    plan = planned()
    n = len(Outcomes(plan).probes(JUDGE_FREE, "breach"))
    clear = StoppingRule(with_codes(plan, np.full(n, HELD), np.where(np.arange(n) % 3, BROKE, HELD))).replay()
    assert clear.n_interim == 1 and clear.open_models == []
    i = np.arange(n)
    codes = np.where(i % 5 == 1, BROKE, HELD), np.where((i % 5 == 2) | (i % 20 == 3), BROKE, HELD)
    close = StoppingRule(with_codes(plan, *codes)).replay()
    assert close.n_interim == 3 and close.n_spared == 0


def test_a_difference_that_the_declared_share_of_unclear_answers_undoes_does_not_stop() -> None:
    """It stopped any study whose decided answers differ, however many of the others were unclear."""
    for rule in ("group_sequential", "until_decided"):
        plan = planned(stopping=rule, unclear_share=1.0)
        n = len(Outcomes(plan).probes(JUDGE_FREE, "breach"))
        worse = np.where(np.arange(n) % 3, HELD, BROKE)
        decided = StoppingRule(with_codes(plan, np.full(n, HELD), worse)).replay()
        assert decided.n_interim < len(plan.ends)
        unclear = np.where(np.arange(n) % 3 == 1, UNCLEAR, HELD)
        open_ = StoppingRule(with_codes(plan, unclear, worse)).replay()
        assert open_.n_interim == len(plan.ends) and open_.n_spared == 0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rule", ["group_sequential", "until_decided"])
def test_a_pair_is_decided_exactly_if_the_report_decides_it(seed: int, rule: str) -> None:
    plan, rng = planned(stopping=rule), np.random.default_rng(seed)
    n = len(Outcomes(plan).probes(JUDGE_FREE, "breach"))
    codes = [rng.choice([HELD, BROKE, UNCLEAR], n, p=(0.9 - p, p, 0.1)) for p in (0.2, 0.2 + 0.06 * seed)]
    outcomes = with_codes(plan, *codes)
    rule_ = StoppingRule(outcomes).replay()
    seen = outcomes.until(rule_.n_interim)
    (pair,) = compare_models(seen, "breach", [JUDGE_FREE])
    is_decided = "not enough evidence" not in (pair.verdict_ab, pair.verdict_ba)
    assert (rule_.record().decisions[0].interim is not None) == is_decided


def test_equal_models_are_seldom_told_apart_over_all_analyses() -> None:
    plan, rng, n_worse = planned(), np.random.default_rng(2), 0
    n = len(Outcomes(plan).probes(JUDGE_FREE, "breach"))
    for _ in range(200):
        codes = [np.where(rng.random(n) < 0.3, BROKE, HELD) for _ in "ab"]
        rule = StoppingRule(with_codes(plan, *codes)).replay()
        (pair,) = compare_models(rule.outcomes.until(rule.n_interim), "breach", [JUDGE_FREE])
        n_worse += "worse" in (pair.verdict_ab, pair.verdict_ba)
    assert n_worse <= 20  # 0.05 of 200, and three standard errors


# --- intervals --------------------------------------------------------------------------------------


def test_trials_of_an_analysis_have_its_intervals_and_the_p_value_of_the_design() -> None:
    plan = planned()
    n = len(Outcomes(plan).probes(JUDGE_FREE, "breach"))
    outcomes = with_codes(plan, np.full(n, HELD), np.where(np.arange(n) % 3, BROKE, HELD))
    first = outcomes.until(1)
    assert (first.interim_of(0), outcomes.interim_of(0, 1)) == (1, 3)
    early, last = Intervals.over(first, 0, 1), Intervals.over(outcomes, 0, 1)
    assert early.confidence == 1 - nominal_levels(STAGES, 0.05)[0] > last.confidence > 0.95
    assert early.alpha == last.alpha == 0.05 and early.one_sided < last.one_sided < 0.05
    assert early.overall(0.003) == pytest.approx(0.05, rel=0.03)
    (pair,) = compare_models(first, "breach", [JUDGE_FREE])
    fixed = msgspec.structs.replace(plan, blocks=None, analysis=None)
    (plain,) = compare_models(Outcomes(fixed, first.codes), "breach", [JUDGE_FREE])
    assert pair.p_value > plain.p_value and pair.difference.low < plain.difference.low


def test_a_model_that_is_asked_on_has_the_intervals_of_its_own_analysis() -> None:
    plan = planned((*CLEAR, "scripted:careful/b"))
    outcomes = Outcomes(plan)
    outcomes.array[:] = HELD
    outcomes.array[0, :, plan.ends[0] :] = 0
    assert [outcomes.interim_of(m) for m in range(3)] == [1, 3, 3]
    assert outcomes.interim_of(0, 1) == 1 and outcomes.interim_of(1, 2) == 3


def test_breaches_by_severity_have_the_interval_of_the_analysis_at_which_their_model_stopped() -> None:
    plan = planned()
    plan = with_severities(plan, dict.fromkeys({probe.technique for probe in plan.probes}, 3))
    n = len(Outcomes(plan).probes(JUDGE_FREE, "breach"))
    first = with_codes(plan, np.full(n, HELD), np.where(np.arange(n) % 3, BROKE, HELD)).until(1)
    fixed = Outcomes(msgspec.structs.replace(plan, blocks=None, analysis=None), first.codes)
    for row, plain in zip(*(rows_of(severity.compute, each) for each in (first, fixed)), strict=True):
        assert row.estimate.n == plain.estimate.n
        # The level of the last analysis would give nearly the interval of a fixed plan.
        assert row.estimate.high - row.estimate.low > 1.2 * (plain.estimate.high - plain.estimate.low)


# --- asking -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_rest_is_not_asked_and_the_report_says_which_and_why(stopped: Path) -> None:
    estimates, plan = found(stopped), planned()
    assert len(by_index(stopped)) == 2 * plan.ends[0] < plan.n_trials
    assert estimates.n_missing == 0 and estimates.n_errors == 0 and estimates.deviations == ()
    assert {s.interim for s in estimates.sequential.stopped} == {1}
    words = stopping_words(estimates)
    for said in (
        "1 of 1 pair",
        "1 of 3 planned interim analyses",
        "of each technique",
        "--stopping fixed",
        "repeated",
    ):
        assert said in words
    assert f"{estimates.n_not_needed:,} of {plan.n_trials:,} trials were not asked" in words
    declared = dict(declared_lines(estimates))["Stopping"]
    assert "50" in declared and "0.0031, 0.018, 0.044" in declared
    rate = next(r for r in estimates.rates if r.technique == JUDGE_FREE and r.attack == ALL)
    assert (
        rate.estimate.method.startswith("wilson")
        and rate.estimate.n == len(Outcomes(plan).probes(JUDGE_FREE, "breach")) / 2
    )


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 60])
def test_stopped_and_resumed_it_decides_the_same(tmp_path: Path, stopped: Path, n: int) -> None:
    with pytest.raises(Stopped):
        study(tmp_path, planned()).run(stop_after(n))
    Study.open(tmp_path).run()
    assert drop_circumstances(tmp_path) == drop_circumstances(stopped)


def test_an_error_is_no_missing_trial_of_an_analysis() -> None:
    plan = planned()
    outcomes = Outcomes(plan)
    outcomes.array[:, :, : plan.ends[0]] = HELD
    outcomes.array[0, 0, 0, 0] = ERROR
    assert outcomes.interim_of(0, 1) == 1 and StoppingRule(outcomes).replay().n_interim == 1


# --- the forecast -----------------------------------------------------------------------------------


def test_the_forecast_has_nearly_the_power_of_a_fixed_plan_and_names_the_analyses(tmp_path: Path) -> None:
    by_rule = {
        rule: forecast_study(planned(stopping=rule, n=160), tmp_path / "s")
        for rule in ("fixed", "group_sequential", "until_decided")
    }
    power = {rule: forecast.rows[0].not_worse for rule, forecast in by_rule.items()}
    assert power["fixed"] - 0.03 < power["group_sequential"] < power["fixed"]
    assert power["until_decided"] < power["fixed"] - 0.2
    told = forecast_lines(planned(n=160), by_rule["group_sequential"])
    assert any("Analyses at 50 % and 75 %" in line for line in told) and max(map(len, told)) <= 80
    assert not any("Analyses" in line for line in forecast_lines(planned(stopping="fixed"), by_rule["fixed"]))


# --- claims by technique ----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["group_sequential", "until_decided"])
def test_the_plan_says_before_the_first_request_that_claims_by_technique_are_given_up(
    rule: str, tmp_path: Path
) -> None:
    early, fixed = planned(stopping=rule), planned(stopping="fixed")
    given_up = "gives up claims about single techniques"
    of_early, of_fixed = (forecast_study(plan, tmp_path / "s") for plan in (early, fixed))
    assert of_early is not None and of_fixed is not None
    assert any(given_up in line for line in forecast_lines(early, of_early))
    assert not any(given_up in line for line in forecast_lines(fixed, of_fixed))
    assert {row.technique for row in of_early.rows} == {"judge_free", "judged", "all"}
    assert "planted_secret" in {row.technique for row in of_fixed.rows}


def test_the_report_of_an_early_stop_claims_nothing_by_technique(stopped: Path) -> None:
    found = aggregate.read_proven(stopped)
    families = dict(declared_lines(found))["Families"]
    assert families.endswith("Claims about one technique are given up, because it stops early")
    ends = found.models[0].id, found.models[1].id
    assert techniques_of_pair(found, *ends, JUDGE_FREE).n == 0
    told = headline(found)
    assert "techniques" not in told.sentence and not any("By technique" in line for line in told.support)


# --- a lineage --------------------------------------------------------------------------------------


def test_the_edges_of_a_lineage_decide_when_its_models_stop(tmp_path: Path) -> None:
    """A parent, a worse child and a copy: the pair of the two children decides nothing."""
    models = family()
    made = Study(
        StudySpec(
            models, APPLICATION, probes=probes(80), out=tmp_path, margin=0.1, stopping="group_sequential"
        )
    )
    found = made.run().estimates
    course, ids = found.sequential, [model.id for model in models]
    assert course is not None and {(d.a, d.b) for d in course.decisions} == {
        (ids[0], ids[1]),
        (ids[0], ids[2]),
    }
    by_edge = {
        (e.parent, e.child): (e.compared.verdict_ab, e.compared.verdict_ba)
        for e in found.edges
        if (e.compared.measure, e.compared.technique) == ("breach", JUDGE_FREE)
    }
    for decision in course.decisions:
        is_open = "not enough evidence" in by_edge[decision.a, decision.b]
        assert (decision.interim is None) is is_open
    assert any(stop.model == ids[2] for stop in course.stopped), "the worse child is decided early"


def test_a_model_without_an_edge_is_asked_to_the_end(tmp_path: Path) -> None:
    stranger = lineage.scripted("scripted:refuser").record
    models = [*family(), stranger]
    made = Study(
        StudySpec(
            models, APPLICATION, probes=probes(80), out=tmp_path, margin=0.1, stopping="group_sequential"
        )
    )
    course = made.run().estimates.sequential
    assert course is not None and stranger.id not in {stop.model for stop in course.stopped}
