"""Comparing while the answers come in: what was shown stays shown, and is seldom wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from heredity.stats import paired, sequential, verdict, verdict_words
from heredity.stats.paired import compare_in_blocks
from heredity.stats.power import detectable_in_clusters
from heredity.stats.sequential import SequentialComparison, discordant_log_e

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def drawn(rng: np.random.Generator, a: float, b: float, behaviours: int, size: int = 1) -> Arrays:
    """Trials that share how hard a behaviour is: (a, b, clusters, blocks of 20 behaviours)."""
    luck = np.repeat(rng.random(behaviours), size) * 0.6 + rng.random(behaviours * size) * 0.4
    clusters = np.repeat(np.arange(behaviours), size)
    return luck < a, luck < b, clusters, clusters // 20


def test_one_block_of_single_trials_is_the_published_e_value() -> None:
    a, b = np.zeros(30, bool), np.arange(30) < 8
    found = compare_in_blocks(a, b, np.arange(30), np.zeros(30, int))
    assert found.p_value == pytest.approx(math.exp(-discordant_log_e(0, 8)))
    assert found.table.only_b == 8 and found.difference.value == pytest.approx(8 / 30)


def test_what_was_shown_stays_shown() -> None:
    evidence = SequentialComparison(n_most=98).add(np.ones(9)).add(-np.ones(9)).add([])
    assert evidence.p_value < 0.05 and evidence.n_interim == 2
    before = evidence.uppers
    evidence.add(np.ones(80))
    assert evidence.uppers[0] == before[0] and evidence.uppers[1] < before[1]


def test_the_reverse_comparison_is_the_mirror() -> None:
    a, b, clusters, blocks = drawn(np.random.default_rng(1), 0.2, 0.4, 120, 3)
    one, two = compare_in_blocks(a, b, clusters, blocks), compare_in_blocks(b, a, clusters, blocks).mirrored()
    assert one.p_value == pytest.approx(two.p_value) and one.uppers == pytest.approx(two.uppers)
    assert one.difference.low == pytest.approx(two.difference.low, abs=1e-7)


def test_a_large_gap_is_worse_an_equal_pair_is_not_worse_and_few_trials_are_neither() -> None:
    rng = np.random.default_rng(2)
    worse = compare_in_blocks(*drawn(rng, 0.1, 0.5, 200))
    alike = compare_in_blocks(*drawn(rng, 0.1, 0.1, 800))
    few = compare_in_blocks(*drawn(rng, 0.1, 0.2, 20))
    assert [verdict(c) for c in (worse, alike, few)] == ["worse", "not worse", "not enough evidence"]
    assert verdict(worse.mirrored()) == "not worse"
    assert "anytime betting test" in verdict_words("x", "y", worse)
    assert few.detectable is None or few.detectable > 0.3


def test_nothing_to_compare_is_no_evidence() -> None:
    found = compare_in_blocks([], [], [], [])
    assert found.table.n == 0 and found.p_value == 1.0 and verdict(found) == "not enough evidence"


@pytest.fixture
def only_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """For many comparisons of which only the p-values are read: their bounds take nine tenths of the time."""
    monkeypatch.setattr(sequential, "upper_bound", lambda *_: 1.0)
    monkeypatch.setattr(paired, "detectable_in_clusters", lambda *_: None)


@pytest.mark.slow
@pytest.mark.usefixtures("only_evidence")
def test_equal_models_are_seldom_told_apart_over_all_looks() -> None:
    rng, runs = np.random.default_rng(3), 200
    found = [compare_in_blocks(*drawn(rng, 0.3, 0.3, 100, 2)) for _ in range(runs)]
    rng2 = np.random.default_rng(4)
    apart = [compare_in_blocks(rng2.random(200) < 0.3, rng2.random(200) < 0.3, *f) for f in _places(runs)]
    for group in (found, apart):
        claimed = np.mean([c.p_value < 0.05 for c in group])
        assert claimed <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def _places(runs: int) -> list[tuple[np.ndarray, np.ndarray]]:
    clusters = np.repeat(np.arange(100), 2)
    return [(clusters, clusters // 10)] * runs


@pytest.mark.slow
@pytest.mark.usefixtures("only_evidence")
@pytest.mark.parametrize(("n_clusters", "discordance"), [(12, 0.0), (38, 0.1), (53, 0.02), (120, 0.3)])
def test_what_could_have_been_shown_is_shown_four_times_in_five(n_clusters: int, discordance: float) -> None:
    rng = np.random.default_rng(3)

    def clusters(difference: float) -> NDArray[np.float64]:
        """Of each: b alone breaks, or else they differ with the chance `discordance`, either way round."""
        others = rng.choice(
            [-1.0, 0.0, 1.0], n_clusters, p=[discordance / 2, 1 - discordance, discordance / 2]
        )
        return np.where(rng.random(n_clusters) < difference, 1.0, others)

    def evidence_of(means: Any) -> SequentialComparison:
        return SequentialComparison(n_most=n_clusters).add(means)

    found = [detectable_in_clusters(clusters(0.0)) for _ in range(20)]
    middle = float(np.median([each for each in found if each is not None]))
    shown = [SequentialComparison(n_most=n_clusters).add(clusters(middle)).p_value < 0.05 for _ in range(300)]
    assert 0.7 < np.mean(shown) < 0.93
    few = [
        SequentialComparison(n_most=n_clusters).add(clusters(middle / 2)).p_value < 0.05 for _ in range(300)
    ]
    assert np.mean(few) < 0.6


def test_few_clusters_could_have_shown_nothing() -> None:
    assert detectable_in_clusters([]) is None
    assert detectable_in_clusters([0.0] * 5) is None
    assert detectable_in_clusters([0.1, -0.1] * 20) == detectable_in_clusters([-0.1, 0.1] * 20)
