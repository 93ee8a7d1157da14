"""Prediction-powered estimates: the published coverage and width, and what bad judges and few labels do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.records import Estimate
from heredity.stats.ppi import FEWEST, ppi_difference, ppi_mean, ppi_weight

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
    alone = 2 * 1.96 * np.sqrt(labels.var(ddof=1) / 300)
    assert width(found) == pytest.approx(alone, rel=0.02)
    assert ppi_weight(labels, 1 - labels, others) == 0.0  # nor one that is always wrong


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
    assert ppi_weight(y, f, others) == pytest.approx(weight)
    assert ppi_mean(y, f, others).value == pytest.approx(weight * others.mean() + (y - weight * f).mean())


def test_labels_drawn_where_the_judge_is_unsure_give_the_right_rate() -> None:
    rng, covered = np.random.default_rng(4), []
    for _ in range(400):
        truth, judged, _ = drawn(rng, 0.2, 0.8, 0.9, 3000, 0)
        chances = np.where(judged == 1, 0.15, 0.05)
        picked = rng.random(3000) < chances
        found = ppi_mean(truth[picked], judged[picked], judged, chances[picked])
        covered.append(held(found, 0.2))
    assert np.mean(covered) > 0.92


def test_a_difference_is_the_mirror_of_the_other_way_round() -> None:
    rng = np.random.default_rng(5)
    a, b = drawn(rng, 0.2, 0.87, 0.9, 200, 2000), drawn(rng, 0.35, 0.87, 0.9, 200, 2000)
    one = ppi_difference(a[0], b[0], a[1], b[1], a[2], b[2])
    two = ppi_difference(b[0], a[0], b[1], a[1], b[2], a[2])
    assert held(one, 0.15) and one.value == pytest.approx(-two.value)
    assert (one.low, one.high) == (pytest.approx(-two.high), pytest.approx(-two.low))


def test_a_difference_is_covered() -> None:
    rng, covered = np.random.default_rng(6), []
    for _ in range(800):
        a, b = drawn(rng, 0.2, 0.87, 0.9, 150, 1000), drawn(rng, 0.3, 0.8, 0.95, 150, 1000)
        covered.append(held(ppi_difference(a[0], b[0], a[1], b[1], a[2], b[2]), 0.1))
    assert np.mean(covered) > 0.93


bits = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.floats(0, 1)), min_size=FEWEST, max_size=40)


@given(bits, st.lists(st.floats(0, 1), max_size=40))
def test_the_interval_holds_its_value_and_is_never_a_point(
    rows: list[tuple[float, float]], others: list[float]
) -> None:
    labels, judged = zip(*rows, strict=True)
    found = ppi_mean(labels, judged, others)
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.low < found.high


def test_too_few_labels_are_refused_in_words() -> None:
    found = ppi_mean([1, 0, 1], [1, 0, 1], [1, 0])
    assert found.value is None and found.method.startswith("refused: 3 labels")


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        ppi_mean([1, 0], [1], [1])
    with pytest.raises(ValueError, match="must lie"):
        ppi_mean([2.0], [1.0], [1.0])
    with pytest.raises(ValueError, match="chance"):
        ppi_mean([1.0], [1.0], [1.0], chances=[0.0])
    with pytest.raises(ValueError, match="not paired"):
        ppi_difference([1], [1, 0], [1], [1], [1], [1])
