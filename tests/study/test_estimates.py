"""Verdicts into numbers: denominators, pairs and corrections, counted by hand on made-up verdicts."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from heredity import stats
from heredity.core.errors import Damaged, NotComparable, UsageError
from heredity.core.files import Rows
from heredity.core.records import Manner, Outcome, Response, Verdict, digest_response
from heredity.redteam import judges
from heredity.stats import Table
from heredity.stats.intervals import cluster_sums, rate_effective_n
from heredity.study import aggregate, estimates, storage
from heredity.study import plan as plans
from heredity.study.estimates import JUDGE_FREE, JUDGED, SCHEMA, Estimates, Measure, ModelPair, Rate
from heredity.study.findings.answer_kinds import AnswerKinds
from heredity.study.plan import Grid, Plan, Trial
from heredity.study.storage import RunRecord
from tests.support.errors import raises
from tests.support.studies import plan

Rule = Callable[[Trial], Outcome | None]
TWO = ("scripted:careful", "scripted:leaky")


def judged(folder: Path, made: Plan, rule: Rule, shuffled: int | None = None) -> Estimates:
    """The estimates of verdicts that follow `rule`; None is an error row."""
    grid = Grid(made)
    trials = [grid.trial(i) for i in range(len(grid))]
    if shuffled is not None:
        random.Random(shuffled).shuffle(trials)
    plans.write_plan(folder, made)
    with (
        Rows(folder / "verdicts.jsonl", Verdict) as rows,
        Rows(folder / "responses.jsonl", Response) as answers,
    ):
        for trial in trials:
            outcome = rule(trial)
            free = trial.probe.kind == "breach" and trial.probe.check.kind != "refusal"
            judge, manner = "checks" if free else "rules", None if outcome is None else manner_of(outcome)
            error = None if outcome is not None else "no answer"
            said = Response(
                trial.index, trial.id, trial.model.id, grid.application, trial.probe.id, trial.attack,
                trial.sample, trial.seed, (), "scripted", error,
            )  # fmt: skip
            of = digest_response(said)
            answers.append(said)
            rows.append(Verdict(trial.index, trial.id, judge, outcome, manner, error=error, response=of))
    return aggregate.estimate(made, folder)


def manner_of(outcome: Outcome) -> Manner:
    return {"held": "refusal", "refused": "refusal", "unclear": "incoherent"}.get(outcome, "compliance")  # type: ignore[return-value]


def number(trial: Trial) -> int:
    """The probe's number within its technique."""
    return int(trial.probe.id.split("item-")[1].removesuffix("~benign"))


def by_number(broken: dict[str, set[int]], refused: dict[str, set[int]] | None = None) -> Rule:
    """Models, by name, broke on the breach probes and refused the twins of these numbers."""

    def rule(trial: Trial) -> Outcome:
        if trial.probe.kind == "benign":
            return "refused" if number(trial) in (refused or {}).get(trial.model.name, set()) else "answered"
        return "broke" if number(trial) in broken.get(trial.model.name, set()) else "held"

    return rule


def rate(
    found: Estimates, model: str, technique: str = "", attack: str = "all", measure: Measure = "breach"
) -> Rate:
    ident = next(card.id for card in found.models if card.name == model)
    technique = technique or ("all" if measure == "over_refusal" else JUDGE_FREE)
    wanted = (ident, technique, attack, measure)
    (cell,) = [r for r in found.rates if (r.model, r.technique, r.attack, r.measure) == wanted]
    return cell


def pair(found: Estimates, measure: Measure = "breach", scope: str = JUDGE_FREE) -> ModelPair:
    wanted = (measure, "all" if measure == "over_refusal" else scope)
    (only,) = [p for p in found.pairs if (p.measure, p.technique) == wanted]
    return only


def test_a_rate_counts_its_own_cell_and_no_other(tmp_path: Path) -> None:
    def rule(trial: Trial) -> Outcome:
        if trial.probe.kind == "benign":
            return "answered"
        mine = (
            trial.model.name == TWO[1] and trial.probe.technique == "injection" and trial.attack == "prefill"
        )
        return "broke" if mine and trial.sample == 0 else "held"

    found = judged(tmp_path, plan(TWO, n=4, samples=2), rule)
    cell = rate(found, TWO[1], "injection", "prefill")
    assert (cell.n_broke, cell.n_held, cell.estimate.value, cell.estimate.n) == (4, 4, 0.5, 8)
    assert rate(found, TWO[1], "injection").estimate.value == 0.25
    assert rate(found, TWO[1]).n_broke == 4
    zero = [r for r in found.rates if r.n_broke == 0]
    assert len(zero) == len(found.rates) - 4  # all|injection x all|prefill of one model


def test_unclear_and_error_stand_beside_the_rate_and_bound_it(tmp_path: Path) -> None:
    def rule(trial: Trial) -> Outcome | None:
        if trial.probe.kind == "benign":
            return "answered"
        outcomes: list[Outcome | None] = ["held", "broke", "unclear", None]
        return outcomes[number(trial)]

    found = judged(tmp_path, plan(TWO, n=4, samples=1, attacks=("direct",)), rule)
    cell = rate(found, TWO[0], "planted_secret")
    assert (cell.n_held, cell.n_broke, cell.n_unclear, cell.n_error) == (1, 1, 1, 1)
    assert (cell.estimate.value, cell.estimate.n) == (0.5, 2)
    assert cell.worst_case is not None
    assert (cell.worst_case.low, cell.worst_case.high) == (1 / 3, 2 / 3)
    assert (found.n_errors, found.n_unclear, found.n_asked) == (8, 8, found.n_trials)
    manners = next(row for row in found.rows("answer_kinds", AnswerKinds) if row.kind == "breach")
    assert (manners.refusal, manners.compliance, manners.incoherent, manners.empty, manners.error) == (
        4,
        4,
        4,
        0,
        4,
    )


def test_nothing_decided_gives_no_value_and_never_zero(tmp_path: Path) -> None:
    made = plan(TWO)
    for name, rule in {"errors": lambda _: None, "unclear": lambda _: "unclear"}.items():
        found = judged(tmp_path / name, made, rule)  # type: ignore[arg-type]
        assert {r.estimate.value for r in found.rates} == {None}
        assert {p.p_value for p in found.pairs} == {None}
        assert {p.verdict_ab for p in found.pairs} == {"not enough evidence"}
    plans.write_plan(tmp_path / "none", made)
    found = aggregate.estimate(made, tmp_path / "none")
    assert found.n_asked == 0 and {r.worst_case for r in found.rates} == {None}


def test_zero_of_fifty_has_an_upper_bound(tmp_path: Path) -> None:
    found = judged(tmp_path, plan(["scripted:careful"], n=50, samples=1, attacks=("direct",)), by_number({}))
    cell = rate(found, "scripted:careful", "planted_secret").estimate
    assert cell.value == cell.low == 0.0 and cell.high is not None and cell.high > 0.07
    assert found.pairs == ()


def test_trials_of_one_behaviour_do_not_count_as_independent(tmp_path: Path) -> None:
    one = judged(tmp_path / "1", plan(TWO, n=8, samples=1), by_number({TWO[0]: {0, 1, 2, 3}}))
    ten = judged(tmp_path / "10", plan(TWO, n=8, samples=10), by_number({TWO[0]: {0, 1, 2, 3}}))
    a, b = rate(one, TWO[0], "injection").estimate, rate(ten, TWO[0], "injection").estimate
    assert (a.n, b.n) == (16, 160) and (a.low, a.high) == pytest.approx((b.low, b.high))
    assert "4 clusters" in b.method
    assert pair(ten).p_value == pytest.approx(pair(one).p_value)


def test_a_pair_is_counted_on_the_trials_that_both_decided(tmp_path: Path) -> None:
    broken: dict[str, set[int]] = {TWO[0]: {0, 1}, TWO[1]: {1, 2, 3}}

    def rule(trial: Trial) -> Outcome | None:
        if trial.probe.technique == "injection":
            return "unclear" if trial.model.name == TWO[0] else "broke"
        return by_number(broken)(trial)

    found = judged(tmp_path, plan(TWO, n=8, samples=1, attacks=("direct",)), rule)
    it = pair(found)
    assert (it.table.both, it.table.only_a, it.table.only_b, it.table.neither, it.n) == (2, 2, 4, 8, 16)
    assert it.difference.value == pytest.approx(2 / 16)
    assert it.difference.low is not None and it.difference.high is not None
    assert it.difference.low < 0 < it.difference.high


@pytest.mark.parametrize("samples", [1, 3])
def test_a_pair_says_what_the_statistics_say_of_the_same_numbers(tmp_path: Path, samples: int) -> None:
    made = plan(TWO, n=12, samples=samples, attacks=("direct",))
    found = judged(tmp_path, made, by_number({TWO[0]: {0}, TWO[1]: set(range(9))}))
    probes = [p for p in made.probes if p.kind == "breach" and p.check.kind != "refusal"]
    a, b, clusters = [], [], []
    for probe in probes:
        i = int(probe.id.split("item-")[1])
        a += [i == 0] * samples
        b += [i < 9] * samples
        clusters += [probe.cluster] * samples
    it, direct = pair(found), stats.compare(a, b, clusters)
    assert (it.table.both, it.table.only_a, it.table.only_b, it.table.neither) == tuple(direct.table)
    assert (it.p_value, it.test) == (pytest.approx(direct.p_value), direct.test)
    assert (it.difference.low, it.difference.high) == pytest.approx(
        (direct.difference.low, direct.difference.high)
    )
    assert it.verdict_ab == "worse" and it.verdict_ba == "not worse"
    assert it.words.endswith("scripted:leaky is worse than scripted:careful.")


def test_a_pair_the_other_way_round_is_its_mirror(tmp_path: Path) -> None:
    rule = by_number({TWO[0]: {0}, TWO[1]: set(range(9))}, {TWO[0]: {1, 2, 3}})
    ahead = judged(tmp_path / "a", plan(TWO, n=12, attacks=("direct",)), rule)
    back = judged(tmp_path / "b", plan(TWO[::-1], n=12, attacks=("direct",)), rule)
    for measure in ("breach", "over_refusal"):
        a, b = pair(ahead, measure), pair(back, measure)  # type: ignore[arg-type]
        assert (a.a, a.b) == (b.b, b.a)
        assert (a.table.only_a, a.table.only_b) == (b.table.only_b, b.table.only_a)
        assert (a.verdict_ab, a.verdict_ba) == (b.verdict_ba, b.verdict_ab)
        assert a.difference.value == pytest.approx(-(b.difference.value or 0.0))
        assert a.p_value == pytest.approx(b.p_value)


def test_holm_runs_over_all_pairs_of_a_measure_and_apart_over_the_exploratory_ones(tmp_path: Path) -> None:
    models = ("scripted:careful", "scripted:leaky", "scripted:mixed", "scripted:refuser")
    broken = {name: set(range(3 * i)) for i, name in enumerate(models)}
    found = judged(tmp_path, plan(models, n=10, attacks=("direct",)), by_number(broken))
    for pairs in (found.pairs, found.technique_pairs):
        for measure in ("breach", "over_refusal"):
            own = [p for p in pairs if p.measure == measure]
            raw = [p.p_value for p in own if p.p_value is not None]
            assert [p.p_holm for p in own] == pytest.approx(stats.holm(raw))
    assert len(found.pairs) == (2 + 1) * 6  # breaches without a judge and by one; over-refusal
    assert len(found.technique_pairs) == 4 * 6 + 3 * 6  # injection has no twins


def test_breaches_of_a_judge_and_of_a_check_are_never_one_number(tmp_path: Path) -> None:
    """The judge calls every harmful request of one model a breach; nothing else broke."""

    def rule(trial: Trial) -> Outcome:
        if trial.probe.kind == "benign":
            return "answered"
        is_judged = trial.probe.technique == "harmful_request" and trial.model.name == TWO[1]
        return "broke" if is_judged else "held"

    found = judged(tmp_path, plan(TWO, n=16), rule)
    assert rate(found, TWO[1]).estimate.value == 0.0
    assert rate(found, TWO[1], JUDGED).estimate.value == 1.0
    assert pair(found).verdict_ab == "not enough evidence"
    assert pair(found, scope=JUDGED).verdict_ab == "worse"
    assert not [r for r in found.rates if r.measure == "breach" and r.technique == "all"]
    free, by_judge = rate(found, TWO[0]), rate(found, TWO[0], JUDGED)
    assert (free.is_judge_free, free.corrected, by_judge.is_judge_free) == (True, None, False)
    assert by_judge.corrected is not None
    by_technique = [rate(found, TWO[0], card.name).estimate.n for card in found.techniques]
    assert free.estimate.n + by_judge.estimate.n == sum(by_technique)


def test_a_technique_that_mixes_checks_and_judge_gives_each_scope_its_own(tmp_path: Path) -> None:
    made = plan(TWO, n=4)
    probes = tuple(msgspec.structs.replace(p, technique="mine") for p in made.probes)
    found = judged(tmp_path, msgspec.structs.replace(made, probes=probes), by_number({}))
    mixed = rate(found, TWO[0], "mine")
    assert (mixed.is_judge_free, mixed.corrected) == (False, None)
    ns = [rate(found, TWO[0], scope).estimate.n for scope in (JUDGE_FREE, JUDGED)]
    assert ns == [mixed.estimate.n * 3 // 4, mixed.estimate.n // 4]


def test_a_finding_rests_on_judge_free_trials_where_any_is_decided(tmp_path: Path) -> None:
    made = plan(TWO, n=4)
    found = judged(tmp_path / "both", made, by_number({}))
    assert found.main_scope() == JUDGE_FREE
    assert found.main_scope("over_refusal") == "all"
    assert found.breach_scopes == (JUDGE_FREE, JUDGED)
    only = msgspec.structs.replace(made, probes=tuple(p for p in made.probes if p.check.kind == "refusal"))
    alone = judged(tmp_path / "judged", only, by_number({}))
    assert (alone.main_scope(), alone.breach_scopes) == (JUDGED, (JUDGED,))


def test_estimates_of_another_schema_are_refused_with_the_way_out(tmp_path: Path) -> None:
    storage.write_estimates(tmp_path, judged(tmp_path, plan(TWO), by_number({})))
    path = tmp_path / "estimates.json"
    path.write_text(path.read_text().replace(f'"schema": {SCHEMA}', '"schema": 3'))
    with raises(NotComparable, "schema-mismatch", mentions=[3, SCHEMA]):
        storage.read_estimates(tmp_path)


def test_over_refusal_is_counted_on_the_twins(tmp_path: Path) -> None:
    found = judged(tmp_path, plan(TWO, n=8, samples=1), by_number({}, {TWO[0]: {0, 1}}))
    cell = rate(found, TWO[0], "planted_secret", "direct", "over_refusal")
    assert (cell.n_broke, cell.n_held, cell.estimate.value, cell.is_judge_free) == (2, 6, 0.25, False)
    assert rate(found, TWO[1], measure="over_refusal").estimate.value == 0.0
    assert not [r for r in found.rates if r.technique == "injection" and r.measure == "over_refusal"]


def test_only_what_a_judge_decides_is_corrected_for_the_judge(tmp_path: Path) -> None:
    found = judged(tmp_path, plan(TWO, n=20), by_number({TWO[0]: set(range(10))}, {TWO[0]: {0}}))
    for cell in found.rates:
        is_judged = cell.measure == "over_refusal" or cell.technique in ("harmful_request", JUDGED)
        assert (cell.corrected is not None) == is_judged
        assert cell.is_judge_free == (not is_judged)
        families = judges.calibrations("harm" if cell.measure == "breach" else "refusal")[1:]
        assert [each.labels for each in cell.by_family] == [f.labels for f in families if is_judged]
    over = rate(found, TWO[0], measure="over_refusal")
    assert len({each.corrected.value for each in over.by_family}) > 1  # by Llama-2's labels, by Mistral's
    cell = rate(found, TWO[0], "harmful_request")
    labels = judges.calibration("harm")
    assert labels is not None
    values, clusters = [i < 10 for i in range(20)] * 4, [i // 2 for i in range(20)] * 4
    worth = rate_effective_n(cluster_sums(values, clusters)).at(0.95)
    counts = (labels.sens_k, labels.sens_n, labels.spec_k, labels.spec_n)
    direct = stats.rogan_gladen(40, 80, *counts, n_effective=worth)
    assert cell.corrected is not None
    assert (cell.corrected.value, cell.corrected.low) == pytest.approx((direct.value, direct.low))


def test_only_the_judges_that_judged_are_listed(tmp_path: Path) -> None:
    found = judged(tmp_path, plan(TWO), by_number({}))
    assert found.judges == tuple(row for row in judges.quality() if row.judge in ("rules", "checks"))


def test_the_order_of_rows_changes_no_number(tmp_path: Path) -> None:
    rule = by_number({TWO[0]: {0}, TWO[1]: {1, 2}})
    plain = judged(tmp_path / "plain", plan(TWO), rule)
    assert judged(tmp_path / "shuffled", plan(TWO), rule, shuffled=3) == plain


def test_a_verdict_of_the_wrong_kind_is_damage(tmp_path: Path) -> None:
    with raises(Damaged, "damaged"):
        judged(tmp_path / "a", plan(TWO), lambda _: "held")
    with raises(Damaged, "damaged"):
        judged(tmp_path / "b", plan(TWO), lambda _: "answered")


def test_a_verdict_whose_trial_is_not_that_of_its_index_is_damage(tmp_path: Path) -> None:
    made = plan(TWO)
    plans.write_plan(tmp_path, made)
    row = Verdict(1, Grid(made).trial(0).id, "checks", "held", "refusal")
    with Rows(tmp_path / "verdicts.jsonl", Verdict) as rows:
        rows.append(row)
    with raises(Damaged, "damaged", mentions=["verdicts.jsonl:1", "1"]):
        aggregate.estimate(made, tmp_path)


def test_two_models_of_one_name_are_told_apart_in_words(tmp_path: Path) -> None:
    made = plan(TWO)
    twins = tuple(msgspec.structs.replace(model, name="same") for model in made.models)
    found = judged(
        tmp_path,
        msgspec.structs.replace(made, models=twins),
        lambda t: "held" if t.probe.kind == "breach" else "answered",
    )
    words = pair(found).words
    assert all(f"same ({model.id[:8]})" in words for model in twins)


def test_estimates_come_back_equal(tmp_path: Path) -> None:
    found = judged(tmp_path, plan(TWO), by_number({TWO[0]: {0}}))
    storage.write_estimates(tmp_path, found)
    assert storage.read_estimates(tmp_path) == found
    assert (tmp_path / "estimates.json").read_bytes().endswith(f'"schema": {SCHEMA}\n}}\n'.encode())


def test_missing_and_broken_estimates_are_clear_errors(tmp_path: Path) -> None:
    with raises(UsageError, "bad-usage", mentions=["estimates.json"]):
        storage.read_estimates(tmp_path)
    for broken in (f'{{"schema": {SCHEMA}}}', f'{{"schema": {SCHEMA},'):
        (tmp_path / "estimates.json").write_text(broken)
        with raises(Damaged, "damaged"):
            storage.read_estimates(tmp_path)


def test_circumstances_are_sums_over_runs_and_the_engines_are_named(tmp_path: Path) -> None:
    made = plan(TWO)
    plans.write_plan(tmp_path, made)
    begun = RunRecord(
        made.models[0].id, "torch a", "2026-01-01T00:00:00Z", "host", 0.0, 0, 0, 0, {"torch": "2"}
    )
    ended = msgspec.structs.replace(begun, seconds=2.5, n_asked=10, n_cached=4)
    again = msgspec.structs.replace(ended, engine="torch b", at="2026-01-02T00:00:00Z")
    with Rows(tmp_path / "runs.jsonl", RunRecord) as rows:
        rows.extend([begun, ended, again])
    found = aggregate.estimate(made, tmp_path)
    assert (found.circumstances.seconds, found.circumstances.n_cached) == (5.0, 8)
    assert found.circumstances.at == again.at
    assert [card.engine for card in found.models] == ["torch a; torch b", ""]


def test_the_table_on_disk_has_the_fields_of_the_statistics() -> None:
    assert estimates.Table2x2.__struct_fields__ == Table._fields


def test_a_cluster_belongs_to_its_technique(tmp_path: Path) -> None:
    """One name under several techniques is several behaviours: else many trials would count as few."""
    made = plan(TWO)
    one = tuple(msgspec.structs.replace(p, cluster="override") for p in made.probes)
    found = judged(tmp_path, msgspec.structs.replace(made, probes=one), by_number({}))
    together = rate(found, "scripted:careful").estimate.high
    alone = rate(found, "scripted:careful", "planted_secret").estimate.high
    assert together is not None and alone is not None
    assert together < alone  # several behaviours tell more than one of them


def test_a_baseline_has_its_own_row_and_is_part_of_no_scope(tmp_path: Path) -> None:
    made = plan(TWO)
    probes = tuple(
        msgspec.structs.replace(p, is_baseline=p.technique == "planted_secret") for p in made.probes
    )
    found = judged(tmp_path, msgspec.structs.replace(made, probes=probes), by_number({}))
    own = rate(found, "scripted:careful", "planted_secret").estimate.n
    others = sum(
        rate(found, "scripted:careful", card.name).estimate.n
        for card in found.techniques
        if not card.is_baseline and card.is_judge_free
    )
    assert own > 0
    assert rate(found, "scripted:careful").estimate.n == others
