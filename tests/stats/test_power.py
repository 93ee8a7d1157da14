"""Planning: against brute force, simulation, and statsmodels where it has the same thing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.stats import detectable_difference, mcnemar_exact, n_for_difference, n_for_margin, wilson
from heredity.stats.power import EXACT_TO, _critical, design_effect, n_for_rate_width, paired_power
from tests.support.errors import raises


def test_critical_counts_are_those_of_the_test_itself() -> None:
    critical = _critical(200, 0.05)
    for m in range(201):
        rejecting = [k for k in range(m // 2 + 1) if mcnemar_exact(k, m - k) < 0.05]
        assert critical[m] == (max(rejecting) if rejecting else -1), m


@pytest.mark.parametrize(
    ("n", "discordance", "difference"), [(25, 0.4, 0.35), (60, 0.3, 0.2), (200, 0.2, 0.1)]
)
def test_power_is_what_a_simulation_finds(n, discordance, difference) -> None:
    rng, runs = np.random.default_rng(2), 4000
    p_b = (discordance + difference) / 2
    drawn = rng.multinomial(n, [discordance - p_b, p_b, 1 - discordance], runs)
    found = np.mean([b > a and mcnemar_exact(int(a), int(b)) < 0.05 for a, b, _ in drawn])
    # four standard errors of a simulation of 4,000
    assert paired_power(n, discordance, difference) == pytest.approx(found, abs=0.032)


def test_exact_and_normal_power_meet() -> None:
    below, above = (paired_power(n, 0.2, 0.017) for n in (EXACT_TO, EXACT_TO + 1))
    assert 0.6 < below < 0.9
    assert below == pytest.approx(above, abs=0.01)


@pytest.mark.parametrize(("difference", "discordance"), [(0.3, 0.4), (0.1, 0.2), (0.05, 0.1)])
def test_the_planned_n_has_the_power_and_one_less_has_not(difference, discordance) -> None:
    n = n_for_difference(difference, discordance)
    assert paired_power(n, discordance, difference) >= 0.8
    assert paired_power(n - 1, discordance, difference) < 0.8


def test_the_planned_n_is_near_the_textbook_formula() -> None:
    # Connor 1987: (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 / d^2 = 155 for psi 0.2, d 0.1; exact needs more
    assert 155 <= n_for_difference(0.1, 0.2) <= 180


def test_the_detectable_difference_is_the_one_that_needs_this_n() -> None:
    found = detectable_difference(168, 0.2)
    assert found == pytest.approx(0.1, abs=0.005)
    assert paired_power(168, 0.2, found) >= 0.8


def test_five_pairs_can_show_nothing() -> None:
    assert detectable_difference(5, 0.5) is None
    assert detectable_difference(6, 0.5) is not None
    assert detectable_difference(50, 0.5, deff=10.0) is None


@given(st.integers(6, 400), st.floats(0, 1))
def test_more_pairs_show_what_fewer_do_nearly(n, discordance) -> None:
    few, many = detectable_difference(n, discordance), detectable_difference(2 * n, discordance)
    assert few is not None and many is not None
    assert 0.0 < many <= few <= 1.0


def test_a_design_effect_multiplies_the_plan() -> None:
    assert design_effect(10, 0.5) == 5.5
    assert n_for_difference(0.1, 0.2, deff=2.0) == 2 * n_for_difference(0.1, 0.2)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_the_planned_width_is_reached_and_not_before(rate) -> None:
    n = n_for_rate_width(rate, 0.2)
    low, high = wilson(round(rate * n), n).low, wilson(round(rate * n), n).high
    assert high - low == pytest.approx(0.2, abs=0.02)


def test_52_trials_without_a_breach_bound_the_rate_by_7_percent() -> None:
    n = n_for_rate_width(0.0, 0.07)
    assert wilson(0, n).high <= 0.07 < wilson(0, n - 1).high
    assert n == 52


def test_the_plan_for_a_margin_holds_in_simulation() -> None:
    from heredity.stats.paired import Table, tango_bounds

    n, rng = n_for_margin(0.05, 0.1), np.random.default_rng(4)
    drawn = rng.multinomial(n, [0.05, 0.05, 0.9], 1500)
    below = [tango_bounds(Table(0, int(a), int(b), int(r)), n, 0.9).high < 0.05 for a, b, r in drawn]
    assert np.mean(below) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (lambda: n_for_difference(0.0, 0.1), "bad-setting"),
        (lambda: n_for_margin(0.0, 0.1), "bad-setting"),
        (lambda: n_for_rate_width(0.5, 0.0), "bad-setting"),
        (lambda: n_for_rate_width(1.5, 0.1), "bad-setting"),
        (lambda: paired_power(10, 1.5, 0.1), "bad-setting"),
        (lambda: n_for_difference(1e-6, 0.5), "bad-setting"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(ask, code: str) -> None:
    with raises(ValueError, code):
        ask()
