"""Bounds of a rate, and what would decide it, follow from fields of an estimate and never from its words."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from heredity.core.records import Estimate
from heredity.stats.intervals import clustered_rate, refused
from heredity.stats.judge_error import rogan_gladen
from heredity.study.estimates import Rate
from heredity.study.gate import _unknown_error
from heredity.study.intervals import bound_rate, deciding_words, no_narrower

CLUSTERS = np.repeat(np.arange(4), 10)


def rate(estimate: Estimate, corrected: Estimate | None = None) -> Rate:
    n_broke = round((estimate.value or 0) * estimate.n)
    return Rate(
        "m",
        "t",
        "all",
        "breach",
        estimate,
        corrected,
        None,
        estimate.n - n_broke,
        n_broke,
        0,
        0,
        corrected is None,
    )


def reworded(estimate: Estimate) -> Estimate:
    return msgspec.structs.replace(
        estimate, method="in other words (9 clusters, each cluster counted as one trial)"
    )


@pytest.mark.parametrize("broke", [np.zeros(40), np.repeat([1, 0, 0, 0], 10), np.tile([1, 0, 0, 0], 10)])
def test_the_number_of_behaviours_is_a_field(broke: np.ndarray) -> None:
    found = clustered_rate(broke, CLUSTERS)
    bounds = bound_rate(rate(found), 0.95)
    assert found.n_clusters == 4
    assert bounds.n_behaviours == (4 if found.is_at_floor else None)
    assert bound_rate(rate(reworded(found)), 0.95) == bounds
    assert deciding_words(bound_rate(rate(reworded(found)), 0.95), 0.1, 0.95) == deciding_words(
        bounds, 0.1, 0.95
    )


def test_clusters_that_all_agree_are_at_the_floor_and_trials_of_their_own_have_no_clusters() -> None:
    assert clustered_rate(np.repeat([1, 0, 0, 0], 10), CLUSTERS).is_at_floor
    apart = clustered_rate(np.tile([1, 0], 20), np.arange(40))
    assert (apart.n_clusters, apart.is_at_floor) == (None, False)
    assert bound_rate(rate(apart), 0.95).n_behaviours is None


def test_why_a_correction_was_refused_is_a_field() -> None:
    corrected = refused(40, "no labels")
    raw = clustered_rate(np.zeros(40), CLUSTERS)
    assert corrected.method == "refused: no labels"
    assert _unknown_error(rate(raw, corrected)) == "no labels"
    assert _unknown_error(rate(raw, reworded(corrected))) == "no labels"


def test_why_an_interval_was_widened_is_a_field() -> None:
    widened = rogan_gladen(1, 40, 45, 50, 45, 50)
    assert widened.note.startswith("widened: ") and widened.method == f"rogan-gladen, {widened.note}"
    plain = rogan_gladen(20, 40, 45, 50, 45, 50)
    assert (plain.note, plain.method) == ("", "rogan-gladen")


def test_a_correction_never_narrows_an_interval() -> None:
    raw = Estimate(0.55, 0.47, 0.63, 150, "clustered")
    narrower = no_narrower(Estimate(0.56, 0.49, 0.63, 150, "corrected"), raw)
    assert (narrower.value, narrower.low, narrower.high) == (0.56, 0.47, 0.63)
    wider = Estimate(0.7, 0.6, 0.8, 150, "corrected")
    assert no_narrower(wider, raw) == wider
    nothing = refused(150, "no labels")
    assert no_narrower(nothing, raw) == nothing
