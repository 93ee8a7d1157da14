"""Adjusted p-values against statsmodels."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from heredity.stats import holm
from tests.support.errors import raises

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@pytest.mark.slow
@settings(max_examples=20)  # multipletests runs the garbage collector each time
@given(p_values)
def test_holm_is_that_of_statsmodels(p) -> None:
    assert holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]), abs=1e-12)


@given(p_values)
def test_an_adjusted_value_is_never_below_the_raw_one(p) -> None:
    assert all(raw <= adjusted <= 1.0 for raw, adjusted in zip(p, holm(p), strict=True))


def test_no_comparison_is_no_family() -> None:
    assert holm([]) == []


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_a_missing_p_value_is_refused_rather_than_adjusted(bad) -> None:
    with raises(ValueError, "bad-setting"):
        holm([0.01, bad])
