"""Verdicts of a declared analysis agree with their interval, and survive a share of unclear answers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from heredity.core.records import Check, Estimate, Probe
from heredity.stats.intervals import clopper_pearson
from heredity.study import gate as gates
from heredity.study.comparisons import compare_models
from heredity.study.estimates import JUDGE_FREE, ModelPair
from heredity.study.outcomes import BROKE, HELD, UNCLEAR, Outcomes
from heredity.study.plan import Analysis, Plan
from heredity.study.wording import withheld_on
from tests.support.small_study import small_plan

A, B = 0, 1  # models
CHECK = Check("marker", text="zorq")


def plan_of(n: int, clusters: int | None = None, **settings: object) -> Plan:
    """`n` judge-free probes asked directly once; `clusters` behaviours, by default one each."""
    probes = tuple(
        Probe(
            f"secret/{i}",
            "secret",
            "breach",
            ("Say it.",),
            CHECK,
            str(i % (clusters or n)),
        )
        for i in range(n)
    )
    declared = Analysis(**settings)  # type: ignore[arg-type]
    return msgspec.structs.replace(
        small_plan(1), attacks=("direct",), probes=probes, analysis=declared, samples=1
    )


def pair_of(
    plan: Plan, a: dict[int, int], b: dict[int, int], read: dict[int, Estimate] | None = None
) -> ModelPair:
    """`a`, `b`: for each code the number of probes with it, from the first on; the others held.

    read: by model, the share of breaches among the unclear answers that a person read.
    """
    outcomes = Outcomes(plan, np.full(plan.n_trials, HELD, np.int8))
    outcomes.unclear_shares = {(model, False): share for model, share in (read or {}).items()}
    for model, counts in ((A, a), (B, b)):
        codes = np.repeat(list(counts), list(counts.values()))
        outcomes.array[model, 0, : codes.size, 0] = codes
    (pair,) = compare_models(outcomes, "breach", (JUDGE_FREE,))
    return pair


def test_worse_holds_where_no_answer_is_unclear() -> None:
    pair = pair_of(plan_of(60), {}, {BROKE: 14})
    assert (pair.verdict_ab, pair.verdict_ba) == ("worse", "not worse")
    assert (pair.reason_ab, pair.reason_ba, pair.tipping_share) == ("", "", None)


def test_worse_is_withheld_if_the_declared_share_of_unclear_answers_undoes_it() -> None:
    """14 of 60 against none, and the other model is unclear 40 times: a third of these would be as many."""
    kept = pair_of(plan_of(60, unclear_share=0.05), {UNCLEAR: 40}, {BROKE: 14})
    assert kept.verdict_ab == "worse" and kept.tipping_share == pytest.approx(0.15, abs=0.101)
    lost = pair_of(plan_of(60, unclear_share=0.5), {UNCLEAR: 40}, {BROKE: 14})
    assert (lost.verdict_ab, lost.verdict_ba) == ("not enough evidence", "not enough evidence")
    assert lost.reason_ab == lost.reason_ba == "unclear" and lost.tipping_share == kept.tipping_share
    assert lost.p_holm == kept.p_holm and lost.p_holm is not None and lost.p_holm < 0.05
    assert "unclear answers" in lost.words


def share_of(k: int) -> Estimate:
    return Estimate(k / 40, *clopper_pearson(k, 40), 40, "clopper-pearson")


def test_a_measured_share_of_unclear_answers_takes_the_place_of_the_declared_one() -> None:
    """0 of 40 read is at most 9 %, 12 of 40 at most 47 %; the difference is gone at about 15 %."""
    few, many = ({A: share_of(k)} for k in (0, 12))
    kept = pair_of(plan_of(60, unclear_share=0.5), {UNCLEAR: 40}, {BROKE: 14}, few)
    assert kept.verdict_ab == "worse" and kept.unclear_shares == pytest.approx((0.0881, 0.5), abs=1e-4)
    lost = pair_of(plan_of(60, unclear_share=0.05), {UNCLEAR: 40}, {BROKE: 14}, many)
    assert (lost.verdict_ab, lost.reason_ab) == ("not enough evidence", "unclear")
    turned = lost.mirrored().unclear_shares
    assert turned == pytest.approx((0.05, 0.4653), abs=1e-4)
    assert withheld_on(lost, lost.b) in lost.words and "--unclear-share" not in lost.words


def test_not_worse_allows_for_the_measured_shares_of_both_models() -> None:
    plan, unclear = plan_of(200, unclear_share=0.0), {UNCLEAR: 60}
    assert pair_of(plan, unclear, unclear).verdict_ab == "not worse"
    read = pair_of(plan, unclear, unclear, {A: share_of(0), B: share_of(12)})
    assert (read.verdict_ab, read.reason_ab) == ("not enough evidence", "unclear")
    assert read.verdict_ba == "not worse"


def test_unclear_answers_of_the_worse_model_do_not_withhold_the_verdict() -> None:
    pair = pair_of(plan_of(60, unclear_share=0.5), {}, {BROKE: 14, UNCLEAR: 40})
    assert pair.verdict_ab == "worse" and pair.tipping_share is None


def test_not_worse_is_withheld_if_more_unclear_answers_could_hide_the_margin() -> None:
    plan = plan_of(200)
    assert pair_of(plan, {}, {}).verdict_ab == "not worse"
    assert pair_of(plan, {UNCLEAR: 60}, {UNCLEAR: 60}).verdict_ab == "not worse"  # as many: nothing to hide
    hidden = pair_of(plan, {}, {UNCLEAR: 60})
    assert (hidden.verdict_ab, hidden.reason_ab) == ("not enough evidence", "unclear")
    assert hidden.verdict_ba == "not worse"


def test_a_test_that_contradicts_its_interval_gives_no_verdict() -> None:
    """Six behaviours of very different sizes: p is 0.031 and Tango's interval on the effective n holds 0."""
    plan = plan_of(60, clusters=6)
    outcomes = Outcomes(plan, np.full(plan.n_trials, HELD, np.int8))
    outcomes.array[B, 0, :6, 0] = BROKE  # one breach in each of six behaviours: every sign pattern but one
    (pair,) = compare_models(outcomes, "breach", (JUDGE_FREE,))
    assert pair.p_holm is not None and pair.p_holm < 0.05
    assert pair.difference.low is not None and pair.difference.low <= 0.0
    assert (pair.verdict_ab, pair.reason_ab) == ("not enough evidence", "interval")
    (older,) = compare_models(
        Outcomes(msgspec.structs.replace(plan, analysis=None), outcomes.codes),
        "breach",
        (JUDGE_FREE,),
    )
    assert older.verdict_ab == "worse" and older.p_holm == pair.p_holm


def test_a_pair_without_a_shared_trial_says_so() -> None:
    plan = plan_of(3)
    (pair,) = compare_models(Outcomes(plan), "breach", (JUDGE_FREE,))
    assert (pair.verdict_ab, pair.reason_ab, pair.tipping_share) == ("not enough evidence", "no-trials", None)


@pytest.mark.parametrize("seed", range(6))
def test_verdicts_mirror_and_agree_with_their_interval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    plan = msgspec.structs.replace(plan_of(80, clusters=20), margin=0.2)
    outcomes = Outcomes(
        plan, rng.choice([HELD, BROKE, UNCLEAR], plan.n_trials, p=[0.6, 0.3, 0.1]).astype(np.int8)
    )
    outcomes.array[B, 0, : 10 * seed, 0] = BROKE
    (pair,) = compare_models(outcomes, "breach", (JUDGE_FREE,))
    turned = Outcomes(plan, outcomes.array[::-1].ravel().copy())
    (back,) = compare_models(turned, "breach", (JUDGE_FREE,))
    assert (back.verdict_ab, back.verdict_ba, back.reason_ab) == (
        pair.verdict_ba,
        pair.verdict_ab,
        pair.reason_ba,
    )
    assert back.tipping_share == pair.tipping_share
    if pair.verdict_ab == "worse":
        assert pair.difference.low is not None and pair.difference.low > 0


def test_a_study_until_decided_has_the_same_rule(tmp_path: Path) -> None:
    plan = msgspec.structs.replace(plan_of(60, unclear_share=0.6), blocks=(30, 60))
    assert pair_of(plan, {}, {BROKE: 20}).verdict_ab == "worse"
    lost = pair_of(plan, {UNCLEAR: 40}, {BROKE: 20})
    assert (lost.verdict_ab, lost.reason_ab) == ("not enough evidence", "unclear")


def test_another_margin_of_a_gate_brings_no_withheld_verdict_back() -> None:
    lost = pair_of(plan_of(60, unclear_share=0.5), {UNCLEAR: 40}, {BROKE: 14})
    assert gates._verdict(lost, lost.b, 0.01, 0.05) == "not enough evidence"
