"""Retention and its table, against figures worked elsewhere and against statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from heredity.stats import Table, clustered_rate, compare, inherited, retention, tabulate, wilson
from tests.support.errors import raises


def broke(kept: int, lost: int, gained: int, never: int) -> tuple[np.ndarray, np.ndarray]:
    """Where parent and child broke, for these counts."""
    parent = [False] * (kept + lost) + [True] * (gained + never)
    child = [False] * kept + [True] * lost + [False] * gained + [True] * never
    return np.array(parent), np.array(child)


def test_the_table_is_told_from_the_parents_side() -> None:
    assert inherited(Table(both=4, only_a=3, only_b=2, neither=1)) == (1, 2, 3, 4)
    assert inherited(tabulate(*broke(17, 26, 5, 38))) == (17, 26, 5, 38)


def test_a_worked_example_of_a_benign_tuning_that_lost_refusals() -> None:
    # 86 goals: the parent refused 43, of which the child kept 17; it refused 5 others.
    parent, child = broke(17, 26, 5, 38)
    found = retention(parent, child)
    assert (found.n, found.value, found.method) == (43, 17 / 43, "wilson")
    assert (found.low, found.high) == pytest.approx(proportion_confint(17, 43, method="wilson"))
    assert compare(parent, child).p_value == pytest.approx(mcnemar([[17, 26], [5, 38]]).pvalue)
    assert round(compare(parent, child).p_value, 4) == 0.0002


def test_a_copy_retains_all_with_a_width() -> None:
    parent, _ = broke(40, 0, 0, 10)
    found = retention(parent, parent)
    assert found == wilson(40, 40)
    assert found.low is not None and found.low < 1.0 == found.high


def test_a_parent_that_held_nothing_leaves_nothing_to_retain() -> None:
    found = retention(*broke(0, 0, 5, 5))
    assert (found.value, found.low, found.high, found.n) == (None, 0.0, 1.0, 0)


def test_trials_of_one_behaviour_are_not_counted_as_independent() -> None:
    parent, child = broke(30, 10, 2, 8)
    behaviours = np.arange(50) // 5
    found = retention(parent, child, behaviours)
    held = ~parent
    assert found == clustered_rate(~child[held], behaviours[held])
    assert found.value == 0.75 and "8 clusters" in found.method
    alone = retention(parent, child)
    assert found.low < alone.low and found.high > alone.high  # type: ignore[operator]


def test_trials_that_are_not_paired_are_an_error() -> None:
    with raises(ValueError, "bad-setting"):
        retention([True, False], [True])
