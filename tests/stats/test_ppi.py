"""Prediction-powered estimates: the published coverage and width, and what bad judges and few labels do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.core.records import Estimate
from heredity.stats import wilson
from heredity.stats.judge_error import FEWEST, ppi_mean
from tests.support.errors import raises

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def drawn(rng: np.random.Generator, rate: float, sens: float, spec: float, n: int, n_others: int) -> Arrays:
    truth = rng.random(n + n_others) < rate
    judged = np.where(truth, rng.random(truth.size) < sens, rng.random(truth.size) >= spec)
    return truth[:n].astype(float), judged[:n].astype(float), judged[n:].astype(float)


def held(found: Estimate, truth: float) -> bool:
    assert found.low is not None and found.high is not None
    return found.low <= truth <= found.high


def width(found: Estimate) -> float:
    assert found.low is not None and found.high is not None
    return found.high - found.low


@pytest.mark.slow
def test_coverage_and_width_are_the_published_ones() -> None:
    rng = np.random.default_rng(1)
    runs = [ppi_mean(*drawn(rng, 0.2, 0.87, 0.9, 150, 1000)) for _ in range(3000)]
    assert np.mean([held(run, 0.2) for run in runs]) == pytest.approx(0.946, abs=0.012)
    assert np.mean([width(run) for run in runs]) == pytest.approx(0.095, abs=0.002)


def test_a_judge_worth_nothing_costs_nothing() -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random(300) < 0.3).astype(float)
    noise, others = rng.random(300), rng.random(5000)
    found = ppi_mean(labels, noise, others)
    assert width(found) == pytest.approx(width(wilson(int(labels.sum()), 300)), rel=0.02)
    assert "weight 0.00" in ppi_mean(labels, 1 - labels, others).method  # nor one that is always wrong


def test_a_perfect_judge_counts_as_labels_but_few_agreements_do_not_prove_it() -> None:
    rng = np.random.default_rng(3)
    labels, _, others = drawn(rng, 0.3, 1.0, 1.0, 2000, 200_000)
    assert width(ppi_mean(labels, labels, others)) < 0.01
    few = labels[:20]
    assert width(ppi_mean(few, few, others)) > 2 / 20


def test_the_formula_is_that_of_the_paper() -> None:
    y, f = np.array([1.0, 0, 0, 1, 1, 0, 0, 0, 1, 0]), np.array([1.0, 0, 1, 1, 0, 0, 0, 0, 1, 0])
    others = np.array([1.0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1])
    weight = np.cov(y, f)[0, 1] / ((1 + 10 / 12) * np.var(np.concatenate([f, others])))
    assert f"weight {weight:.2f}" in ppi_mean(y, f, others).method
    assert ppi_mean(y, f, others).value == pytest.approx(weight * others.mean() + (y - weight * f).mean())


def test_labels_drawn_where_the_judge_is_unsure_give_the_right_rate() -> None:
    rng, covered = np.random.default_rng(4), []
    for _ in range(400):
        truth, judged, _ = drawn(rng, 0.2, 0.8, 0.9, 3000, 0)
        chances = np.where(judged == 1, 0.15, 0.05)
        picked = rng.random(3000) < chances
        found = ppi_mean(truth[picked], judged[picked], judged[~picked], chances[picked])
        covered.append(held(found, 0.2))
    assert np.mean(covered) > 0.92


@pytest.mark.slow
@pytest.mark.parametrize(("n", "n_all"), [(50, 60), (35, 92), (100, 100), (100, 200), (190, 200), (30, 60)])
@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_labels_that_are_a_large_share_of_all_trials_are_covered_too(n: int, n_all: int, rate: float) -> None:
    rng = np.random.default_rng(n + n_all)
    runs = [ppi_mean(*drawn(rng, rate, 0.95, 0.97, n, n_all - n)) for _ in range(1500)]
    # 100 of 100 is Wilson's interval itself, which covers 0.93 to 0.97 at these rates
    assert 0.925 < np.mean([held(run, rate) for run in runs]) < 0.99


def test_a_large_share_drawn_by_doubt_is_covered() -> None:
    rng, covered = np.random.default_rng(7), []
    for _ in range(1500):
        truth, judged, _ = drawn(rng, 0.2, 0.8, 0.9, 100, 0)
        chances = np.where(judged == 1, 0.9, 0.4)
        picked = rng.random(100) < chances
        covered.append(held(ppi_mean(truth[picked], judged[picked], judged[~picked], chances[picked]), 0.2))
    assert np.mean(covered) > 0.935


def test_where_every_trial_is_labelled_the_judge_has_no_say() -> None:
    labels, noise = np.arange(40) % 4 == 0, np.arange(40) % 3 == 0
    found, alone = ppi_mean(labels, noise, [], np.where(noise, 0.9, 0.3)), wilson(10, 40)
    assert (found.value, found.n) == (alone.value, 40) and "(0 unlabelled, weight 0.00" in found.method
    assert (found.low, found.high) == (pytest.approx(alone.low), pytest.approx(alone.high))


def test_answers_that_were_skipped_are_not_taken_for_labelled() -> None:
    """All were drawn, chance 1, and half of them skipped: that is half of the labels, not all."""
    rng = np.random.default_rng(8)
    labels, judged, others = drawn(rng, 0.3, 0.7, 0.8, 50, 50)
    assert ppi_mean(labels, judged, others, np.ones(50)) == ppi_mean(labels, judged, others, np.full(50, 0.5))


bits = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.floats(0, 1)), min_size=FEWEST, max_size=40)


@given(bits, st.lists(st.floats(0, 1), max_size=40))
def test_the_interval_holds_its_value_and_is_never_a_point(
    rows: list[tuple[float, float]], others: list[float]
) -> None:
    labels, judged = zip(*rows, strict=True)
    found = ppi_mean(labels, judged, others)
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.low < found.high


# --- clusters ---------------------------------------------------------------------------------------


def by_priority(rng: np.random.Generator, size: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n trials of a priority sample, and the chances with which they were drawn."""
    priority = size / (1 - rng.random(size.size))
    order = np.argsort(-priority)
    return order[:n], np.minimum(1.0, size[order[:n]] / priority[order[n]])


def covered_in_clusters(n: int, behaviours: int, per: int, rate: float, correlation: float) -> list[float]:
    """Shares of runs whose interval held the truth: with clusters, and with trials taken as independent.

    Rates and the judge's errors vary by behaviour; labels are drawn by priority, judged breaches first.
    """
    rng, scale, runs = np.random.default_rng(n + behaviours), 1 / correlation - 1, 400
    clusters, hits = np.repeat(np.arange(behaviours), per), np.zeros(2)
    for _ in range(runs):
        own = rng.beta(rate * scale, (1 - rate) * scale, behaviours)[clusters]
        sens, spec = (rng.beta(2.3 * s, 2.3 * (1 - s), behaviours)[clusters] for s in (0.85, 0.9))
        truth = rng.random(own.size) < own
        judged = np.where(truth, rng.random(own.size) < sens, rng.random(own.size) >= spec).astype(float)
        picked, chances = by_priority(rng, np.where(judged == 1, 1.0, 0.35), n)
        rest = np.ones(own.size, bool)
        rest[picked] = False
        trials = truth[picked], judged[picked], judged[rest], chances
        both = ppi_mean(*trials, clusters=(clusters[picked], clusters[rest])), ppi_mean(*trials)
        hits += [held(found, rate) for found in both]
    return list(hits / runs)


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 50, 100])
@pytest.mark.parametrize(
    ("behaviours", "per", "rate", "correlation"), [(60, 5, 0.2, 0.3), (30, 10, 0.2, 0.6), (15, 10, 0.3, 0.5)]
)
def test_clusters_are_covered_at_few_labels_drawn_by_doubt(
    n: int, behaviours: int, per: int, rate: float, correlation: float
) -> None:
    with_clusters, without = covered_in_clusters(n, behaviours, per, rate, correlation)
    assert with_clusters > 0.95 - 0.03
    assert n == 20 or without < 0.94  # what taking them as independent does


def test_an_interval_with_clusters_is_never_narrower() -> None:
    rng = np.random.default_rng(9)
    labels, judged, others = drawn(rng, 0.3, 0.85, 0.9, 60, 240)
    alone = ppi_mean(labels, judged, others)
    for places in (np.arange(300), np.arange(300) // 5):
        found = ppi_mean(labels, judged, others, clusters=(places[:60], places[60:]))
        assert found.value == alone.value and width(found) >= width(alone)
        assert found.n_clusters == places[-1] + 1


def test_too_few_labels_are_refused_in_words() -> None:
    found = ppi_mean([1, 0, 1], [1, 0, 1], [1, 0])
    assert found.value is None and found.method.startswith("refused: 3 labels")


def test_what_does_not_fit_is_an_error() -> None:
    with raises(ValueError, "bad-setting"):
        ppi_mean([1, 0], [1], [1])
    with raises(ValueError, "bad-setting"):
        ppi_mean([2.0], [1.0], [1.0])
    with raises(ValueError, "bad-setting"):
        ppi_mean([1.0] * 10, [1.0] * 10, [1.0], clusters=([0, 1], [0]))
    with raises(ValueError, "bad-setting"):
        ppi_mean([1.0], [1.0], [1.0], chances=[0.0])
