"""What a breach takes: counted by hand from small studies, and said with its n."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from heredity.core.files import Rows
from heredity.core.records import Exchange, Response
from heredity.redteam.attacks import AttackContext
from heredity.stats import intervals
from heredity.stats.intervals import clustered_rate
from heredity.study import aggregate, plan
from heredity.study.aggregate import JudgeCorrection
from heredity.study.estimates import JUDGE_FREE, JUDGED
from heredity.study.findings import cost as cost_finding
from heredity.study.findings import tries
from heredity.study.findings.cost import Cost
from heredity.study.outcomes import Outcomes
from heredity.study.plan import Grid
from heredity.study.storage import RawResponse
from tests.support import studies
from tests.support.findings import rows_of

HELD, BROKE, UNCLEAR, ERROR = 1, 2, 3, 4
PLAN = studies.plan(n=2, samples=4, attacks=("direct", "best_of_n:0.4"))


def box(fill: int = HELD) -> np.ndarray:
    return np.full((2, 2, len(PLAN.probes), 4), fill, np.int8)


def free(made: plan.Plan = PLAN) -> list[int]:
    return [i for i, p in enumerate(made.probes) if p.kind == "breach" and p.check.kind != "refusal"]


def test_a_curve_is_by_model_attack_and_scope_and_doubles_its_tries() -> None:
    rows = rows_of(tries.compute, Outcomes(PLAN, box().ravel()))
    cells = list(dict.fromkeys((row.model, row.attack, row.technique) for row in rows))
    assert [cell[1:] for cell in cells[:4]] == [
        ("direct", JUDGE_FREE), ("direct", JUDGED), ("best_of_n:0.4", JUDGE_FREE), ("best_of_n:0.4", JUDGED),
    ]  # fmt: skip
    assert [row.k for row in rows] == [1, 2, 4] * len(cells)
    assert all(row.estimate.value == 0.0 and row.estimate.high for row in rows)


def test_a_curve_counts_breaches_of_each_probe() -> None:
    codes, places = box(), free()
    codes[1, 0, places[0]] = [BROKE, HELD, UNCLEAR, HELD]
    codes[1, 0, places[1]] = BROKE
    rows = rows_of(tries.compute, Outcomes(PLAN, codes.ravel()))
    estimate = next(row.estimate for row in rows if row.model == PLAN.models[1].id and row.k == 2)
    shares = [intervals.success_at(2, 4, 1), 1.0, *[0.0] * (len(places) - 2)]
    assert estimate.value == pytest.approx(np.mean(shares))
    assert estimate.n == len(places)
    behaviours = [(PLAN.probes[i].technique, PLAN.probes[i].cluster) for i in places]
    labels = [behaviours.index(b) for b in behaviours]
    same = clustered_rate(shares, labels)
    assert (estimate.low, estimate.high) == (same.low, same.high)


def test_an_error_is_no_try_and_its_probe_leaves_where_tries_run_out() -> None:
    codes, places = box(), free()
    codes[0, 0, places[0], 0] = ERROR
    first = rows_of(tries.compute, Outcomes(PLAN, codes.ravel()))[:3]
    assert [row.estimate.n for row in first] == [len(places), len(places), len(places) - 1]


def test_one_sample_or_an_early_stop_gives_no_curve() -> None:
    single = studies.plan(n=2, samples=1)
    assert rows_of(tries.compute, Outcomes(single, np.ones(single.n_trials, np.int8))) == []
    stopping = msgspec.structs.replace(PLAN, blocks=(len(PLAN.probes),))
    assert rows_of(tries.compute, Outcomes(stopping, box().ravel())) == []


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("effort") / "s"
    studies.study(folder, studies.plan(n=3, samples=2, attacks=("direct", "crescendo:3"))).run()
    return folder


def test_costs_are_the_sums_over_the_responses(study: Path) -> None:
    made = plan.read_plan(study)
    found = aggregate.estimate(made, study)
    rows = list(Rows(study / "responses.jsonl", Response))
    probes = {p.id: p for p in made.probes if p.kind == "breach" and p.check.kind != "refusal"}
    for cost in (c for c in found.rows("cost", Cost) if c.technique == JUDGE_FREE):
        mine = [r for r in rows if (r.model, r.attack) == (cost.model, cost.attack) and r.probe in probes]
        assert cost.n_trials == len(mine) == 2 * len(probes)
        assert cost.n_queries == sum(len(r.exchanges) for r in mine)
        assert cost.n_prompt_tokens == sum(e.n_prompt_tokens for r in mine for e in r.exchanges)
        assert cost.n_tokens == sum(e.n_tokens for r in mine for e in r.exchanges)
    assert {(c.attack, c.technique) for c in found.rows("cost", Cost)} == {
        (attack, scope) for attack in made.attacks for scope in (JUDGE_FREE, JUDGED)
    }


def test_a_cost_is_the_total_over_the_breaches_inside_its_bounds(study: Path) -> None:
    found = aggregate.estimate(plan.read_plan(study), study)
    assert any(c.n_broke for c in found.rows("cost", Cost))
    for cost in found.rows("cost", Cost):
        each = cost.queries_per_breach
        if cost.n_broke:
            assert each.value == pytest.approx(cost.n_queries / cost.n_broke)
            assert each.low <= each.value + 1e-9
            assert each.high is None or each.value <= each.high + 1e-9
        else:
            assert each.value is None and each.low is not None and each.low > 0


def test_without_a_breach_there_is_a_lower_bound_and_nothing_else(tmp_path: Path) -> None:
    made = studies.plan(models=("scripted:refuser",), n=3, samples=1, attacks=("direct",))
    studies.study(tmp_path / "s", made).run()
    cost = next(
        c for c in aggregate.estimate(made, tmp_path / "s").rows("cost", Cost) if c.technique == JUDGE_FREE
    )
    assert (cost.queries_per_breach.value, cost.queries_per_breach.high) == (None, None)
    n = cost.queries_per_breach.n
    upper = clustered_rate([0.0] * n, list(range(n))).high
    assert upper is not None and cost.queries_per_breach.low is not None
    assert 0 < cost.queries_per_breach.low <= cost.n_queries / n / upper + 1e-9


def test_a_response_without_a_verdict_costs_nothing_yet() -> None:
    made = studies.plan(models=("scripted:leaky",), n=1, samples=1, attacks=("direct",))
    trial = Grid(made).trial(0)
    spent = Exchange("", "p", "", "t", (), "end", 100, 10)
    row = Response(
        0, trial.id, trial.model.id, "a", trial.probe.id, "direct", 0, 0, (spent, spent), "scripted"
    )
    rows = [msgspec.json.decode(msgspec.json.encode(row), type=RawResponse)]
    outcomes = Outcomes(made, np.zeros(made.n_trials, np.int8))
    rates = list(aggregate.rates_of(outcomes, JudgeCorrection("", "", Path())))
    assert rows_of(cost_finding.compute, outcomes, rows, rates) == []
    outcomes.codes[0] = BROKE
    (cost, *_) = rows_of(cost_finding.compute, outcomes, rows, rates)
    assert (cost.n_trials, cost.n_queries, cost.n_prompt_tokens, cost.n_tokens) == (1, 2, 200, 20)


def test_samples_of_an_attack_that_draws_differ_and_are_the_same_on_another_day() -> None:
    from heredity.redteam import attacks

    grid, attack = Grid(PLAN), attacks.load("best_of_n:0.4")
    trials = [grid.trial(i) for i in range(len(grid)) if grid.trial(i).attack == "best_of_n:0.4"][:4]
    texts = [next(attack(t.probe, AttackContext(sample=t.sample, seed=t.seed))).text for t in trials]
    assert len(set(texts)) == 4
    assert texts == [next(attack(t.probe, AttackContext(sample=t.sample, seed=t.seed))).text for t in trials]
