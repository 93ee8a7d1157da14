"""Estimates that are computed again on another processor differ in the last digits, and only there."""

from __future__ import annotations

import pytest

from heredity.study.aggregate import _are_same


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        ({"rate": 0.123456789012346, "n": 3, "by": [0.5, None]}, True),
        ({"rate": 0.12345678, "n": 3, "by": [0.5, None]}, False),
        ({"rate": 0.123456789012345, "n": 4, "by": [0.5, None]}, False),
        ({"rate": 0.123456789012345, "n": 3, "by": [0.5]}, False),
        ({"rate": 0.123456789012345, "n": 3}, False),
        ({"rate": 0.123456789012345, "n": 3, "by": [0.5, 0.0]}, False),
    ],
)
def test_only_the_last_digits_of_numbers_may_differ(other: object, is_same: bool) -> None:
    held = {"rate": 0.123456789012345, "n": 3, "by": [0.5, None]}
    assert _are_same(held, other) is is_same
