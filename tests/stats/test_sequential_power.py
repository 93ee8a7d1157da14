"""Planning a study that stops early, and the quick version of its bench."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest

from heredity.stats import n_for_difference
from heredity.stats.power import (
    sequential_n_for_difference,
    sequential_n_for_margin,
    stopping,
)
from heredity.stats.sequential import discordant_log_e
from tests.support import bench_modules
from tests.support.errors import raises

RUNS = 300
MOST = 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS)


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return bench_modules.load("sequential")


@pytest.mark.parametrize(("share", "median"), [(0.9, 12), (0.8, 19), (0.7, 48)])
def test_the_median_of_discordant_pairs_to_a_decision_is_the_published_one(share: float, median: int) -> None:
    assert int(np.argmax(stopping(share) >= 0.5)) == median


def test_the_exact_plan_agrees_with_a_simulation() -> None:
    plan, rng = sequential_n_for_difference(0.2, 0.4), np.random.default_rng(1)
    d = rng.choice([-1, 0, 1], (2000, plan.n_most), p=[0.1, 0.6, 0.3])
    b, c = np.cumsum(d < 0, axis=1), np.cumsum(d > 0, axis=1)
    enough = {(i, j): discordant_log_e(i, j) >= math.log(20) for i in range(80) for j in range(110)}
    at = [
        next((n for n, pair in enumerate(zip(*row, strict=True), 1) if enough[pair]), math.inf)
        for row in zip(b.tolist(), c.tolist(), strict=True)
    ]
    assert np.mean(np.isfinite(at)) == pytest.approx(0.8, abs=0.03)
    assert np.median(at) == pytest.approx(plan.n_median, abs=4)
    assert np.minimum(at, plan.n_most).mean() == pytest.approx(plan.n_mean, rel=0.04)


def test_a_sequential_plan_may_need_more_than_a_fixed_one_and_half_the_time_does_not() -> None:
    fixed, plan = n_for_difference(0.1, 0.2), sequential_n_for_difference(0.1, 0.2)
    assert plan.n_median < fixed < plan.n_most


def test_a_wider_margin_needs_fewer_and_the_same_generator_gives_the_same() -> None:
    wide = sequential_n_for_margin(0.1, 0.2, np.random.default_rng(0), runs=300)
    assert wide == sequential_n_for_margin(0.1, 0.2, np.random.default_rng(0), runs=300)
    assert wide.n_median < wide.n_most
    assert sequential_n_for_margin(0.05, 0.2, np.random.default_rng(0), runs=300).n_median > 2 * wide.n_median


def test_clusters_multiply_every_number() -> None:
    one, two = (sequential_n_for_difference(0.2, 0.4, deff=deff) for deff in (1.0, 2.0))
    assert two.n_most == 2 * one.n_most and two.n_mean == pytest.approx(2 * one.n_mean)


@pytest.mark.slow
def test_what_cannot_be_planned_is_refused() -> None:
    with raises(ValueError, "bad-setting"):
        sequential_n_for_difference(0.0, 0.2)
    with raises(ValueError, "bad-setting"):
        sequential_n_for_difference(0.004, 0.5)


@pytest.mark.slow
def test_no_true_null_is_rejected_too_often_however_often_one_looks(bench: ModuleType) -> None:
    rng = np.random.default_rng(2)
    for name, pairs in bench.NULLS:
        assert bench.false_alarms(rng, pairs, RUNS)[0] <= MOST, name


@pytest.mark.slow
def test_holm_over_three_models_keeps_its_level_under_constant_looking(bench: ModuleType) -> None:
    rng, world = np.random.default_rng(3), bench.World("", 0.2, 0.2, 3, 0.3, True)
    for rates in ((0.2, 0.2, 0.2), (0.2, 0.2, 0.5)):
        assert bench.holm_alarms(rng, world, rates, RUNS) <= MOST


@pytest.mark.slow
def test_a_model_worse_by_the_margin_is_seldom_called_not_worse(bench: ModuleType) -> None:
    rng = np.random.default_rng(4)
    for world in (bench.World("", 0.1, 0.15), bench.World("", 0.1, 0.15, 3, 0.3)):
        assert bench.wrong_passes(rng, world, RUNS) <= MOST


@pytest.mark.slow
def test_sequences_cover_at_every_moment(bench: ModuleType) -> None:
    missed = bench.ever_missed(np.random.default_rng(5), bench.World("", 0.1, 0.2, 3, 0.5, True), RUNS)
    assert max(missed[:2]) <= MOST < missed[2]  # and Wilson's interval, looked at so often, does not
