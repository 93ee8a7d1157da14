"""A judge that gives other verdicts on the canary answers than were recorded is reported."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from heredity.core.files import Rows
from heredity.redteam.judges import rules
from heredity.redteam.judges.calibration.quality import CanaryVerdicts
from heredity.study.aggregate import read_study
from heredity.study.findings.drift import CANARIES, NAME, JudgeDrift, find_drift
from heredity.study.headline import headline
from heredity.study.plan import Analysis
from heredity.study.report import html
from heredity.study.study import Study
from tests.support.studies import plan, study

MADE = msgspec.structs.replace(
    plan(("scripted:mixed",), n=2, attacks=("direct",), samples=1), analysis=Analysis()
)


def rows(folder: Path) -> list[CanaryVerdicts]:
    return list(Rows(folder / CANARIES, CanaryVerdicts))


def test_every_run_that_judges_judges_the_canaries_again(tmp_path: Path) -> None:
    study(tmp_path, MADE).run()
    (row,) = rows(tmp_path)
    assert row.judge == "rules" and len(row.outcomes) >= 24
    Study.open(tmp_path).run()  # nothing is left to judge
    assert len(rows(tmp_path)) == 1
    (tmp_path / "verdicts.jsonl").unlink()
    Study.open(tmp_path).run()
    assert len(rows(tmp_path)) == 2


def test_a_judge_that_did_not_drift_is_no_warning(tmp_path: Path) -> None:
    found = study(tmp_path, MADE).run().estimates
    (row,) = found.rows(NAME, JudgeDrift)
    assert (row.source, row.changed) == ("release", ())
    assert not any("drifted" in line for line in headline(found).warnings)
    page = html.write(tmp_path, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "0 verdicts changed" in page


def test_a_judge_that_drifted_is_named_with_the_answers_that_changed(tmp_path: Path, monkeypatch) -> None:
    real = rules.verdict

    def drifted(probe, response, application):
        row = real(probe, response, application)
        is_one = probe.id == "refusal/answer-short"
        return msgspec.structs.replace(row, outcome="refused") if is_one else row

    monkeypatch.setattr(rules, "verdict", drifted)
    found = study(tmp_path, MADE).run().estimates
    (row,) = found.rows(NAME, JudgeDrift)
    assert row.changed == ("refusal/answer-short",)
    (line,) = [line for line in headline(found).warnings if "drifted" in line]
    assert "1 of" in line and "refusal/answer-short" in line
    assert read_study(tmp_path).estimates.rows(NAME, JudgeDrift) == (row,)


def test_a_judge_without_a_record_is_compared_with_the_first_run_of_its_study(tmp_path: Path) -> None:
    study(tmp_path, MADE).run()
    (first,) = rows(tmp_path)
    unknown = msgspec.structs.replace(first, judge="rubric:x", judged_by="0" * 16)
    later = msgspec.structs.replace(unknown, outcomes=dict(unknown.outcomes) | {"harm/echo": "broke"})
    with Rows(tmp_path / CANARIES, CanaryVerdicts) as out:
        out.append(unknown)
    assert find_drift(tmp_path, "rubric:x", "0" * 16) is None  # nothing to compare with
    with Rows(tmp_path / CANARIES, CanaryVerdicts) as out:
        out.append(later)
    found = find_drift(tmp_path, "rubric:x", "0" * 16)
    assert found is not None and (found.source, found.changed) == ("first run", ("harm/echo",))


def test_a_calibration_records_the_canaries_for_later_studies(tmp_path: Path) -> None:
    from heredity.redteam.judges import identity
    from heredity.redteam.judges.calibration import quality
    from heredity.redteam.judges.calibration.quality import Calibration, LabelMeasurement

    study(tmp_path, MADE).run()
    mine = LabelMeasurement(rules, Calibration(90, 100, 80, 100, "mine.csv"), 0, (), "0" * 64)
    quality.save_calibration(tmp_path, mine, identity(rules), "harm", ("1",), {})
    found = find_drift(tmp_path, "rules", identity(rules))
    assert found is not None and (found.source, found.changed) == ("calibration", ())


@pytest.mark.parametrize("kind", ["breach"])
def test_a_study_without_a_judge_judges_no_canaries(tmp_path: Path, kind: str) -> None:
    probes = tuple(
        msgspec.structs.replace(p, twin=None, why_no_twin="none") for p in MADE.probes
        if p.kind == kind and p.check.kind != "refusal"
    )  # fmt: skip
    study(tmp_path, msgspec.structs.replace(MADE, probes=probes)).run()
    assert not (tmp_path / CANARIES).exists()
