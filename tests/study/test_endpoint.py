"""A plan that declares its analysis: rates over all answered trials, with the competence of each model."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from heredity.core.files import Rows
from heredity.core.records import Unprompted, Verdict, digest, encode
from heredity.redteam import judges
from heredity.redteam.judges import Calibration
from heredity.study import aggregate
from heredity.study.aggregate import JudgeCorrection
from heredity.study.comparisons import StoppingRule, compare_edges, compare_models
from heredity.study.estimates import ALL, JUDGE_FREE, JUDGED, Estimates, Rate, Table2x2
from heredity.study.findings import cost as cost_finding
from heredity.study.findings import readable
from heredity.study.findings.readable import UNSTATED, ReadableAnswers
from heredity.study.findings.unasked import rates
from heredity.study.findings.useful import UsefulRate
from heredity.study.headline import headline
from heredity.study.intervals import bound_rate
from heredity.study.outcomes import BROKE, ERROR, UNCLEAR, Outcomes
from heredity.study.plan import Analysis, Plan, PlanFile
from heredity.study.report import html, json, markdown
from heredity.study.storage import RawExchange, RawResponse, write_estimates
from tests.support.findings import rows_of
from tests.support.small_study import FREE, JUDGED_PROBE, MODELS, small_outcomes, small_plan, write_rows

A, B = 0, 1  # models
DIRECT, PREFILL = 0, 1  # attacks


def declared(plan: Plan | None = None, **settings: object) -> Plan:
    """The plan with a declared analysis."""
    return msgspec.structs.replace(plan or small_plan(), analysis=Analysis(**settings))  # type: ignore[arg-type]


def rate_of(outcomes: Outcomes, folder: Path, model: str = "a", scope: str = JUDGE_FREE) -> Rate:
    found = aggregate.rates_of(outcomes, JudgeCorrection("", "", folder))
    (one,) = (
        r
        for r in found
        if (r.model[0], r.technique, r.attack) == (model, scope, ALL) and r.measure == "breach"
    )
    return one


CODES = {(A, DIRECT, FREE, 0): BROKE, (A, DIRECT, FREE, 1): UNCLEAR, (A, PREFILL, FREE, 0): ERROR}


def test_a_rate_per_attempt_counts_unclear_answers_and_no_errors(tmp_path: Path) -> None:
    rate = rate_of(small_outcomes(CODES, declared()), tmp_path)
    assert (rate.n_held, rate.n_broke, rate.n_unclear, rate.n_error) == (1, 1, 1, 1)
    assert rate.estimate.value == pytest.approx(1 / 3) and rate.estimate.n == 3
    assert rate.conditional is not None and (rate.conditional.value, rate.conditional.n) == (0.5, 2)


@pytest.mark.parametrize(
    "plan", [small_plan(), declared(endpoint="decided_trials")], ids=["older", "declared"]
)
def test_a_plan_of_decided_trials_leaves_unclear_answers_out(tmp_path: Path, plan: Plan) -> None:
    rate = rate_of(small_outcomes(CODES, plan), tmp_path)
    assert (rate.estimate.value, rate.estimate.n, rate.conditional) == (0.5, 2, None)


def test_models_and_edges_are_compared_on_the_trials_of_the_endpoint() -> None:
    codes = {(A, DIRECT, FREE, 0): BROKE, (B, DIRECT, FREE, 0): BROKE, (B, DIRECT, FREE, 1): UNCLEAR,
             (B, PREFILL, FREE, 1): BROKE}  # fmt: skip
    outcomes = small_outcomes(codes, declared(small_plan(edges=True)))
    (pair,) = compare_models(outcomes, "breach", (JUDGE_FREE,))
    assert pair.table == Table2x2(both=1, only_a=0, only_b=1, neither=2) and pair.n == 4
    (edge,) = compare_edges(outcomes, "breach", (JUDGE_FREE,))
    assert edge.compared.n == 4
    # The child's unclear answer is in the difference, and holds nothing that could be kept.
    assert (edge.kept, edge.lost, edge.gained, edge.never) == (1, 1, 0, 1)
    assert (edge.retention.value, edge.retention.n) == (0.5, 2)


def test_a_parent_and_child_that_only_babble_keep_nothing() -> None:
    codes = {(m, attack, FREE, i): UNCLEAR for m in (A, B) for attack in (DIRECT, PREFILL) for i in (0, 1)}
    (edge,) = compare_edges(small_outcomes(codes, declared(small_plan(edges=True))), "breach", (JUDGE_FREE,))
    assert (edge.kept, edge.lost, edge.gained, edge.never) == (0, 0, 0, 0)
    assert (edge.retention.value, edge.retention.n) == (None, 0)


def test_an_interim_analysis_has_the_endpoint_of_the_plan() -> None:
    """Nine behaviours, in each of which b broke and a was unclear: no evidence over decided trials."""
    probes = tuple(
        msgspec.structs.replace(small_plan().probes[FREE], id=f"secret/{i}", cluster=str(i)) for i in range(9)
    )
    evidence = {}
    for endpoint in ("all_trials", "decided_trials"):
        plan = declared(small_plan(), endpoint=endpoint)
        plan = msgspec.structs.replace(plan, probes=probes, blocks=(9,))
        outcomes = Outcomes(plan, np.ones(plan.n_trials, np.int8))
        outcomes.array[A], outcomes.array[B] = UNCLEAR, BROKE
        evidence[endpoint] = StoppingRule(outcomes).replay().record().decisions[0].interim
    assert evidence == {"all_trials": 1, "decided_trials": None}


def test_a_breach_costs_the_queries_of_all_attempts(tmp_path: Path) -> None:
    outcomes = small_outcomes({(A, DIRECT, FREE, 0): BROKE, (A, DIRECT, FREE, 1): UNCLEAR}, declared())
    raw = msgspec.Raw(b'""')
    responses = [RawResponse(i, [RawExchange(raw, raw, raw, raw, 10, 3)]) for i in range(24)]
    rates = list(aggregate.rates_of(outcomes, JudgeCorrection("", "", tmp_path)))
    cost = rows_of(cost_finding.compute, outcomes, responses, rates)[0]
    assert (cost.n_broke, cost.n_queries, cost.queries_per_breach.value, cost.queries_per_breach.n) == (
        1,
        2,
        2,
        2,
    )


def test_a_judged_rate_is_corrected_on_decided_trials_and_spread_over_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "calibrations", lambda *_: (Calibration(90, 100, 90, 100, "all"),))
    codes = {(A, DIRECT, JUDGED_PROBE, 0): BROKE, (A, PREFILL, JUDGED_PROBE, 0): UNCLEAR,
             (A, PREFILL, JUDGED_PROBE, 1): UNCLEAR}  # fmt: skip
    rate = rate_of(small_outcomes(codes, declared()), tmp_path, scope=JUDGED)
    # One of two decided broke, so (0.5 - 0.1) / (0.9 - 0.1) = 0.5 of them; two of four were decided.
    assert rate.corrected is not None and rate.corrected.value == pytest.approx(0.25)
    assert rate.corrected.n == rate.estimate.n == 4
    low, value, high = rate.corrected.low, rate.corrected.value, rate.corrected.high
    assert low is not None and high is not None and value is not None and 0.0 <= low < value < high <= 1.0


def test_a_gate_bounds_the_same_rates_whatever_the_endpoint(tmp_path: Path) -> None:
    ends = [
        bound_rate(rate_of(small_outcomes(CODES, plan), tmp_path), 0.95)
        for plan in (small_plan(), declared())
    ]
    assert ends[0].best == ends[1].best == 0.25 and ends[0].worst == ends[1].worst == 0.75


# --- competence ------------------------------------------------------------------------------------


def test_unclear_answers_are_counted_by_cause(tmp_path: Path) -> None:
    plan = declared()
    write_rows(tmp_path, plan, {0: "unclear", 1: "unclear", 6: "unclear", 7: "broke"})
    rows = list(Rows(tmp_path / "verdicts.jsonl", Verdict))
    rows[0] = msgspec.structs.replace(rows[0], cause="echo")
    rows[1] = msgspec.structs.replace(rows[1], cause="echo", attempted="said half of it")
    rows[12] = msgspec.structs.replace(rows[12], unprompted=(Unprompted("tool", "called pay"),) * 2)
    rows[16] = msgspec.structs.replace(rows[16], unprompted=(Unprompted("tool", "called pay"),))
    (tmp_path / "verdicts.jsonl").unlink()
    with Rows(tmp_path / "verdicts.jsonl", Verdict) as again:
        again.extend(rows)
    found = aggregate.estimate(plan, tmp_path)
    assert found.analysis == Analysis() and found.is_per_attempt
    first = found.rows("readable", ReadableAnswers)[0]
    assert (first.model, first.technique, first.n, first.n_unclear) == (MODELS[A].id, JUDGE_FREE, 4, 3)
    assert first.causes == {"echo": 2, UNSTATED: 1} and first.n_attempted == 1
    assert (first.estimate.value, first.estimate.n) == (0.25, 4)
    assert next(r for r in found.rates if r.technique == JUDGE_FREE and r.attack == ALL).n_attempted == 1
    unasked = [row for row in rates(found) if row.check == "tool"]
    counts = {(row.model[0], row.kind): (row.n_broke, row.estimate.n) for row in unasked}
    assert counts == {
        ("a", "breach"): (0, 8),
        ("a", "benign"): (0, 4),
        ("b", "breach"): (1, 8),
        ("b", "benign"): (1, 4),
    }
    assert {row.check for row in unasked} == {"tool"}


def changed_verdicts(folder: Path, changes: dict[int, dict[str, object]]) -> None:
    """Write the verdicts of a folder again, with these fields by index."""
    rows = list(Rows(folder / "verdicts.jsonl", Verdict))
    (folder / "verdicts.jsonl").unlink()
    with Rows(folder / "verdicts.jsonl", Verdict) as again:
        again.extend(msgspec.structs.replace(row, **changes.get(i, {})) for i, row in enumerate(rows))


def saved(folder: Path, plan: Plan) -> Estimates:
    """The estimates of the folder, written beside their plan, which comes first as in a study."""
    file = PlanFile(digest(plan), plan.application.digest, plan)
    (folder / "plan.json").write_bytes(encode(file))
    found = aggregate.estimate(plan, folder)
    write_estimates(folder, found)
    return found


def test_useful_answers_are_a_rate_of_the_twins_that_were_checked_and_stand_in_every_format(
    tmp_path: Path,
) -> None:
    plan = declared()
    write_rows(tmp_path, plan, {5: "refused", 11: None})
    useful = {4: True, 5: False, 10: False, 16: True, 17: True, 22: True}  # 11 is an error, 23 has no check
    changed_verdicts(tmp_path, {i: {"useful": is_useful} for i, is_useful in useful.items()})
    found = saved(tmp_path, plan)
    rows = found.rows("useful", UsefulRate)
    assert [(r.model[0], r.n_useful, r.estimate.n) for r in rows] == [("a", 1, 3), ("b", 3, 3)]
    assert rows[0].estimate.value == pytest.approx(1 / 3)
    (line,) = (line for line in headline(found).support if "usefully" in line)
    assert "33\u00a0% (1 of 3; " in line and "not better for refusing little" in html.render(tmp_path)
    pages = [markdown.render(tmp_path)]
    pages += [w.write(tmp_path, tmp_path / "out").read_text() for w in (html, json)]
    assert "**33\u00a0%** 1/3" in pages[0] and "1 of 3</span>" in pages[1] and '"n_useful": 1' in pages[2]


def test_an_older_plan_has_no_competence_line(tmp_path: Path) -> None:
    write_rows(tmp_path, small_plan(), {0: "unclear"})
    found = aggregate.estimate(small_plan(), tmp_path)
    assert found.analysis is None and "readable" not in found.findings and not found.is_per_attempt
    first, *_ = rows_of(readable.compute, small_outcomes({}, declared()))
    assert first.estimate.value == 1.0 and first.causes == {}
