"""Variation between samples and between attacks: what a declared plan gets, and what others do not."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from heredity.stats.means import repeats
from heredity.stats.paired import crossed_difference, crossed_rate
from heredity.study.findings import other_attacks, samples
from heredity.study.findings.other_attacks import OtherAttacks
from heredity.study.outcomes import BROKE, HELD, UNCLEAR, Outcomes
from heredity.study.plan import Analysis, Plan
from tests.support.findings import rows_of
from tests.support.small_study import FREE, small_outcomes, small_plan


def declared(n_samples: int = 3) -> Plan:
    return msgspec.structs.replace(small_plan(n_samples), analysis=Analysis())


def others(outcomes: Outcomes, is_of_pairs: bool) -> list[OtherAttacks]:
    rows = rows_of(other_attacks.compute, outcomes)
    return [row for row in rows if bool(row.against) == is_of_pairs]


def drawn(plan: Plan) -> Outcomes:
    codes = np.random.default_rng(1).choice([HELD, BROKE, UNCLEAR], plan.n_trials, p=[0.5, 0.3, 0.2])
    return Outcomes(plan, codes.astype(np.int8))


def test_samples_of_a_prompt_are_compared_with_each_other() -> None:
    outcomes = small_outcomes({(0, 0, FREE, 0): BROKE, (1, 0, FREE, 1): UNCLEAR}, declared())
    found = {(row.model[0], row.technique): row for row in rows_of(samples.compute, outcomes)}
    assert found["a", "judge_free"].flips.value == 0.5  # of two prompts, under two attacks
    assert found["b", "judge_free"].flips.value == 0.0  # an unclear answer is no breach
    same = repeats([[1, 0, 0], [0, 0, 0]], [0, 0])
    row = found["a", "judge_free"]
    assert (row.item_variance, row.standard_error, row.limit) == (
        same.item_variance,
        same.standard_error,
        same.limit,
    )


def test_rates_and_pairs_for_other_attacks_are_crossed() -> None:
    outcomes = drawn(declared())
    rates = {(row.model[0], row.technique): row for row in others(outcomes, is_of_pairs=False)}
    # One behaviour in each scope: an interval for others is refused, with its reason.
    assert rates["a", "judged"].n_attacks == 2
    assert rates["a", "judged"].estimate.value is None and rates["a", "judged"].estimate.note
    assert [(p.against[0], p.model[0], p.p_value) for p in others(outcomes, is_of_pairs=True)] == [
        ("a", "b", 1.0)
    ] * 2


def test_the_attack_of_a_trial_is_its_column() -> None:
    plan = declared()
    twice = msgspec.structs.replace(plan.probes[FREE], id="secret/two", cluster="t")
    outcomes = drawn(msgspec.structs.replace(plan, probes=(*plan.probes, twice)))
    (found,) = [
        r for r in others(outcomes, is_of_pairs=False) if (r.model[0], r.technique) == ("a", "judge_free")
    ]
    broke = outcomes.array[0][:, [FREE, 3]] == BROKE
    attack, probe, _ = np.indices(broke.shape)
    rng = np.random.default_rng(0)
    expected = crossed_rate(broke.ravel(), probe.ravel(), attack.ravel(), rng)
    assert found.estimate == expected and expected.value is not None
    other = outcomes.array[1][:, [FREE, 3]] == BROKE
    pair = others(outcomes, is_of_pairs=True)[0]
    trials = broke.ravel(), other.ravel(), probe.ravel(), attack.ravel()
    assert pair.estimate == crossed_difference(*trials, np.random.default_rng(0)).difference


@pytest.mark.parametrize("plan", [small_plan(3), msgspec.structs.replace(declared(), blocks=(1, 3))])
def test_a_plan_without_an_analysis_or_one_that_stops_early_has_none(plan: Plan) -> None:
    outcomes = drawn(plan)
    assert not [*rows_of(samples.compute, outcomes), *rows_of(other_attacks.compute, outcomes)]


def test_one_sample_and_one_attack_have_none() -> None:
    plan = msgspec.structs.replace(declared(1), attacks=("direct",))
    assert not [*rows_of(samples.compute, drawn(plan)), *rows_of(other_attacks.compute, drawn(plan))]
