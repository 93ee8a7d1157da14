"""Group-sequential levels against published bounds, and the error of the whole design by simulation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import special

from heredity.core.errors import BadArgument
from heredity.stats.sequential import InterimAnalysis, nominal_levels, one_sided_levels, overall_p, spent
from tests.support.errors import raises

STAGES = (0.5, 0.75, 1.0)


# Bounds of Lan and DeMets 1983, O'Brien-Fleming type, two-sided level 0.05, as ldbounds has them.
@pytest.mark.parametrize(
    ("information", "bounds"),
    [
        ((1.0,), (1.960,)),
        ((0.5, 1.0), (2.963, 1.969)),
        ((1 / 3, 2 / 3, 1.0), (3.710, 2.511, 1.993)),
        ((0.25, 0.5, 0.75, 1.0), (4.333, 2.963, 2.359, 2.014)),
        ((0.2, 0.4, 0.6, 0.8, 1.0), (4.877, 3.357, 2.680, 2.290, 2.031)),
    ],
)
def test_the_bounds_are_the_published_ones(information: tuple[float, ...], bounds: tuple[float, ...]) -> None:
    found = [-float(special.ndtri(level / 2)) for level in nominal_levels(information)]
    assert found == pytest.approx(bounds, abs=1e-3)


def test_nothing_is_left_of_the_level_after_the_last_analysis() -> None:
    assert spent(1.0, 0.05) == pytest.approx(0.05) and spent(0.1, 0.05) < 1e-8
    assert one_sided_levels(STAGES, 0.05) == tuple(level / 2 for level in nominal_levels(STAGES, 0.10))


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.05 / 3, 1e-4])
@pytest.mark.parametrize("analysis", [1, 2, 3])
def test_the_p_value_of_the_design_is_the_alpha_at_which_its_analysis_rejects(
    analysis: int, alpha: float
) -> None:
    assert overall_p(nominal_levels(STAGES, alpha)[analysis - 1], analysis, STAGES) == pytest.approx(
        alpha, rel=0.01
    )


def test_the_p_value_of_the_design_rises_with_that_of_the_analysis_and_is_no_smaller() -> None:
    p = np.geomspace(1e-20, 1.0, 300)
    for analysis in (1, 2, 3):
        found = [overall_p(float(each), analysis, STAGES) for each in p]
        assert all(a <= b + 1e-12 for a, b in pairwise(found))
        assert all(a >= b for a, b in zip(found, p, strict=True)) and max(found) <= 1.0
    assert overall_p(0.3, 1, (1.0,)) == pytest.approx(0.3, rel=1e-3)


def test_over_all_analyses_a_true_null_is_rejected_as_often_as_alpha() -> None:
    rng, n = np.random.default_rng(3), 200_000
    steps = rng.normal(size=(n, 3)) * np.sqrt(np.diff((0.0, *STAGES)))
    z = np.cumsum(steps, axis=1) / np.sqrt(STAGES)
    p = 2 * special.ndtr(-np.abs(z))
    for alpha in (0.05, 0.01):
        rejects = (p <= np.array(nominal_levels(STAGES, alpha))).any(axis=1).mean()
        assert rejects == pytest.approx(alpha, abs=3 * np.sqrt(alpha / n) + 1e-4)
    naive = (p <= 0.05).any(axis=1).mean()
    assert naive > 0.08, "analyses at the plain level would err too often"
    upper = np.array([-special.ndtri(level) for level in one_sided_levels(STAGES, 0.05)])
    assert (z <= -upper).any(axis=1).mean() == pytest.approx(0.05, abs=0.003), "bounds that miss the truth"


def test_an_analysis_has_its_levels() -> None:
    analysis = InterimAnalysis(2, STAGES, 0.05)
    assert (
        analysis.level == nominal_levels(STAGES, 0.05)[1]
        and analysis.one_sided == one_sided_levels(STAGES, 0.05)[1]
    )
    assert analysis.overall(analysis.level) == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize("information", [(), (0.5, 0.9), (0.5, 0.5, 1.0), (0.0, 1.0)])
def test_analyses_that_do_not_rise_to_all_are_refused(information: tuple[float, ...]) -> None:
    with raises(BadArgument, "bad-setting"):
        nominal_levels(information)


def test_a_level_outside_0_and_1_is_refused() -> None:
    with raises(BadArgument, "bad-setting", [1.5]):
        nominal_levels(STAGES, 1.5)
