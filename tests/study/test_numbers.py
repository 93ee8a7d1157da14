"""The numbers of a study on 2 x 2 x 3 x 2 trials, each checked by hand."""

from __future__ import annotations

from array import array
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from heredity.core.errors import Damaged
from heredity.core.files import Rows
from heredity.core.records import Estimate, Verdict
from heredity.redteam import judges
from heredity.redteam.judges import Calibration
from heredity.study import aggregate
from heredity.study.aggregate import JudgeCorrection
from heredity.study.comparisons import StoppingRule, compare_edges, compare_models
from heredity.study.estimates import ALL, JUDGE_FREE, JUDGED, Rate, Table2x2
from heredity.study.findings import answer_kinds, panel, tries
from heredity.study.findings import cost as cost_finding
from heredity.study.findings.answer_kinds import incoherent_share
from heredity.study.findings.cost import Cost
from heredity.study.findings.protocols import StudyEvidence
from heredity.study.intervals import Intervals, bound_rate
from heredity.study.outcomes import (
    BROKE,
    ERROR,
    HELD,
    SKIPPED,
    UNCLEAR,
    JudgedOutcomes,
    Outcomes,
    is_decided,
    is_part,
    read_outcomes,
)
from heredity.study.plan import write_plan
from heredity.study.storage import AttackerTokens, RawExchange, RawResponse, write_estimates
from tests.support.errors import raises
from tests.support.findings import rows_of, with_rows
from tests.support.small_study import FREE, JUDGED_PROBE, MODELS, TWIN, small_outcomes, small_plan, write_rows

A, B = 0, 1  # models
DIRECT, PREFILL = 0, 1  # attacks
RAW = msgspec.Raw(b'""')


def rates(outcomes: Outcomes, folder: Path) -> dict[tuple[str, str, str, str], Rate]:
    """By model name, technique or scope, attack and measure."""
    found = aggregate.rates_of(outcomes, JudgeCorrection("", "", folder))
    return {(rate.model[0], rate.technique, rate.attack, rate.measure): rate for rate in found}


# --- outcomes -------------------------------------------------------------------------------------


def test_the_axes_are_model_attack_probe_and_sample() -> None:
    outcomes = Outcomes(small_plan())
    outcomes.note(7, "broke")  # 7 = ((0 * 2 + 1) * 3 + 0) * 2 + 1
    outcomes.note(23, "refused")  # the last trial of all
    assert outcomes.array.shape == (2, 2, 3, 2)
    assert outcomes.array[A, PREFILL, FREE, 1] == BROKE and outcomes.array[B, PREFILL, TWIN, 1] == BROKE
    assert outcomes.count(BROKE) == 2 and outcomes.count(0) == 22


def test_every_word_has_its_code() -> None:
    outcomes = Outcomes(small_plan())
    words = ("held", "answered", "broke", "refused", "unclear", None)
    for index, word in enumerate(words):
        outcomes.note(index, word)
    assert outcomes.codes[:6].tolist() == [HELD, HELD, BROKE, BROKE, UNCLEAR, ERROR]
    assert is_decided(outcomes.codes[:7]).tolist() == [True, True, True, True, False, False, False]


def test_a_cell_has_its_probes_indices_and_behaviours() -> None:
    outcomes = Outcomes(small_plan())
    assert outcomes.probes(JUDGE_FREE, "breach") == [FREE] and outcomes.probes(JUDGED, "breach") == [
        JUDGED_PROBE
    ]
    assert (
        outcomes.probes(ALL, "over_refusal") == [TWIN] and outcomes.probes(JUDGE_FREE, "over_refusal") == []
    )
    assert outcomes.probes("harm", "breach") == [JUDGED_PROBE] and outcomes.probes(
        "harm", "over_refusal"
    ) == [TWIN]
    assert outcomes.indices_of(B, "prefill", [FREE, TWIN]).tolist() == [18, 19, 22, 23]
    assert outcomes.indices_of(A, ALL, [JUDGED_PROBE]).tolist() == [2, 3, 8, 9]
    outcomes.codes[:] = np.arange(24)
    assert outcomes.codes_of(A, ALL, [JUDGED_PROBE]).tolist() == [2, 3, 8, 9]
    # The twin shares the behaviour of its probe; "secret" sorts behind "harm".
    assert outcomes.clusters.tolist() == [1, 0, 0]
    assert outcomes.clusters_of(ALL, [FREE, TWIN]).tolist() == [1, 1, 0, 0, 1, 1, 0, 0]
    assert outcomes.blocks_of("direct", [FREE, TWIN]).tolist() == [0, 0, 0, 0]


def test_a_scope_is_by_who_decides_and_a_baseline_is_in_none() -> None:
    free, judged, twin = small_plan().probes
    assert is_part(free, JUDGE_FREE) and not is_part(free, JUDGED) and not is_part(free, ALL)
    assert is_part(judged, JUDGED) and not is_part(judged, JUDGE_FREE)
    assert is_part(twin, ALL) and not is_part(twin, JUDGED)  # a judge reads it, and it is no breach
    baseline = msgspec.structs.replace(free, is_baseline=True)
    assert is_part(baseline, "secret") and not any(is_part(baseline, s) for s in (ALL, JUDGE_FREE, JUDGED))


def test_each_trial_has_the_analysis_that_first_had_it() -> None:
    outcomes = small_outcomes({}, msgspec.structs.replace(small_plan(), blocks=(1, 3)))
    # Two samples of the first probe, then of the other two, under each of two attacks.
    every = [FREE, JUDGED_PROBE, TWIN]
    assert outcomes.blocks_of(ALL, every).tolist() == [0, 0, 1, 1, 1, 1] * 2


def test_twins_are_told_apart_in_every_cell() -> None:
    assert Outcomes(small_plan()).twin_trials.tolist() == [False, False, False, False, True, True] * 4


def test_verdicts_are_read_in_any_order(tmp_path: Path) -> None:
    plan = small_plan()
    write_rows(tmp_path, plan, {0: "broke", 4: "refused", 8: "unclear", 20: None})
    rows = list(Rows(tmp_path / "verdicts.jsonl", Verdict))
    (tmp_path / "verdicts.jsonl").unlink()
    with Rows(tmp_path / "verdicts.jsonl", Verdict) as again:
        again.extend(reversed(rows))
    judged = read_outcomes(plan, tmp_path)
    codes = judged.outcomes.codes.tolist()
    assert [codes[i] for i in (0, 1, 4, 5, 8, 20)] == [BROKE, HELD, BROKE, HELD, UNCLEAR, ERROR]
    assert sorted(judged.judges) == ["checks", "rules"] and judged.labels is None
    assert judged.digests[0] == int(rows[0].response, 16)
    assert judged.manners.reshape(plan.shape)[B, PREFILL, JUDGED_PROBE, 0] == 0  # trial 20, an error


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [({4: "broke"}, "damaged"), ({0: "refused"}, "damaged")],
)
def test_a_verdict_of_another_kind_of_probe_is_refused(tmp_path: Path, outcomes: dict, code: str) -> None:
    write_rows(tmp_path, small_plan(), outcomes)
    with raises(Damaged, code):
        read_outcomes(small_plan(), tmp_path)


def test_a_second_verdict_on_a_trial_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path, small_plan(), {})
    rows = list(Rows(tmp_path / "verdicts.jsonl", Verdict))
    with Rows(tmp_path / "verdicts.jsonl", Verdict) as again:
        again.append(rows[5])
    with raises(Damaged, "damaged"):
        read_outcomes(small_plan(), tmp_path)


# --- aggregate ------------------------------------------------------------------------------------


def test_a_rate_counts_decided_trials_and_keeps_the_rest_apart(tmp_path: Path) -> None:
    outcomes = small_outcomes(
        {(A, DIRECT, FREE, 0): BROKE, (A, DIRECT, FREE, 1): UNCLEAR, (A, PREFILL, FREE, 0): ERROR}
    )
    rate = rates(outcomes, tmp_path)["a", JUDGE_FREE, ALL, "breach"]
    assert (rate.n_held, rate.n_broke, rate.n_unclear, rate.n_error, rate.n_skipped) == (1, 1, 1, 1, 0)
    assert rate.estimate.value == 0.5 and rate.estimate.n == 2 and rate.is_judge_free
    # Both trials are of one behaviour, so they count as one: Wilson's interval of 0.5 on n = 1.
    assert rate.estimate.is_at_floor and rate.estimate.n_clusters == 1
    assert (rate.estimate.low, rate.estimate.high) == pytest.approx((0.05462, 0.94538), abs=1e-5)
    assert rate.worst_case is not None
    assert (rate.worst_case.low, rate.worst_case.high) == pytest.approx((1 / 3, 2 / 3))
    direct = rates(outcomes, tmp_path)["a", JUDGE_FREE, "direct", "breach"]
    assert (direct.n_broke, direct.n_unclear, direct.estimate.value) == (1, 1, 1.0)


def test_a_skipped_trial_is_in_no_rate_and_no_error(tmp_path: Path) -> None:
    outcomes = small_outcomes({(A, PREFILL, FREE, s): SKIPPED for s in (0, 1)})
    rate = rates(outcomes, tmp_path)["a", JUDGE_FREE, ALL, "breach"]
    assert (rate.n_skipped, rate.n_error, rate.estimate.n, rate.estimate.value) == (2, 0, 2, 0.0)
    empty = rates(outcomes, tmp_path)["a", JUDGE_FREE, "prefill", "breach"]
    assert empty.estimate.value is None and empty.estimate.n == 0 and empty.worst_case is None


def test_over_refusal_is_over_twins_alone(tmp_path: Path) -> None:
    outcomes = small_outcomes({(B, DIRECT, TWIN, 0): BROKE})
    found = rates(outcomes, tmp_path)
    assert found["b", ALL, ALL, "over_refusal"].estimate.value == 0.25
    assert found["b", JUDGED, ALL, "breach"].estimate.value == 0.0
    assert ("b", JUDGE_FREE, ALL, "over_refusal") not in found


def test_manners_are_counted_by_kind_of_probe(tmp_path: Path) -> None:
    outcomes = small_outcomes({(A, DIRECT, FREE, 0): ERROR})
    manners = np.zeros(24, np.int8)
    manners[[1, 2, 3]] = [1, 2, 4]  # refusal, compliance, empty: of breach probes of model a
    manners[4] = 3  # an incoherent answer to a twin
    first, second, *_ = answer_kinds.compute(evidence_of(outcomes, manners))
    assert (first.kind, first.refusal, first.compliance, first.incoherent, first.empty, first.error) == (
        "breach", 1, 1, 0, 1, 1,
    )  # fmt: skip
    assert second.model == MODELS[B].id and second.refusal == 0 and first.incoherent_broke == 0


def evidence_of(outcomes: Outcomes, manners: NDArray[np.int8]) -> StudyEvidence:
    return StudyEvidence(Path(), JudgedOutcomes(outcomes, manners, {}, {}, None, array("Q")))


def test_a_breach_in_an_incoherent_answer_is_not_in_the_share_of_incoherent_ones(tmp_path: Path) -> None:
    plan = small_plan()
    write_rows(tmp_path, plan, {0: "broke", 1: "unclear"})
    found = aggregate.estimate(plan, tmp_path)
    broke = small_outcomes({(A, DIRECT, FREE, 0): BROKE, (A, DIRECT, FREE, 1): UNCLEAR})
    manners = np.full(24, 2, np.int8)
    manners[:2] = 3, 4  # a secret in a loop, and an empty answer
    counted = tuple(answer_kinds.compute(evidence_of(broke, manners)))
    assert (counted[0].incoherent, counted[0].empty, counted[0].incoherent_broke) == (1, 1, 1)
    found = with_rows(found, answer_kinds.NAME, *counted)
    assert [incoherent_share(found, MODELS[m].id) for m in (A, B)] == [1 / 12, 0.0]


def test_a_finding_that_the_verdicts_do_not_give_is_refused(tmp_path: Path) -> None:
    plan = small_plan()
    write_plan(tmp_path, plan)
    write_rows(tmp_path, plan, {0: "broke"})
    found = aggregate.estimate(plan, tmp_path)
    rows = found.rows(answer_kinds.NAME, answer_kinds.Row)
    wrong = with_rows(found, answer_kinds.NAME, *(replace(row, incoherent_broke=7) for row in rows))
    write_estimates(tmp_path, wrong)
    with raises(Damaged, "damaged"):
        aggregate.read_study(tmp_path)


def test_a_folder_comes_to_its_counts(tmp_path: Path) -> None:
    plan = small_plan()
    write_rows(tmp_path, plan, {0: "broke", 3: "unclear", 20: None})
    found = aggregate.estimate(plan, tmp_path)
    assert (found.n_trials, found.n_asked, found.n_errors, found.n_unclear) == (24, 24, 1, 1)
    assert found.n_missing == 0 and found.judge == "rules" and found.breach_scopes == (JUDGE_FREE, JUDGED)
    assert incoherent_share(found, MODELS[A].id) == 0.0 and found.edges == ()
    assert [(cost.technique, cost.n_queries, cost.n_tokens) for cost in found.rows("cost", Cost)[:2]] == [
        (JUDGE_FREE, 2, 6), (JUDGE_FREE, 2, 6),
    ]  # fmt: skip


# --- comparisons ----------------------------------------------------------------------------------

SHARED = {
    (A, DIRECT, FREE, 0): BROKE, (B, DIRECT, FREE, 0): BROKE,  # both broke
    (B, DIRECT, FREE, 1): UNCLEAR,  # not decided by both: left out
    (B, PREFILL, FREE, 1): BROKE,  # only b
}  # fmt: skip


def test_two_models_are_compared_on_the_trials_that_both_decided() -> None:
    (pair,) = compare_models(small_outcomes(SHARED), "breach", (JUDGE_FREE,))
    assert pair.table == Table2x2(both=1, only_a=0, only_b=1, neither=1) and pair.n == 3
    assert pair.difference.value == pytest.approx(1 / 3) and pair.p_holm == pair.p_value
    assert pair.verdict_ab == pair.verdict_ba == "not enough evidence"
    back = pair.mirrored()
    assert back.table == Table2x2(1, 1, 0, 1) and back.difference.value == pytest.approx(-1 / 3)
    assert back.mirrored() == pair


def test_a_comparison_without_a_shared_trial_has_no_p_value() -> None:
    nothing = {(A, a, FREE, s): ERROR for a in (0, 1) for s in (0, 1)}
    free, judged = compare_models(small_outcomes(nothing), "breach", (JUDGE_FREE, JUDGED))
    assert (free.n, free.p_value, free.p_holm, free.difference.value) == (0, None, None, None)
    assert judged.n == 4 and judged.p_holm == judged.p_value == 1.0


def test_an_edge_has_what_the_child_kept_lost_gained_and_never_had() -> None:
    (edge,) = compare_edges(small_outcomes(SHARED, small_plan(edges=True)), "breach", (JUDGE_FREE,))
    assert (edge.kept, edge.lost, edge.gained, edge.never) == (1, 1, 0, 1)
    assert edge.retention.value == 0.5 and edge.retention.n == 2 and edge.recipe == "lora"
    assert compare_edges(small_outcomes(SHARED), "breach", (JUDGE_FREE,)) == []


def test_members_of_a_panel_are_compared_on_what_both_decided() -> None:
    one, other = np.zeros(24, np.int8), np.zeros(24, np.int8)
    one[[2, 3, 8]] = [BROKE, HELD, BROKE]
    other[[2, 3]] = [HELD, HELD]
    one[4] = BROKE  # a twin: counts for over-refusal alone
    found = rows_of(panel.compute, Outcomes(small_plan()), members={"one": one, "other": other})
    rates_ = {(r.measure, r.judge, r.model[0]): r.estimate for r in found if not r.other}
    assert rates_["breach", "one", "a"].value == pytest.approx(2 / 3)
    assert rates_["breach", "other", "a"].value == 0.0 and rates_["breach", "one", "b"].n == 0
    assert rates_["over_refusal", "one", "a"].value == 1.0
    assert [row.table for row in found if row.other] == [Table2x2(0, 1, 0, 1), Table2x2(0, 0, 0, 0)]


# --- the judge's errors ---------------------------------------------------------------------------


def corrected(folder: Path, monkeypatch: pytest.MonkeyPatch, *labels: Calibration) -> list[Estimate]:
    monkeypatch.setattr(judges, "calibrations", lambda *_: labels)
    correction = JudgeCorrection("rules", "", folder)
    broke, clusters = np.array([True, False]), np.array([0, 1])
    found = Estimate(0.5, 0.0, 1.0, 2, "wilson")
    return [
        each.corrected for each in correction.corrected(broke, clusters, "breach", Intervals(0.95), found)
    ]


def test_a_rate_is_corrected_for_sensitivity_and_specificity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # (0.5 - 0.1) / (0.9 - 0.1) = 0.5; with a sensitivity of 0.6 it is (0.5 - 0.1) / (0.6 - 0.1) = 0.8.
    every, family = Calibration(90, 100, 90, 100, "all"), Calibration(60, 100, 90, 100, "family")
    first, second = corrected(tmp_path, monkeypatch, every, family)
    assert first.value == pytest.approx(0.5) and second.value == pytest.approx(0.8)
    assert first.n == 2 and first.low is not None and first.low < 0.1


def test_a_judge_that_was_never_measured_corrects_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = corrected(tmp_path, monkeypatch)
    assert (found.value, found.low, found.high, found.n) == (None, None, None, 2) and found.note


def test_the_verdicts_of_two_judges_are_refused(tmp_path: Path) -> None:
    with raises(Damaged, "damaged", mentions=["learned", "rules"]):
        JudgeCorrection.of({"checks": "1", "rules": "2", "learned": "3"}, tmp_path, None)
    assert JudgeCorrection.of({"checks": "1", "rules": "2"}, tmp_path, None).judge == "rules"
    assert JudgeCorrection.of({"checks": "1"}, tmp_path, None).judge == ""


# --- cost and tries ----------------------------------------------------------------------------------


def test_success_within_k_tries_is_the_share_of_draws_with_a_breach() -> None:
    outcomes = small_outcomes({(A, DIRECT, FREE, 0): BROKE})
    first = rows_of(tries.compute, outcomes)[:2]
    cells = {(row.model, row.attack, row.technique) for row in first}
    assert cells == {(MODELS[A].id, "direct", JUDGE_FREE)}
    # One of two tries broke: one draw breaks with 1/2, two draws always.
    assert [(row.k, row.estimate.value) for row in first] == [(1, 0.5), (2, 1.0)]
    assert rows_of(tries.compute, Outcomes(small_plan(samples=1))) == []


def test_a_breach_costs_all_queries_of_its_cell(tmp_path: Path) -> None:
    outcomes = small_outcomes({(A, DIRECT, FREE, 0): BROKE})
    exchange = RawExchange(RAW, RAW, RAW, RAW, 10, 3)
    responses = [RawResponse(i, [exchange, exchange], consulted=[AttackerTokens(5, 2)]) for i in range(24)]
    found = rows_of(cost_finding.compute, outcomes, responses, [*rates(outcomes, tmp_path).values()])
    by_cell = {(c.model, c.attack, c.technique): c for c in found}
    cost = by_cell[MODELS[A].id, "direct", JUDGE_FREE]
    assert (cost.n_trials, cost.n_queries, cost.n_prompt_tokens, cost.n_tokens, cost.n_broke) == (
        2,
        4,
        40,
        12,
        1,
    )
    assert cost.queries_per_breach.value == 4.0 and cost.tokens_per_breach.value == 52.0
    assert cost.n_attacker_queries == 2 and cost.n_attacker_tokens == 14
    unbroken = next(
        c for c in found if (c.model, c.attack, c.technique) == (MODELS[B].id, "direct", JUDGE_FREE)
    )
    # No breach in 2 trials of one behaviour: at least 2 queries a trial / 0.79345, the bound of 0 on n = 1.
    assert unbroken.queries_per_breach.value is None and unbroken.queries_per_breach.high is None
    assert unbroken.queries_per_breach.low == pytest.approx(2 / 0.7934507, rel=1e-6)


# --- sequential -----------------------------------------------------------------------------------


def in_blocks() -> Outcomes:
    return small_outcomes({}, msgspec.structs.replace(small_plan(), blocks=(1, 3)))


def test_an_interim_analysis_waits_for_every_trial_of_its_block() -> None:
    outcomes = in_blocks()
    outcomes.array[B, PREFILL, TWIN, 1] = 0
    rule = StoppingRule(outcomes).replay()
    assert rule.n_interim == 1 and not rule.is_over and rule.block() == (1, 3)
    outcomes.note(23, "answered")
    assert rule.replay().n_interim == 2 and rule.is_over and rule.open_models == [A, B]


def test_two_trials_decide_nothing_and_spare_nothing() -> None:
    rule = StoppingRule(in_blocks()).replay()
    assert rule.scope == JUDGE_FREE and len(rule._evidence) == 2 and rule.n_spared == 0
    record = rule.record()
    assert (record.n_interim, record.n_interim_planned, record.stopped) == (2, 2, ())
    assert [(d.a, d.b, d.interim, d.n) for d in record.decisions] == [
        (MODELS[A].id, MODELS[B].id, None, None)
    ]


# --- bounds for a gate ----------------------------------------------------------------------------


def test_undecided_trials_widen_both_ends() -> None:
    none_of_four = Estimate(0.0, 0.0, 0.48989, 4, "wilson")
    rate = Rate("m", JUDGE_FREE, ALL, "breach", none_of_four, None, None, 4, 0, 1, 0, True)
    found = bound_rate(rate, 0.95)
    # One unclear answer of five: between 0 and 1 breach in 5; Wilson's upper bound of 0.2 on n = 5.
    assert (found.best, found.worst, found.n) == (0.0, 0.2, 5)
    assert (found.low, found.high) == pytest.approx((0.0, 0.624465), abs=1e-4)
    decided = msgspec.structs.replace(rate, n_unclear=0)
    assert (bound_rate(decided, 0.95).low, bound_rate(decided, 0.95).high) == (0.0, 0.48989)
