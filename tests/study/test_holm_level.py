"""A detectable difference is that of the test which the study runs: at the level of Holm's first step."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from heredity.stats.power import detectable_difference, paired_power
from heredity.study.comparisons import compare_models
from heredity.study.estimates import JUDGE_FREE, JUDGED, ModelPair
from heredity.study.outcomes import BROKE, HELD, Outcomes
from heredity.study.plan import Plan
from heredity.study.resolve import declare
from heredity.study.wording import detectable_words
from tests.support.studies import plan, probes

MODELS = ("scripted:mixed", "scripted:careful", "scripted:leaky")
N = 120


def planned(*, is_declared: bool = True) -> Plan:
    asked = plan(MODELS, n=1, samples=1, attacks=("direct",))
    each = tuple(p for p in probes(N) if p.kind == "breach")
    each = tuple(msgspec.structs.replace(p, cluster=p.id) for p in each)
    made = msgspec.structs.replace(asked, probes=each)
    return declare(made) if is_declared else made


def pairs_of(made: Plan, scopes: tuple[str, ...] = (JUDGE_FREE, JUDGED)) -> list[ModelPair]:
    rng = np.random.default_rng(1)
    codes = rng.choice([HELD, BROKE], made.n_trials, p=[0.8, 0.2]).astype(np.int8)
    return compare_models(Outcomes(made, codes), "breach", scopes)


def test_the_level_is_that_of_all_comparisons_of_the_family() -> None:
    made = planned()
    for pair in pairs_of(made):
        assert pair.n_tests == 6  # three pairs in two scopes
        discordance = (pair.table.only_a + pair.table.only_b) / pair.n
        assert pair.detectable == detectable_difference(pair.n, discordance, alpha=0.05 / 6)
        power = [paired_power(pair.n, discordance, pair.detectable or 0.0, a) for a in (0.05 / 6, 0.05)]
        assert power[0] == pytest.approx(0.8, abs=0.01) and power[1] > 0.9


def test_the_words_name_the_family() -> None:
    open_pairs = [p for p in pairs_of(planned()) if p.verdict_ab == "not enough evidence"]
    assert open_pairs
    for pair in open_pairs:
        assert "(80 % power, after Holm over 6)" in pair.words
        assert detectable_words(pair).endswith("points, after Holm over 6")


def test_a_plan_without_an_analysis_keeps_the_level_of_one_comparison() -> None:
    old, new = pairs_of(planned(is_declared=False)), pairs_of(planned())
    assert {pair.n_tests for pair in old} == {1}
    assert all((a.detectable or 0) < (b.detectable or 1) for a, b in zip(old, new, strict=True))
    assert "after Holm over" not in detectable_words(old[0])
