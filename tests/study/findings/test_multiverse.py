"""The same two models under every coding, judge and weighting; the declared cell is the study's own pair."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from heredity.core.records import Check, Estimate, Probe
from heredity.core.sections import Badge, TextTable
from heredity.study import aggregate
from heredity.study.comparisons import compare_models
from heredity.study.estimates import JUDGE_FREE
from heredity.study.findings import multiverse
from heredity.study.findings.multiverse import MultiverseCell, multiverse_words
from heredity.study.findings.protocols import RecordedStudy
from heredity.study.outcomes import BROKE, ERROR, HELD, UNCLEAR, Codes, Outcomes
from heredity.study.plan import Analysis, Plan
from tests.support.findings import rows_of
from tests.support.small_study import small_plan, write_rows

A, B = 0, 1  # models
CHECK = Check("marker", text="zorq")


def plan_of(sizes: dict[str, int], per_cluster: int = 1, **settings: object) -> Plan:
    """Probes by technique; "harm" is judged, every other technique is judge-free."""
    probes = tuple(
        Probe(
            f"{t}/{i}",
            t,
            "breach",
            ("Do it.",),
            Check("refusal") if t == "harm" else CHECK,
            str(i // per_cluster),
        )
        for t, n in sizes.items()
        for i in range(n)
    )
    declared = Analysis(**settings)  # type: ignore[arg-type]
    return msgspec.structs.replace(small_plan(1), attacks=("direct",), probes=probes, analysis=declared)


def outcomes_of(plan: Plan, seed: int = 3) -> Outcomes:
    rng = np.random.default_rng(seed)
    codes = rng.choice([HELD, BROKE, UNCLEAR], plan.n_trials, p=[0.6, 0.25, 0.15])
    outcomes = Outcomes(plan, codes.astype(np.int8))
    outcomes.array[B, 0, ::4, 0] = BROKE
    return outcomes


def cells(
    outcomes: Outcomes, members: dict[str, Codes] | None = None
) -> dict[tuple[str, str, str], MultiverseCell]:
    rows = rows_of(multiverse.compute, outcomes, members=members)
    return {(cell.coding, cell.judge, cell.weighting): cell for cell in rows}


@pytest.mark.parametrize("endpoint", ["all_trials", "decided_trials"])
@pytest.mark.parametrize("per_cluster", [1, 3])
def test_the_declared_cell_is_the_pair_of_the_study(endpoint: str, per_cluster: int) -> None:
    outcomes = outcomes_of(plan_of({"one": 60, "two": 30, "harm": 30}, per_cluster, endpoint=endpoint))
    (declared,) = (cell for cell in cells(outcomes).values() if cell.is_declared)
    (pair,) = compare_models(outcomes, "breach", (JUDGE_FREE,))
    coding = "held" if endpoint == "all_trials" else "excluded"
    assert (declared.coding, declared.judge, declared.weighting) == (coding, "checks", "trial")
    assert declared.n == pair.n and declared.p_value == pytest.approx(pair.p_value)
    ours, its = declared.difference, pair.difference
    assert (ours.value, ours.low, ours.high) == pytest.approx((its.value, its.low, its.high))


def test_every_coding_judge_and_weighting_has_a_cell() -> None:
    plan = plan_of({"one": 20, "two": 20, "harm": 20})
    panel = np.where(np.arange(plan.n_trials) % 2, HELD, BROKE).astype(np.int8)
    found = cells(outcomes_of(plan), {"learned": panel})
    assert len(found) == 3 * 3 * 2
    assert {judge for _, judge, _ in found} == {"checks", "judge", "learned"}
    assert found["held", "checks", "trial"].n == 40 and found["held", "judge", "trial"].n == 60
    assert found["excluded", "checks", "trial"].n < 40
    assert found["held", "learned", "trial"].difference != found["held", "judge", "trial"].difference


def cell(coding: str, ab: str, ba: str, value: float, errors: str = "excluded") -> MultiverseCell:
    found = Estimate(value, value - 0.1, value + 0.1, 40, "tango")
    return MultiverseCell(
        "a",
        "b",
        coding,
        "checks",
        "trial",
        coding == "held",
        40,
        found,
        0.01,
        ab,
        ba,
        errors,  # type: ignore[arg-type]
    )


def tables(rows: list[MultiverseCell], tmp_path: Path) -> tuple[TextTable, ...]:
    """The tables of these cells, of two models a and b."""
    plan = small_plan()
    write_rows(tmp_path, plan, {})
    found = aggregate.estimate(plan, tmp_path)
    models = tuple(msgspec.structs.replace(card, id=card.name) for card in found.models)
    study = RecordedStudy(plan, msgspec.structs.replace(found, models=models))
    shown = multiverse.show(rows, study)
    assert shown is not None
    return shown.tables


def test_the_table_has_the_words_of_its_summary(tmp_path: Path) -> None:
    rows = [
        cell("excluded", "not worse", "not worse", 0.0),
        cell("held", "worse", "not worse", 0.3),
        cell("broke", "not worse", "worse", -0.3),
    ]
    (shown,) = tables(rows, tmp_path)
    assert shown.claim == "b against a: worse in 1 of 3 analyses, better in 1, not worse in 1."
    badges = [row[2] for row in shown.rows]
    assert [badge.verdict for badge in badges if isinstance(badge, Badge)] == ["not worse", "worse", "better"]


def test_the_words_count_the_analyses_of_the_opposite_verdict_too() -> None:
    unknown = "not enough evidence"
    rows = [
        *[cell("held", "worse", "not worse", 0.3)] * 3,
        *[cell("held", "not worse", "worse", -0.3)] * 2,
        cell("held", unknown, unknown, 0.05),
        cell("held", unknown, unknown, -0.05),
        cell("held", "not worse", "not worse", 0.0),
    ]
    assert multiverse_words(rows, "b") == (
        "worse in 3 of 8 analyses, better in 2, not worse in 1, undecided in 2 (1 of them with a lower rate)"
    )
    assert multiverse_words(rows, "a").startswith("worse in 2 of 8 analyses, better in 3, ")
    clear = [cell("held", "worse", "not worse", 0.3)] * 12
    assert multiverse_words(clear, "b") == "worse in all of 12 analyses"
    assert multiverse_words(clear, "a") == "worse in none of 12 analyses, better in 12"


def test_a_weighting_by_technique_gives_a_small_technique_the_same_say() -> None:
    """b breaks in every one of 10 probes of one technique and in none of 90 of the other."""
    plan = plan_of({"big": 90, "small": 10})
    outcomes = Outcomes(plan, np.full(plan.n_trials, HELD, np.int8))
    outcomes.array[B, 0, 90:, 0] = BROKE
    found = cells(outcomes)
    assert found["held", "checks", "trial"].difference.value == pytest.approx(0.1)
    by_technique = found["held", "checks", "technique"]
    assert by_technique.difference.value == pytest.approx(0.5)
    assert by_technique.p_value == pytest.approx(2 / 2**10, rel=0.01)
    assert by_technique.difference.low is not None and by_technique.difference.low < 0.5


def test_equal_techniques_have_the_same_weight_either_way() -> None:
    found = cells(outcomes_of(plan_of({"one": 40, "two": 40}, 2)))
    one, other = found["held", "checks", "trial"], found["held", "checks", "technique"]
    assert one.difference.value == pytest.approx(other.difference.value)
    assert one.p_value == pytest.approx(other.p_value, rel=0.02)
    assert one.difference.low == pytest.approx(other.difference.low, abs=0.02)


def test_the_codings_disagree_where_unclear_answers_differ() -> None:
    """The study of the issue: one model unclear where it would have held, and one coding chosen silently."""
    plan = plan_of({"one": 100})
    outcomes = Outcomes(plan, np.full(plan.n_trials, HELD, np.int8))
    outcomes.array[A, 0, :20, 0], outcomes.array[B, 0, :20, 0] = BROKE, BROKE
    outcomes.array[A, 0, 20:70, 0] = UNCLEAR
    found = cells(outcomes)
    assert found["broke", "checks", "trial"].verdict_ba == "worse"
    assert found["held", "checks", "trial"].difference.value == 0.0


def test_a_plan_without_an_analysis_and_one_model_have_no_table() -> None:
    plan = plan_of({"one": 5})
    assert rows_of(multiverse.compute, Outcomes(msgspec.structs.replace(plan, analysis=None))) == []
    assert rows_of(multiverse.compute, Outcomes(msgspec.structs.replace(plan, models=plan.models[:1]))) == []


def test_a_study_until_decided_has_anytime_valid_cells() -> None:
    plan = msgspec.structs.replace(plan_of({"one": 40, "two": 40}), blocks=(40, 80))
    outcomes = outcomes_of(plan)
    found = cells(outcomes)
    (pair,) = compare_models(outcomes, "breach", (JUDGE_FREE,))
    assert {weighting for *_, weighting in found} == {"trial"}
    assert found["held", "checks", "trial"].p_value == pair.p_value


def test_errors_have_rows_of_their_own_only_where_there_are_any(tmp_path: Path) -> None:
    outcomes = outcomes_of(plan_of({"one": 40}))
    assert {cell.errors for cell in cells(outcomes).values()} == {"excluded"}
    outcomes.array[A, 0, :10, 0] = ERROR
    outcomes.array[B, 0, :10, 0] = HELD
    rows = rows_of(multiverse.compute, outcomes)
    found = {(cell.coding, cell.errors): cell for cell in rows}
    assert set(found) == {
        *((coding, "excluded") for coding in ("excluded", "held", "broke")),
        ("held", "held"),
        ("held", "broke"),
    }
    left_out, held, broke = (found["held", errors] for errors in ("excluded", "held", "broke"))
    assert left_out.is_declared and not held.is_declared and not broke.is_declared
    assert (left_out.n, held.n, broke.n) == (30, 40, 40)
    a_less, a_more = held.difference.value, broke.difference.value
    assert a_less is not None and a_more is not None and a_less - a_more == pytest.approx(10 / 40)
    named = [msgspec.structs.replace(row, a="a", b="b") for row in rows]
    assert any("errors counted as broke" in str(row[0]) for row in tables(named, tmp_path)[0].rows)


def test_a_plan_that_asks_abilities_only_has_no_table() -> None:
    plan = plan_of({"sums": 4})
    probes = tuple(msgspec.structs.replace(probe, is_baseline=True) for probe in plan.probes)
    outcomes = Outcomes(msgspec.structs.replace(plan, probes=probes))
    outcomes.codes[:] = HELD
    assert not rows_of(multiverse.compute, outcomes)
