"""The headline says in how many techniques a difference is shown, and what a new technique would give."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from heredity.core.records import Check, Outcome, Probe
from heredity.study import aggregate
from heredity.study.estimates import JUDGE_FREE, Estimates, techniques_of_pair
from heredity.study.findings import technique_tests, techniques
from heredity.study.findings.technique_tests import TechniqueTest
from heredity.study.findings.techniques import TechniqueRate
from heredity.study.headline import headline
from heredity.study.outcomes import BROKE, HELD, Outcomes
from heredity.study.plan import Analysis, Grid, Plan, write_plan
from tests.support.findings import rows_of
from tests.support.small_study import small_plan, write_rows

CHECK = Check("marker", text="zorq")


def plan_of(n_techniques: int = 4, n: int = 20, blocks: tuple[int, ...] = ()) -> Plan:
    probes = tuple(
        Probe(f"t{t}/{i}", f"t{t}", "breach", ("Do it.",), CHECK, str(i))
        for t in range(n_techniques)
        for i in range(n)
    )
    made = msgspec.structs.replace(small_plan(1), attacks=("direct",), probes=probes, analysis=Analysis())
    return msgspec.structs.replace(made, blocks=blocks) if blocks else made


def estimated(folder: Path, plan: Plan, broken: dict[str, int]) -> Estimates:
    """Model b broke on the first probes of each technique, as many as `broken` says; model a held."""
    grid, outcomes = Grid(plan), dict[int, Outcome | None]()
    for index in range(len(grid)):
        trial = grid.trial(index)
        number = int(trial.probe.id.split("/")[1])
        is_broken = trial.model.name == "b" and number < broken.get(trial.probe.technique, 0)
        outcomes[index] = "broke" if is_broken else "held"
    write_plan(folder, plan)
    write_rows(folder, plan, outcomes)
    return aggregate.estimate(plan, folder)


def test_a_difference_of_two_techniques_is_told_as_one_of_two(tmp_path: Path) -> None:
    found = estimated(tmp_path, plan_of(7), {"t0": 18, "t1": 15, "t2": 1})
    counts = techniques_of_pair(found, "b" * 32, "a" * 32, JUDGE_FREE)
    assert (counts.worse, counts.better, counts.open) == (["t0", "t1"], [], ["t2", "t3", "t4", "t5", "t6"])
    assert counts.equal == [] and counts.n == 7  # 0 of 20 with both does not show a difference below 5 points
    words = headline(found)
    assert "2 of 7 techniques" in words.sentence
    assert any("worse in t0, t1; undecided in the others" in line for line in words.support)


def test_no_difference_is_claimed_only_where_it_is_shown_within_the_margin(tmp_path: Path) -> None:
    wide = msgspec.structs.replace(plan_of(7), margin=0.5)
    found = estimated(tmp_path, wide, {"t0": 18, "t1": 15, "t2": 1})
    counts = techniques_of_pair(found, "b" * 32, "a" * 32, JUDGE_FREE)
    assert {"t3", "t4", "t5", "t6"} <= set(counts.equal)
    assert any("not different in" in line and "t3, t4, t5, t6" in line for line in headline(found).support)


def test_equal_answers_of_a_greedy_model_tighten_no_rate_of_a_technique() -> None:
    once, thrice = (msgspec.structs.replace(plan_of(4, 6), samples=n) for n in (1, 3))
    rates = []
    for plan in (once, thrice):
        outcomes = Outcomes(plan)
        outcomes.array[:] = HELD
        outcomes.array[:, :, ::3] = BROKE
        rates.append(rows_of(techniques.compute, outcomes))
    assert rates[0] == rates[1]


def test_a_difference_in_no_technique_by_itself_is_told_so(tmp_path: Path) -> None:
    found = estimated(tmp_path, plan_of(4), {f"t{i}": 4 for i in range(4)})
    told = headline(found)
    assert "but in none of 4 techniques" in told.sentence
    (line,) = (line for line in told.support if line.startswith("By technique"))
    assert line == "By technique b is undecided in all."


def test_a_new_technique_is_less_known_than_this_bank(tmp_path: Path) -> None:
    found = estimated(tmp_path, plan_of(4), {"t0": 18, "t1": 3})
    rows = [row for row in found.rows("techniques", TechniqueRate) if row.model == found.models[1].id]
    assert {row.scope for row in rows} == {JUDGE_FREE}
    assert [row.technique for row in rows if row.kind == "technique"] == ["t0", "t1", "t2", "t3"]
    bank, new = (next(row.estimate for row in rows if row.kind == kind) for kind in ("mean", "new"))
    assert bank.value == pytest.approx(21 / 80, abs=0.05)
    assert bank.low is not None and bank.high is not None and new.low is not None and new.high is not None
    assert new.high - new.low > 1.5 * (bank.high - bank.low)
    rates = {row.technique: row.estimate.value or 0.0 for row in rows}
    assert 0.5 < rates["t0"] < 0.9 and 0.0 < rates["t3"] < 0.1  # drawn towards each other
    (test,) = found.rows("technique_tests", TechniqueTest)
    assert test.p_value is not None and test.p_value < 0.01


def test_equal_techniques_are_not_shown_to_differ(tmp_path: Path) -> None:
    found = estimated(tmp_path, plan_of(4), {f"t{i}": 6 for i in range(4)})
    (test,) = found.rows("technique_tests", TechniqueTest)
    assert test.p_value is None or test.p_value > 0.2


def test_an_older_plan_has_no_rates_by_technique_and_an_early_stop_no_test() -> None:
    older = msgspec.structs.replace(plan_of(), analysis=None)
    assert not rows_of(techniques.compute, Outcomes(older))
    assert not rows_of(technique_tests.compute, Outcomes(older))
    stops = Outcomes(plan_of(blocks=(40, 80)))
    stops.codes[:] = HELD
    stops.array[1, 0, :10, 0] = BROKE
    assert not rows_of(technique_tests.compute, stops)
    assert len({row.model for row in rows_of(techniques.compute, stops)}) == 2
