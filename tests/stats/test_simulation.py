"""The documents' claims on statistics: few false alarms, intervals that hold the truth, figures to rerun."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest

from tests.stats.simulate import CORNERS, Cell, judge_hits, pair_hits, rate_hits, tables

DOCS = Path(__file__).parents[2] / "docs"
RUNS = 400  # a share of 0.95 has a standard error of 0.011


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.9])
def test_a_clustered_rate_holds_the_truth(correlation) -> None:
    for cell in (Cell(10, 5, 0.1, 0.1, correlation), Cell(25, 10, 0.4, 0.4, correlation)):
        assert rate_hits(np.random.default_rng(1), cell, RUNS).held > 0.90


def test_trials_taken_as_independent_do_not_hold_it() -> None:
    assert rate_hits(np.random.default_rng(1), Cell(25, 10, 0.4, 0.4, 0.9), RUNS).naive < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.9])
def test_models_that_are_alike_are_rarely_called_different(correlation) -> None:
    for cell in (Cell(10, 5, 0.4, 0.4, correlation), Cell(50, 10, 0.1, 0.1, correlation)):
        hits = pair_hits(np.random.default_rng(2), cell, RUNS)
        assert hits.rejected < 0.085  # 0.05 and three standard errors
        assert hits.held > 0.92


def test_clusters_taken_as_independent_cry_wolf() -> None:
    assert pair_hits(np.random.default_rng(2), Cell(50, 10, 0.4, 0.4, 0.9), RUNS).rejected_naive > 0.3


def test_a_corrected_rate_holds_the_truth() -> None:
    for rate in (0.02, 0.2):
        assert judge_hits(np.random.default_rng(3), 300, 75, rate, 0.87, 0.9, RUNS).held > 0.92


@pytest.mark.parametrize("corner", CORNERS)
def test_a_corrected_rate_holds_the_truth_at_the_ends(corner) -> None:
    hits = judge_hits(np.random.default_rng(4), *corner, RUNS)
    assert hits.held > 0.95 - 3 * 0.011


def test_the_examples_in_the_docs_are_what_the_code_gives() -> None:
    found = doctest.testfile(str(DOCS / "explanation" / "statistics.md"), module_relative=False)
    assert found.attempted > 10
    assert found.failed == 0


@pytest.mark.proof
def test_the_rows_in_the_docs_are_what_the_simulation_gives() -> None:
    text = (DOCS / "results" / "coverage.md").read_text(encoding="utf-8")
    sections = [
        text.split(f"\n## {title}\n")[1].split("\n## ")[0] for title in ("Clusters", "A corrected rate")
    ]
    rows = [line for section in sections for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) >= 14
    assert set(rows) - set(tables()) == set()
