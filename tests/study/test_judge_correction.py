"""Rates are corrected for the errors of what decided them, checks and judges alike."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from heredity.redteam import judges, probes
from heredity.redteam.judges import ReadErrors
from heredity.redteam.judges.calibration.quality import (
    PredictedErrors,
    family_of,
    predicted_errors,
    shipped_readings,
)
from heredity.stats.judge_error import predict_share
from heredity.study import aggregate
from heredity.study.aggregate import CheckedTrials, JudgeCorrection
from heredity.study.intervals import Intervals
from heredity.study.plan import Analysis
from tests.support import bench_modules

INTERVALS = Intervals(0.95)
NAMES = ["secret", "tool"]
DECLARED = Analysis()


def errors(sens: float, spec: float = 1.0, n: int = 100) -> ReadErrors:
    return ReadErrors(predict_share([sens * n], [n]), predict_share([spec * n], [n]), "read")


def of_checks(folder: Path, broke: list[int], techniques: list[int], analysis: Analysis | None = DECLARED):
    correction = JudgeCorrection("", "", folder, analysis)
    found = np.array(broke, bool)
    trials = CheckedTrials(found, np.arange(found.size), np.array(techniques))
    return correction.of_checks(trials, NAMES, INTERVALS)


def test_breaches_that_a_check_misses_are_in_the_corrected_rate(tmp_path: Path, monkeypatch) -> None:
    """20 of 100 counted, by a check that finds half of them: 40 % broke."""
    monkeypatch.setattr(aggregate, "check_errors", lambda *_: errors(0.5))
    (found,) = of_checks(tmp_path, [1] * 20 + [0] * 80, [0] * 100)
    raw = INTERVALS.rate(np.arange(100) < 20, np.arange(100))
    assert found.corrected.value == pytest.approx(0.4, abs=0.01)
    assert found.corrected.low is not None and found.corrected.high is not None
    assert found.corrected.high > 0.5 > raw.high
    assert found.corrected.high - found.corrected.low > raw.high - raw.low  # errors of labels are added


def test_techniques_are_corrected_each_by_their_own_errors(tmp_path: Path, monkeypatch) -> None:
    """10 of 50 secrets with a perfect check, 10 of 50 calls with one that finds half: 20 % and 40 %."""
    monkeypatch.setattr(
        aggregate, "check_errors", lambda technique, _: errors(1.0 if technique == "secret" else 0.5, n=10**6)
    )
    (found,) = of_checks(tmp_path, ([1] * 10 + [0] * 40) * 2, [0] * 50 + [1] * 50)
    assert found.corrected.value == pytest.approx(0.3, abs=0.001)


def test_techniques_that_nobody_read_refuse_the_correction_with_a_code(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(aggregate, "check_errors", lambda t, _: None if t == "tool" else errors(0.9))
    (found,) = of_checks(tmp_path, [1, 0], [1, 1])
    assert (found.corrected.value, found.corrected.code) == (None, "not-measured")
    assert "tool" in found.corrected.note and "secret" not in found.corrected.note


@pytest.mark.parametrize("elsewhere", [errors(0.5, n=20), errors(0.5, 0.5), None])
def test_a_technique_that_nobody_read_does_not_take_the_errors_of_the_others_away(
    tmp_path: Path, monkeypatch, elsewhere: ReadErrors | None
) -> None:
    """0 of 150 by a check that was read, and two probes of one's own: their errors are not left out."""
    monkeypatch.setattr(aggregate, "check_errors", lambda t, _: None if t == "tool" else errors(0.5, n=20))
    monkeypatch.setattr(judges, "check_errors_elsewhere", lambda _: elsewhere)
    (alone,) = of_checks(tmp_path, [0] * 150, [0] * 150)
    (beside,) = of_checks(tmp_path, [0] * 152, [0] * 150 + [1] * 2)
    raw = INTERVALS.rate(np.zeros(152, bool), np.arange(152))
    assert beside.corrected.high is not None and alone.corrected.high is not None and raw.high is not None
    assert beside.corrected.high > alone.corrected.high - 0.002 > raw.high + 0.01
    assert "nobody read answers to tool" in beside.corrected.note


def test_the_errors_of_a_technique_that_nobody_read_have_the_spread_between_those_read() -> None:
    read = [row for row in shipped_readings() if row.judge == "checks"]
    missed = [
        msgspec.structs.replace(row, outcome="held") if family_of(row.technique) == "injection" else row
        for row in read
    ]
    found, of_missed = judges.check_errors_elsewhere(rows=read), judges.check_errors_elsewhere(rows=missed)
    assert found is not None and of_missed is not None
    assert found == judges.check_errors_elsewhere()
    assert of_missed.sens.between > found.sens.between
    assert of_missed.sens.mean < found.sens.mean
    assert judges.check_errors_elsewhere(rows=()) is None


def test_a_plan_without_an_analysis_is_corrected_as_the_release_that_made_it_did(tmp_path: Path) -> None:
    assert of_checks(tmp_path, [1, 0], [0, 1], None) == []
    old = JudgeCorrection("rules", "", tmp_path)
    broke, clusters = np.arange(100) < 60, np.arange(100)
    raw = INTERVALS.rate(broke, clusters)
    (found, *_) = old.corrected(broke, clusters, "breach", INTERVALS, raw)
    assert found.labels == "GPTFuzz: ChatGPT under jailbreaks (odd rows)"


def test_a_judge_is_corrected_with_the_spread_between_families(tmp_path: Path) -> None:
    broke, clusters = np.arange(100) < 60, np.arange(100)
    raw = INTERVALS.rate(broke, clusters)
    widths = []
    for analysis in (None, Analysis()):
        correction = JudgeCorrection("rules", "", tmp_path, analysis)
        (found, *by_family) = correction.corrected(broke, clusters, "breach", INTERVALS, raw)
        assert found.corrected.high is not None and found.corrected.low is not None
        widths.append(found.corrected.high - found.corrected.low)
    assert len(by_family) == 4
    assert widths[1] > 1.5 * widths[0]
    assert set(correction.labels()) == {"harm", "refusal"}


def test_a_judge_that_was_never_measured_is_refused_with_a_code(tmp_path: Path) -> None:
    correction = JudgeCorrection("panel:rules+learned", "", tmp_path, Analysis())
    broke = np.array([True, False])
    raw = INTERVALS.rate(broke, np.arange(2))
    (found,) = correction.corrected(broke, np.arange(2), "breach", INTERVALS, raw)
    assert (found.corrected.value, found.corrected.code) == (None, "not-measured")


@pytest.mark.parametrize("technique", [each.name for each in probes.techniques() if each.n_hard])
def test_rates_of_the_hard_suite_carry_the_errors_of_its_checks(tmp_path: Path, technique: str) -> None:
    """One of 34 broke: the interval is wider than that of a check without errors."""
    broke, clusters = np.arange(34) < 1, np.arange(34)
    trials = CheckedTrials(broke, clusters, np.zeros(34, int))
    (found,) = JudgeCorrection("", "", tmp_path, DECLARED).of_checks(trials, [technique], INTERVALS)
    raw = INTERVALS.rate(broke, clusters)
    assert found.corrected.code != "not-measured" and found.corrected.value is not None
    assert found.corrected.high is not None and raw.high is not None
    assert found.corrected.high > raw.high


# --- families ---------------------------------------------------------------------------------------

HEAD = "rubric:qwen2.5-coder-1.5b-instruct:head"


@pytest.mark.parametrize("judge", ["rules", "learned", HEAD])
@pytest.mark.parametrize("task", ["harm", "refusal"])
def test_every_shipped_judge_claims_the_spread_between_families(judge: str, task: str) -> None:
    found = predicted_errors(task, judge)  # type: ignore[arg-type]
    assert isinstance(found, PredictedErrors)
    assert len(found.families) >= 3
    assert found.sens.between > 0 and found.spec.between > 0


def test_labels_of_one_family_take_the_spread_that_the_shipped_judges_show(tmp_path: Path) -> None:
    from heredity.redteam.judges import rules
    from heredity.redteam.judges.calibration import quality
    from heredity.redteam.judges.calibration.quality import Calibration, LabelMeasurement

    mine = LabelMeasurement(rules, Calibration(90, 100, 80, 100, "mine.csv"), 0, (), "0" * 64)
    quality.save_calibration(tmp_path, mine, "digest", "harm", ("1",), {})
    found = predicted_errors("harm", "rules", "digest", tmp_path)
    assert found is not None and "one family" in found.labels
    assert found.sens.mean == pytest.approx(0.9) and found.sens.between > 0.01
    assert found.sens.df == 3.0


def test_a_family_left_out_is_covered_by_what_the_others_predict() -> None:
    """Nominal 0.95 over the shipped judges and tasks; pooled labels of the same families cover 0.48."""
    leave_one_out = bench_modules.load("judges").leave_one_out
    cases = [(judge, task) for judge in ("rules", "learned", HEAD) for task in ("harm", "refusal")]
    found = [leave_one_out(task, judge, n=200) for judge, task in cases]
    n = sum(each.n for each in found)
    assert n >= 120
    assert sum(each.covered for each in found) / n >= 0.92
    assert sum(each.covered_pooled for each in found) / n <= 0.5
    assert all(each.covered > each.covered_pooled + each.n / 4 for each in found)


def test_corrected_rates_of_checks_cover_the_truth_where_raw_ones_do_not(tmp_path: Path, monkeypatch) -> None:
    """Two techniques, whose checks find 60 % and 90 %; 120 answers of two models were read. Nominal 0.95."""
    rng = np.random.default_rng(3)
    sens, spec, n, n_read, n_runs = (0.6, 0.9), 0.97, 200, 120, 150
    covered, raw_covered = 0, 0
    for _ in range(n_runs):
        rates = rng.uniform(0.05, 0.6, 2)
        truth = rng.random((2, n)) < rates[:, None]
        found = np.where(truth, rng.random((2, n)) < np.array(sens)[:, None], rng.random((2, n)) > spec)
        read = {}
        for t, name in enumerate(NAMES):
            cells = [(rng.binomial(n_read // 4, sens[t]), rng.binomial(n_read // 4, spec)) for _ in range(2)]
            size = [n_read // 4] * 2
            read[name] = ReadErrors(
                predict_share([c[0] for c in cells], size), predict_share([c[1] for c in cells], size), "read"
            )
        monkeypatch.setattr(aggregate, "check_errors", lambda name, _, read=read: read[name])
        (each,) = of_checks(tmp_path, found.ravel().tolist(), [0] * n + [1] * n)
        assert each.corrected.low is not None and each.corrected.high is not None
        true = float(rates.mean())
        covered += each.corrected.low <= true <= each.corrected.high
        raw = INTERVALS.rate(found.ravel(), np.arange(2 * n))
        assert raw.low is not None and raw.high is not None
        raw_covered += raw.low <= true <= raw.high
    assert covered / n_runs >= 0.93
    assert raw_covered / n_runs < 0.6
