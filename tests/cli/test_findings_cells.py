"""The cells of the table that a study prints."""

from __future__ import annotations

import pytest

from heredity.cli._findings import _estimate
from heredity.stats.intervals import refused, wilson


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("not-measured", "not measured"),
        ("unlike-labels", "not corrected"),
        ("uninformative", "uninformative"),
    ],
)
def test_a_correction_without_a_value_does_not_read_as_if_the_model_refused(code: str, said: str) -> None:
    assert _estimate(refused(40, "a reason", code), False).plain == said


def test_a_correction_has_its_interval_and_a_missing_one_is_a_dash() -> None:
    assert _estimate(wilson(10, 40), False).plain.split() == ["25", "%", "[14,", "40]"]
    assert _estimate(None, False).plain == "-"
