"""The whole analysis of a study, by simulation: the small version of bench/pipeline.py."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.support import bench_modules

N = 60  # studies; a share of 0.05 has a standard error of 0.028


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return bench_modules.load("pipeline")


def test_the_seed_decides(bench: ModuleType) -> None:
    world = bench.World("small", unclear=(0.1, 0.4), sens=0.9, spec=0.95, behaviours=6)
    assert bench.simulate(world, 3) == bench.simulate(world, 3)


def test_the_gap_is_the_one_that_is_asked_for(bench: ModuleType) -> None:
    rng, world = bench.np.random.default_rng(0), bench.World("wide", gap=0.1, gap_in=2, behaviours=4000)
    broke = bench.answers(world, bench.shifts_of(world), rng)
    rates = broke.mean(axis=(1, 2, 3))
    assert rates[0] == pytest.approx(bench.true_rate(world), abs=0.01)
    assert rates[1] - rates[0] == pytest.approx(0.0, abs=0.01)
    assert rates[2] - rates[0] == pytest.approx(0.1, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("of_holds", "left_out"), [(0.4, 0.04), (0.6, 0.3)])
def test_unclear_holds_of_one_model_make_no_other_model_worse(
    bench: ModuleType, of_holds: float, left_out: float
) -> None:
    line = bench.simulate(bench.World("unclear", unclear=(0.1, of_holds)), N)
    assert line.false_worse / N <= 0.05 + 0.084  # three standard errors
    assert line.false_left_out / N > left_out  # in plans that leave unclear answers out


@pytest.mark.slow
def test_a_measured_share_protects_if_unclear_hits_breaches_more_than_holds(bench: ModuleType) -> None:
    """P(breach | unclear) is about 0.6, and the plan assumes 0.25."""
    world = bench.World("unclear", unclear=(0.4, 0.1))
    assert bench.simulate(world, N).false_worse / N > 0.2
    read = bench.simulate(bench.replace(world, read=40), N)
    assert read.false_worse / N <= 0.05 + 0.084
    assert read.shown_not_worse > 0  # what was read still decides


@pytest.mark.slow
def test_the_level_and_the_coverage_are_kept_without_errors(bench: ModuleType) -> None:
    line = bench.simulate(bench.World("plain"), N)
    assert line.false_worse / N <= 0.05 + 0.084
    assert line.raw / N > 0.95 - 0.084


@pytest.mark.slow
def test_a_model_that_is_worse_is_found_and_does_not_pass(bench: ModuleType) -> None:
    line = bench.simulate(bench.World("worse", gap=0.15), N)
    assert line.shown_worse / N > 0.85
    assert line.wrong_pass / N <= 0.05
    by_margin = bench.simulate(bench.World("by the margin", gap=0.05), N)
    assert by_margin.wrong_pass / N <= 0.10 + 0.1  # two models, each at 0.05


@pytest.mark.slow
@pytest.mark.parametrize("is_judged", [False, True])
def test_corrected_intervals_hold_the_true_rate(bench: ModuleType, is_judged: bool) -> None:
    world = bench.World("errors", sens=0.85, spec=0.9, family=0.04, is_judged=is_judged)
    line = bench.simulate(world, N)
    assert line.corrected / N > 0.95 - 0.084
    assert line.raw < line.corrected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("is_judged", "sens", "spec"), [(False, 0.9, 0.96), (True, 0.85, 0.9)], ids=["checks", "judge"]
)
def test_errors_that_differ_by_model_make_no_model_worse_where_a_share_is_declared(
    bench: ModuleType, is_judged: bool, sens: float, spec: float
) -> None:
    settings = {"sens": sens, "spec": spec, "family": 0.04, "is_judged": is_judged}
    plain = bench.simulate(bench.World("errors", **settings), N)
    declared = bench.simulate(bench.World("errors", **settings, error_share=0.05), N)
    assert plain.false_worse / N > 0.1
    assert declared.false_worse / N <= 0.05 + 0.084


@pytest.mark.proof
def test_planned_analyses_keep_the_level_the_coverage_and_nearly_the_power(bench: ModuleType) -> None:
    equal, worse = bench.World("equal"), bench.World("worse", gap=0.20)
    fixed, planned = (bench.simulate_stopped(equal, N, rule) for rule in ("fixed", "group_sequential"))
    assert (planned.worse + planned.better) / N <= 0.05 + 0.084
    assert planned.not_worse >= fixed.not_worse - 0.1 * N
    assert min(planned.difference, planned.rate) / N > 0.95 - 0.084
    until = bench.simulate_stopped(equal, N, "until_decided")
    assert until.not_worse < fixed.not_worse - 0.2 * N, "the rule that was there halves the power"
    found = bench.simulate_stopped(worse, N, "group_sequential")
    assert found.worse > 0.95 * N and found.asked < 0.75 * N
