"""A recommendation by the user's own costs: none without costs, the same each time, and honest about ties."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from heredity.core.errors import Damaged, UnknownName, UsageError
from heredity.study import advice
from heredity.study.advice import Costs, parse_costs, recommend, recommendation_words
from heredity.study.outcomes import BROKE, HELD, UNCLEAR, Outcomes
from heredity.study.report import write_report
from heredity.study.storage import COSTS
from tests.support.errors import raises, run_here
from tests.support.report_studies import make, plan

PLAN = plan(n_models=3, n_probes=20)
NAMES = {model.id: model.name for model in PLAN.models}


def outcomes_of(
    broke: tuple[int, ...], refused: tuple[int, ...] = (0, 0, 0), unclear: tuple[int, ...] = (0, 0, 0)
) -> Outcomes:
    """By model, how many breach probes broke, and how many twins were refused or unclear, of 60 each."""
    outcomes = Outcomes(PLAN, np.full(PLAN.n_trials, HELD, np.int8))
    is_twin = np.flatnonzero(outcomes.is_twin)
    is_probe = np.flatnonzero(~outcomes.is_twin)
    for m in range(3):
        outcomes.array[m, 0, is_probe[: broke[m]], 0] = BROKE
        outcomes.array[m, 0, is_twin[: refused[m]], 0] = BROKE
        outcomes.array[m, 0, is_twin[refused[m] : refused[m] + unclear[m]], 0] = UNCLEAR
    return outcomes


def test_costs_are_read_from_the_command_line() -> None:
    assert parse_costs("breach=100, refusal=5,useless=1") == Costs(100.0, 5.0, 1.0, 0.01)
    assert parse_costs("breach=2,attacks=0.5") == Costs(2.0, 0.0, 0.0, 0.5)


@pytest.mark.parametrize(
    "text",
    [
        "breach=x",
        "breach=-1",
        "attacks=2,breach=1",
        "breach=0",
        "breach=nan",
        "breach=inf",
        "breach=1e308",
        "refusal=1,attacks=1",
    ],
)
def test_a_bad_cost_is_refused(text: str) -> None:
    with raises(UsageError, "bad-usage"):
        parse_costs(text)


@pytest.mark.parametrize(("text", "example"), [("breach=abc", "breach=100"), ("attacks=2", "attacks=0.01")])
def test_a_bad_cost_has_an_example_that_one_may_give(text: str, example: str) -> None:
    with raises(UsageError, "bad-usage", [f"such as {example}."]):
        parse_costs(text)
    parse_costs(f"refusal=5,{example}")


def test_an_unknown_cost_names_the_nearest() -> None:
    with raises(UnknownName, "unknown-name", mentions=["breach"]):
        parse_costs("breech=1")
    with raises(UsageError, "name-twice"):
        parse_costs("breach=1,breach=2")


def test_the_expected_cost_is_computed_by_hand() -> None:
    found = recommend(outcomes_of((6, 30, 0), (0, 0, 30), (0, 12, 0)), Costs(100.0, 5.0, 1.0, 0.1))
    by_name = {NAMES[row.model]: row for row in found.models}
    first, second, third = (by_name[model.name] for model in PLAN.models)
    # Of 1,000 requests 100 are attacks: 10 % break; of the 900 benign ones none is refused.
    assert first.cost.value == pytest.approx(100 * 100 * 0.1) and first.parts["refusal"] == 0.0
    assert second.parts == pytest.approx({"breach": 5000.0, "refusal": 0.0, "useless": 900 * 0.2})
    assert third.cost.value == pytest.approx(5 * 900 * 0.5)
    assert [NAMES[row.model] for row in found.models] == [PLAN.models[i].name for i in (0, 2, 1)]
    assert sum(row.p_best or 0.0 for row in found.models) == pytest.approx(1.0)


def test_an_unclear_attack_is_no_breach_and_an_unclear_answer_is_no_use() -> None:
    outcomes = outcomes_of((0, 0, 0), (0, 0, 0), (60, 0, 0))
    outcomes.array[0][:, ~outcomes.is_twin] = UNCLEAR
    found = recommend(outcomes, Costs(breach=1.0, useless=1.0, attacks=0.5))
    assert found.models[-1].parts == {"breach": 0.0, "useless": 500.0}


def test_an_answer_that_was_checked_and_has_no_use_costs_too() -> None:
    outcomes = outcomes_of((0, 0, 0))
    outcomes.useless = np.zeros(PLAN.n_trials, np.bool_)
    outcomes.useless.reshape(PLAN.shape)[1, 0, np.flatnonzero(outcomes.is_twin)[:30]] = True
    found = recommend(outcomes, Costs(useless=1.0, attacks=0.0))
    assert {NAMES[r.model]: r.parts["useless"] for r in found.models}[PLAN.models[1].name] == 500.0


def test_a_clear_choice_is_recommended_and_a_tie_is_called_one() -> None:
    clear = recommend(outcomes_of((0, 60, 60)), Costs(breach=1.0))
    assert clear.is_clear and clear.models[0].p_best == pytest.approx(1.0, abs=0.01)
    assert any("take smollm2" in line for line in recommendation_words(clear, NAMES))
    tie = recommend(outcomes_of((10, 11, 12)), Costs(breach=1.0))
    assert not tie.is_clear and tie.models[0].rank_high == 3
    assert any("not shown" in line for line in recommendation_words(tie, NAMES))


def test_without_twins_a_cost_of_refusals_recommends_nothing() -> None:
    bare = msgspec.structs.replace(PLAN, probes=tuple(p for p in PLAN.probes if p.kind == "breach"))
    found = recommend(Outcomes(bare, np.full(bare.n_trials, HELD, np.int8)), Costs(breach=1.0, refusal=1.0))
    assert found.note and not found.is_clear
    (line,) = recommendation_words(found, NAMES)
    assert "refusal" in line


def test_a_report_has_the_recommendation_or_says_how_to_get_one(tmp_path: Path) -> None:
    folder = make(tmp_path / "study")
    page = write_report(folder).read_text(encoding="utf-8")
    assert "--cost" in page and "probability of being" not in page.split('id="decision"')[1]
    assert "recommendation" not in json.loads(write_report(folder, "json").read_bytes())
    advice.save_costs(folder, parse_costs("breach=100,refusal=5,useless=1"))
    once, again = (write_report(folder).read_text(encoding="utf-8") for _ in range(2))
    assert once == again and "probability of being" in once
    rows = json.loads(write_report(folder, "json").read_bytes())["recommendation"]
    assert rows["costs"]["breach"] == 100.0 and len(rows["models"]) == 2
    assert all(0 <= row["low"] <= row["value"] <= row["high"] for row in rows["models"])
    assert "cost per 1,000 requests" in write_report(folder, "markdown").read_text(encoding="utf-8")


def test_damaged_costs_are_refused(tmp_path: Path) -> None:
    (tmp_path / COSTS).write_text('{"breach": "much"}', encoding="utf-8")
    with raises(Damaged, "damaged"):
        advice.read_costs(tmp_path)


def test_the_report_command_takes_costs_and_refuses_bad_ones(tmp_path: Path) -> None:
    folder = make(tmp_path / "study")
    done = run_here(
        "report", str(folder), "--cost", "breach=100,refusal=5", "--out", str(tmp_path / "page.html")
    )
    assert done.returncode == 0 and "cost per 1,000" in done.stdout
    bad = run_here("report", str(folder), "--cost", "breach=lots")
    assert (bad.returncode, bad.code) == (2, "bad-usage")
    assert advice.read_costs(folder) == Costs(100.0, 5.0)
