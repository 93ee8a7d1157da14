"""Cohen's kappa against statsmodels, and where it must not be a number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import cohens_kappa as reference

from heredity.stats.paired import Table, cohens_kappa

COUNTS = st.integers(0, 60)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_kappa_and_its_interval_are_those_of_statsmodels(both: int, a: int, b: int, neither: int) -> None:
    found = cohens_kappa(Table(both, a, b, neither))
    if found.value is None or a + b == 0 or both + neither == 0:  # there its interval has no width
        return
    known = reference([[both, a], [b, neither]])
    assert found.value == pytest.approx(known.kappa, abs=1e-9)
    assert found.low == pytest.approx(max(-1, known.kappa_low), abs=1e-9)
    assert found.high == pytest.approx(min(1, known.kappa_upp), abs=1e-9)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_an_interval_holds_its_kappa_and_has_some_width(both: int, a: int, b: int, neither: int) -> None:
    found = cohens_kappa(Table(both, a, b, neither))
    if found.value is not None:
        assert -1 <= found.low <= found.value <= found.high <= 1
        assert found.low < found.high


def test_the_worked_example_of_cohen() -> None:
    # 20 yes by both, 5 by a alone, 10 by b alone, 15 by neither: observed 0.7, expected 0.5
    assert cohens_kappa(Table(20, 5, 10, 15)).value == pytest.approx(0.4)


@pytest.mark.parametrize("table", [Table(30, 0, 0, 0), Table(20, 10, 0, 0), Table(0, 0, 9, 3)])
def test_a_rater_who_says_one_thing_alone_gets_no_kappa(table: Table) -> None:
    found = cohens_kappa(table)
    assert found.value is None and "same answer" in found.method


def test_full_agreement_of_few_is_not_certain() -> None:
    few, many = cohens_kappa(Table(3, 0, 0, 3)), cohens_kappa(Table(300, 0, 0, 300))
    assert few.value == many.value == 1.0
    assert few.low < 0.3 and many.low > 0.97


def test_full_disagreement_of_few_is_not_certain() -> None:
    few, many = cohens_kappa(Table(0, 1, 1, 0)), cohens_kappa(Table(0, 300, 300, 0))
    assert few.value == many.value == -1.0
    assert few.high > 0.3 and many.high < -0.97


def test_nothing_in_common_is_no_estimate() -> None:
    assert cohens_kappa(Table(0, 0, 0, 0)).value is None
