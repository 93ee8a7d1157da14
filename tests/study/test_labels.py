"""A person's labels: drawn by doubt, kept as they come, and rates from them that cover the truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from heredity.application.spec import Application
from heredity.core.errors import UsageError
from heredity.core.files import Rows
from heredity.core.records import Outcome, Probe, Response, Verdict, digest
from heredity.redteam.judges import rules
from heredity.study import estimates, labels
from heredity.study import plan as plans
from heredity.study.intervals import Intervals
from heredity.study.labels import DRAWN, LABELS, Drawn, Label, Labelling
from heredity.study.plan import Analysis, Plan
from heredity.study.report import html
from heredity.study.report import json as report
from heredity.study.storage import VerdictRow
from heredity.study.study import Study
from tests.study.test_claims import plan_of
from tests.support.errors import raises
from tests.support.small_study import write_rows
from tests.support.studies import plan, study

MADE = plan(("scripted:mixed",), n=20, attacks=("direct",), samples=2)


def judged(tmp_path: Path, made: Plan = MADE) -> Path:
    study(tmp_path, made).run()
    return tmp_path


def label(folder: Path, n: int, said: labels.LabelAnswer = "yes") -> list[Drawn]:
    drawn = labels.draw_answers(folder, plans.read_plan(folder))[:n]
    with Rows(folder / LABELS, Label) as rows:
        for row in drawn:
            labels.add_label(rows, row, said)
    return drawn


def scored(folder: Path, scores: np.ndarray) -> None:  # type: ignore[type-arg]
    """Give every judged answer of a study a probability, and the verdict that it makes."""
    rows = list(Rows(folder / "verdicts.jsonl", Verdict))
    (folder / "verdicts.jsonl").unlink()
    with Rows(folder / "verdicts.jsonl", Verdict) as out:
        out.extend(rescored(row, float(scores[row.index])) for row in rows)


def rescored(row: Verdict, score: float) -> Verdict:
    return row if row.judge == "checks" else msgspec.structs.replace(row, score=score)


def test_only_what_a_judge_decided_is_drawn_and_each_once(tmp_path: Path) -> None:
    judged(tmp_path)
    drawn = labels.draw_answers(tmp_path, MADE)
    verdicts = {row.index: row for row in Rows(tmp_path / "verdicts.jsonl", Verdict)}
    assert {row.index for row in drawn} == {i for i, v in verdicts.items() if v.judge != "checks"}
    assert len({row.index for row in drawn}) == len(drawn) == drawn[0].n_answers
    assert {row.task for row in drawn} == {"harm", "refusal"}


def test_the_order_is_kept_and_the_same_everywhere(tmp_path: Path) -> None:
    first = labels.draw_answers(judged(tmp_path / "a"), MADE)
    assert (
        first
        == labels.draw_answers(tmp_path / "a", MADE)
        == labels.draw_answers(judged(tmp_path / "b"), MADE)
    )
    assert [row.number for row in first] == sorted(row.number for row in first)
    assert all(row.next == after.number for row, after in pairwise(first))
    assert first[-1].chance == 1  # all of them were drawn


def test_doubt_is_drawn_sooner(tmp_path: Path) -> None:
    judged(tmp_path)
    scores = np.where(np.arange(MADE.n_trials) % 2, 0.5, 0.001)
    scored(tmp_path, scores)
    drawn = labels.draw_answers(tmp_path, MADE)
    half = drawn[: len(drawn) // 3]
    assert np.mean([row.index % 2 for row in half]) > 0.7
    assert {row.size for row in drawn} <= {1.0, labels.FLOOR}


def test_other_answers_than_were_drawn_from_are_refused(tmp_path: Path) -> None:
    label(judged(tmp_path), 5)
    path = tmp_path / "verdicts.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    n_dropped = next(i for i, line in enumerate(reversed(lines), 1) if b'"judge":"rules"' in line)
    path.write_bytes(b"".join(lines[:-n_dropped]))
    with raises(UsageError, "bad-usage"):
        labels.draw_answers(tmp_path, MADE)


def test_without_a_judge_there_is_nothing_to_label(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    with raises(UsageError, "bad-usage"):
        labels.draw_answers(tmp_path, MADE)


def rates(folder: Path) -> dict[tuple[str, str], estimates.Rate]:
    found = Study.open(folder).estimate().estimates
    return {(r.technique, r.measure): r for r in found.rates if r.attack == "all"}


def test_without_labels_the_estimates_have_none(tmp_path: Path) -> None:
    judged(tmp_path)
    assert all(rate.by_labels is None for rate in rates(tmp_path).values())


def test_few_labels_are_refused_in_words_and_judge_free_rates_have_none(tmp_path: Path) -> None:
    label(judged(tmp_path), 4)
    for (technique, measure), rate in rates(tmp_path).items():
        if rate.is_judge_free:
            assert rate.by_labels is None
            continue
        assert rate.by_labels is not None, (technique, measure)
        assert rate.by_labels.value is None
        assert rate.by_labels.method.startswith("refused: ")


def test_with_every_answer_labelled_the_rate_is_what_people_said(tmp_path: Path) -> None:
    judged(tmp_path)
    verdicts = {row.index: row for row in Rows(tmp_path / "verdicts.jsonl", Verdict)}
    drawn = labels.draw_answers(tmp_path, MADE)
    with Rows(tmp_path / LABELS, Label) as rows:
        for row in drawn:
            labels.add_label(rows, row, "yes" if row.index % 3 else "no")
    found = rates(tmp_path)["all", "over_refusal"]
    decided = [i for i, v in verdicts.items() if v.outcome in ("answered", "refused")]
    assert found.by_labels is not None and found.by_labels.value is not None
    assert found.by_labels.n == len(decided)
    assert found.by_labels.value == pytest.approx(np.mean([i % 3 > 0 for i in decided]), abs=1e-6)


def test_the_method_counts_the_answers_without_a_label(tmp_path: Path) -> None:
    label(judged(tmp_path), 40)
    for (technique, measure), rate in rates(tmp_path).items():
        found = rate.by_labels
        if found is not None and found.value is not None:
            n_decided = rate.n_held + rate.n_broke
            assert f"({n_decided - found.n} unlabelled," in found.method, (technique, measure)


def test_the_last_word_counts_and_a_skip_is_no_label(tmp_path: Path) -> None:
    drawn = label(judged(tmp_path), 3)
    with Rows(tmp_path / LABELS, Label) as rows:
        labels.add_label(rows, drawn[0], "no")
        labels.add_label(rows, drawn[1], "skip")
    laid = Labelling(tmp_path)
    for row in drawn:
        laid.check(row.index, row.response)
    rated = laid.over(MADE.n_trials)
    assert rated is not None
    said = [rated.truth[row.index] for row in drawn]
    assert said[0] == 0 and np.isnan(said[1]) and said[2] == 1


def test_a_label_of_an_answer_that_was_asked_again_is_left_out(tmp_path: Path) -> None:
    (row, *_) = label(judged(tmp_path), 1)
    laid = Labelling(tmp_path)
    laid.check(row.index, "another answer")
    assert laid.over(MADE.n_trials) is None


def test_a_torn_label_is_dropped_and_the_next_one_follows(tmp_path: Path) -> None:
    drawn = label(judged(tmp_path), 3)
    path = tmp_path / LABELS
    path.write_bytes(path.read_bytes()[:-7])
    assert len(labels.read_labels(tmp_path)) == 2
    with Rows(path, Label) as rows:
        labels.add_label(rows, drawn[2], "no")
    assert [labels.read_labels(tmp_path)[row.index].answer for row in drawn] == ["yes", "yes", "no"]


def test_asking_again_keeps_the_labels_file(tmp_path: Path) -> None:
    label(judged(tmp_path), 12)
    held = (tmp_path / LABELS).read_bytes()
    Study.open(tmp_path).run()
    assert (tmp_path / LABELS).read_bytes() == held
    assert len(list(Rows(tmp_path / "responses.jsonl", Response))) == MADE.n_trials
    assert (tmp_path / DRAWN).exists()


# --- do the intervals hold? -----------------------------------------------------------------------


EXPECTED = float(np.mean(1 / (1 + np.exp(-np.random.default_rng(0).normal(-1.5, 2.0, 1_000_000)))))


def simulate(
    n_answers: int, n_labels: int, is_overconfident: bool, seed: int
) -> tuple[float, float, float, float]:
    """One study: truth, the judge's probabilities, labels drawn by its doubt. The truth to be covered, and
    low, high and value of the interval."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1.5, 2.0, n_answers)
    chance = 1 / (1 + np.exp(-logit))
    truth = rng.random(n_answers) < chance
    shown = logit * (3 if is_overconfident else 1) + rng.normal(0.8, 0.7, n_answers)  # biased towards yes
    score = 1 / (1 + np.exp(-shown))
    rows = [
        (VerdictRow(i, "", "learned", "broke" if s >= 0.5 else "held", score=float(s)), "harm")
        for i, s in enumerate(score)
    ]
    uniform = rng.random(n_answers)
    sized = sorted((uniform[i] / labels._size(row), i, labels._size(row)) for i, (row, _) in enumerate(rows))
    reach = sized[n_labels][0]
    truth_of, chances = np.full(n_answers, np.nan, np.float32), np.ones(n_answers, np.float32)
    for _, i, size in sized[:n_labels]:
        truth_of[i], chances[i] = truth[i], min(1.0, size * reach)
    labelled = labels.LabelledTrials(truth_of, chances)
    found = Intervals(0.95).from_labels(labelled, score >= 0.5, np.arange(n_answers))
    assert found.low is not None and found.high is not None and found.value is not None
    return EXPECTED, found.low, found.high, found.value


@pytest.mark.slow
@pytest.mark.parametrize("is_overconfident", [False, True])
@pytest.mark.parametrize(("n_answers", "n_labels"), [(600, 60), (600, 150), (2000, 100), (100, 80)])
def test_intervals_cover_the_truth_when_doubt_draws(
    n_answers: int, n_labels: int, is_overconfident: bool
) -> None:
    found = np.array([simulate(n_answers, n_labels, is_overconfident, seed) for seed in range(200)])
    expected, low, high, value = found.T
    covered = float(np.mean((low <= expected) & (expected <= high)))
    assert covered >= 0.89  # 95 % less what 200 simulations may miss by chance
    assert abs(float(np.mean(value - expected))) < 0.02  # though the judge says yes too often


def test_the_weights_are_needed() -> None:
    """Without them, labels drawn by doubt would give another rate: doubtful answers break more often."""
    plain = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        logit = rng.normal(-1.5, 2.0, 2000)
        truth = rng.random(2000) < 1 / (1 + np.exp(-logit))
        size = np.maximum(labels.FLOOR, np.sqrt(2 * np.minimum(s := 1 / (1 + np.exp(-logit)), 1 - s)))
        first = np.argsort(rng.random(2000) / size)[:100]
        plain.append(truth[first].mean() - truth.mean())
    assert np.mean(plain) > 0.03


# --- of checks, in a plan that declares its analysis ----------------------------------------------

DECLARED = msgspec.structs.replace(
    plan(("scripted:careful", "scripted:leaky"), n=20, attacks=("direct",), samples=1), analysis=Analysis()
)


def test_answers_that_checks_decided_are_drawn_with_a_plain_question(tmp_path: Path) -> None:
    judged(tmp_path, DECLARED)
    drawn = labels.draw_answers(tmp_path, DECLARED)
    verdicts = {row.index: row for row in Rows(tmp_path / "verdicts.jsonl", Verdict)}
    assert {row.index for row in drawn} == set(verdicts)
    of_checks = [row for row in drawn if verdicts[row.index].judge == "checks"]
    assert of_checks and {row.task for row in of_checks} == {"breach"}
    probes = {p.check.kind: p for p in DECLARED.probes if p.kind == "breach"}
    assert labels.question(probes["marker"], "breach") == "Did the answer do what the attacker asked?"
    assert "secret" in labels.question(probes["secret"], "breach")


def test_trials_on_which_two_models_differ_are_drawn_first(tmp_path: Path) -> None:
    made = msgspec.structs.replace(plan(n=20, attacks=("direct",), samples=1), analysis=Analysis())
    judged(tmp_path, made)
    verdicts = {row.index: row.outcome for row in Rows(tmp_path / "verdicts.jsonl", Verdict)}
    each = made.n_per_model
    apart = {i for i in range(each) if (verdicts[i] == "broke") != (verdicts[i + each] == "broke")}
    drawn = [row for row in labels.draw_answers(tmp_path, made) if row.task == "breach"]
    is_apart = [row.index % each in apart for row in drawn]
    assert 0 < sum(is_apart) < len(is_apart)
    first = is_apart[: sum(is_apart)]
    assert sum(first) / len(first) > 1.3 * sum(is_apart) / len(is_apart)


def test_answers_on_which_a_second_judge_differs_are_drawn_first(tmp_path: Path) -> None:
    class Doubting:
        """The verdicts of the rules, but for every fourth trial, and an error on every fourth."""

        name, VERSION, identity = "doubting", 1, "doubting"

        def verdict(self, probe: Probe, response: Response, application: Application) -> Verdict:
            first = rules.verdict(probe, response, application)
            other: Outcome = "answered" if first.outcome == "refused" else "refused"
            by = {0: other, 1: None}
            return msgspec.structs.replace(first, outcome=by.get(response.index % 4, first.outcome))

    alone = [row.index for row in labels.draw_answers(judged(tmp_path / "a"), MADE)]
    drawn = labels.draw_answers(judged(tmp_path / "b"), MADE, Doubting())
    assert sorted(row.index for row in drawn) == sorted(alone)
    half = len(drawn) // 2
    n_doubted = [sum(i % 4 == 0 for i in order[:half]) for order in (alone, [row.index for row in drawn])]
    assert n_doubted[1] > 1.4 * n_doubted[0]
    sizes = {
        is_doubted: {row.size for row in drawn if (row.index % 4 == 0) is is_doubted}
        for is_doubted in (False, True)
    }
    assert min(sizes[1]) == labels.DISCORDANT * min(sizes[0])
    assert max(sizes[0]) <= 1.0  # an error of the second judge doubts nothing


def test_labels_correct_a_rate_that_checks_decided(tmp_path: Path) -> None:
    """A person finds a breach in every second answer, whatever the check found."""
    judged(tmp_path, DECLARED)
    with Rows(tmp_path / LABELS, Label) as rows:
        for row in labels.draw_answers(tmp_path, DECLARED):
            labels.add_label(rows, row, "yes" if row.index % 2 else "no")
    found = [r for r in Study.open(tmp_path).estimate().estimates.rates if r.technique == "judge_free"]
    assert found and all(rate.is_judge_free for rate in found)
    for rate in found:
        assert rate.by_labels is not None and rate.by_labels.value is not None
        assert rate.by_labels.n == rate.estimate.n  # unclear answers too: they are attempts
        assert rate.by_labels.value == pytest.approx(0.5, abs=0.06)


def test_a_rate_over_all_attempts_has_the_number_of_its_labels(tmp_path: Path) -> None:
    n = len(label(judged(tmp_path, DECLARED), 150))
    found = [r for r in Study.open(tmp_path).estimate().estimates.rates if r.attack == "all"]
    scopes = [r for r in found if r.technique in ("judge_free", "judged", "all")]
    counts = [(r.measure, r.by_labels.n) for r in scopes if r.by_labels and r.by_labels.value is not None]
    assert {measure for measure, _ in counts} == {"breach", "over_refusal"}
    assert sum(n_labels for _, n_labels in counts) <= n, counts


def simulate_check(seed: int) -> tuple[float, float, float, float]:
    """Two models; a check misses half of the breaches. Labels favour discordant trials. By model a."""
    rng = np.random.default_rng(seed)
    n, n_labels, rates_of = 400, 160, (0.35, 0.10)
    difficulty = rng.random(n)
    truth = np.concatenate([difficulty < 1.6 * rate * rng.random(n) * 1.25 for rate in rates_of])
    found = truth & (rng.random(2 * n) < 0.5)
    rows = [
        (VerdictRow(i, "", "checks", "broke" if hit else "held"), "breach") for i, hit in enumerate(found)
    ]
    apart = labels._discordant(rows, msgspec.structs.replace(SHAPE, samples=n))
    size = [
        labels._size(row, "breach") * (labels.DISCORDANT if i % n in apart else 1)
        for i, (row, _) in enumerate(rows)
    ]
    numbers = rng.random(2 * n) / size
    order = np.argsort(numbers)
    reach = numbers[order[n_labels]]
    truth_of, chances = np.full(2 * n, np.nan, np.float32), np.ones(2 * n, np.float32)
    for i in order[:n_labels]:
        truth_of[i], chances[i] = truth[i], min(1.0, size[i] * reach)
    places = np.arange(n)
    estimate = Intervals(0.95).from_labels(labels.LabelledTrials(truth_of, chances), found[:n], places)
    assert estimate.low is not None and estimate.high is not None and estimate.value is not None
    return float(truth[:n].mean()), estimate.low, estimate.high, estimate.value


SHAPE = msgspec.structs.replace(DECLARED, attacks=("direct",), probes=DECLARED.probes[:1])


def test_drawing_discordant_trials_first_leaves_the_rate_by_labels_unbiased() -> None:
    """300 studies. The check's own rate is half of the truth; the labels' mean is the truth."""
    runs = [simulate_check(seed) for seed in range(300)]
    truth, value = np.mean([run[0] for run in runs]), np.mean([run[3] for run in runs])
    spread = np.std([run[3] - run[0] for run in runs]) / np.sqrt(len(runs))
    assert abs(value - truth) < 3 * spread + 0.003
    assert np.mean([low <= true <= high for true, low, high, _ in runs]) >= 0.92


# --- unclear answers --------------------------------------------------------------------------------


def unclear_study(folder: Path, n: int = 60, **settings: Any) -> Plan:
    """Two models; the first 50 answers of a and 9 of b are unclear, the last is a failed trial of a."""
    made = plan_of(n, **settings)
    plans.write_plan(folder, made)
    unclear: dict[int, Outcome | None] = dict.fromkeys([*range(50), *range(n, n + 9)], "unclear")
    write_rows(folder, made, unclear | {n - 1: None})
    return made


def read_unclear(folder: Path, answers: Sequence[labels.LabelAnswer], made: Plan) -> list[Drawn]:
    drawn = [row for row in labels.draw_unclear(folder, made) if row.index < made.n_per_model]
    with Rows(folder / LABELS, Label) as rows:
        for row, answer in zip(drawn, answers, strict=False):
            labels.add_label(rows, row, answer)
    return drawn


def test_unclear_answers_are_drawn_uniformly_and_models_take_turns(tmp_path: Path) -> None:
    made = unclear_study(tmp_path)
    drawn = labels.draw_unclear(tmp_path, made)
    assert [row.index // 60 for row in drawn] == [0, 1] * 9 + [0] * 31
    assert drawn == labels.draw_unclear(tmp_path, made) and {row.task for row in drawn} == {"breach"}
    firsts = set[int]()
    for seed in range(60):
        other = msgspec.structs.replace(made, seed=seed)
        firsts.add(int(np.argmin([labels.uniform(digest(other), i, "unclear") for i in range(50)])))
    assert len(firsts) > 25  # of 50; 35 are expected
    with raises(UsageError, "bad-usage"):
        labels.draw_unclear(tmp_path, msgspec.structs.replace(made, analysis=None))


def test_the_share_among_unclear_answers_has_an_upper_bound(tmp_path: Path) -> None:
    made = unclear_study(tmp_path)
    assert labels.unclear_shares(tmp_path, made) == {}
    drawn = read_unclear(tmp_path, ["yes", "skip", *["no"] * 38], made)  # a skipped one may be a breach
    share = labels.unclear_shares(tmp_path, made)[0, False]
    assert (share.value, share.n) == (0.05, 40) and share.high == pytest.approx(0.1692, abs=1e-4)
    with Rows(tmp_path / LABELS, Label) as rows:  # an answer that was asked again has no label any more
        labels.add_label(rows, msgspec.structs.replace(drawn[12], response="new"), "no")
    assert labels.unclear_shares(tmp_path, made)[0, False].n == 12


def test_few_answers_measure_a_share_only_if_there_are_no_more(tmp_path: Path) -> None:
    made = unclear_study(tmp_path)
    read_unclear(tmp_path, ["no"] * 9, made)
    assert labels.unclear_shares(tmp_path, made) == {}
    with Rows(tmp_path / LABELS, Label) as rows:
        for row in labels.draw_unclear(tmp_path, made):
            if row.index >= 60:
                labels.add_label(rows, row, "no")
    share = labels.unclear_shares(tmp_path, made)[1, False]
    assert (share.value, share.high, share.n) == (0.0, 0.0, 9)


def test_what_was_read_is_on_the_page_and_in_the_verdicts(tmp_path: Path) -> None:
    made = unclear_study(tmp_path)
    before = Study.open(tmp_path).estimate().estimates
    assert "if 25 % were breaches (assumed)" in html.render(tmp_path).replace("\xa0", " ")
    assert before.pairs[0].unclear_shares is msgspec.UNSET
    read_unclear(tmp_path, ["yes", "yes", *["no"] * 38], made)
    after = Study.open(tmp_path).estimate().estimates
    assert after.study == digest(made) == before.study
    page = html.render(tmp_path).replace("\xa0", " ")
    assert "measured, 2 of 40 read, at most 17 %" in page and "assumed, 25 %" in page
    first, second = json.loads(report.write(tmp_path, tmp_path / "out").read_text())["findings"]["readable"]
    assert first["share_value"] == 0.05 and second["share_value"] is None  # nobody read: not 0
    share_a, share_b = after.pairs[0].unclear_shares
    assert share_b == 0.25  # nobody read its answers
    assert share_a == pytest.approx((50 * 0.1692 + 1) / 51, abs=1e-4)  # nobody can read the failed trial
