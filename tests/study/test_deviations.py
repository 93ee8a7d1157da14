"""Each deviation from a declared analysis has a code, and a study as it was declared has none."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from heredity.core.files import Rows
from heredity.core.records import Verdict
from heredity.study import aggregate
from heredity.study.estimates import Estimates
from heredity.study.plan import PlanFile, read_saved
from heredity.study.report import html
from heredity.study.study import Study
from tests.study.importers.test_garak import garak_report
from tests.support.errors import run_here
from tests.support.importer_files import made
from tests.support.studies import APPLICATION, probes

MODELS = ("scripted:mixed", "scripted:careful")


def new(folder: Path, *models: str, n: int = 12, **settings: object) -> Study:
    return Study(models or MODELS, APPLICATION, probes(n), out=folder, **settings)  # type: ignore[arg-type]


def codes(found: Estimates) -> list[str]:
    return [each.code for each in found.deviations]


def test_a_study_as_it_was_declared_has_no_deviation(tmp_path: Path) -> None:
    found = new(tmp_path / "s").run().estimates
    assert codes(found) == [] and found.declared_at == read_saved(tmp_path / "s").at
    assert found.forecast == read_saved(tmp_path / "s").forecast and found.forecast is not None
    assert not (tmp_path / "s" / "events.jsonl").exists()
    aggregate.read_proven(tmp_path / "s")


def test_another_judge_is_a_deviation_and_so_are_verdicts_given_again(tmp_path: Path) -> None:
    new(tmp_path / "s").run()
    found = Study.open(tmp_path / "s", judge="rubric:scripted:careful").run().estimates
    assert codes(found) == ["another-judge", "judged-again"]
    assert "rules" in found.deviations[0].words and "rubric:scripted:careful" in found.deviations[0].words
    again = Study.open(tmp_path / "s", judge="rules").run().estimates
    assert codes(again) == ["judged-again"] * 2, "the declared judge decides; both were seen before"
    aggregate.read_proven(tmp_path / "s")


def test_a_later_version_of_the_checks_is_a_deviation(tmp_path: Path) -> None:
    new(tmp_path / "s").run()
    path = tmp_path / "s" / "verdicts.jsonl"
    rows = [
        msgspec.structs.replace(row, judged_by="older" if row.judge == "checks" else row.judged_by)
        for row in Rows(path, Verdict)
    ]
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    found = Study.open(tmp_path / "s").run().estimates
    assert codes(found) == ["judged-again"] and "checks" in found.deviations[0].words
    n = sum(row.judge == "checks" for row in rows)
    assert str(n) in found.deviations[0].words


def test_errors_that_are_asked_again_are_a_deviation(tmp_path: Path) -> None:
    new(tmp_path / "s", "scripted:flaky", "scripted:careful").run()
    found = new(tmp_path / "s", "scripted:flaky", "scripted:careful").run(retry_errors=True).estimates
    assert {"errors-retried", "trials-failed"} <= set(codes(found))


def test_estimates_that_were_read_before_the_last_answer_are_a_deviation(tmp_path: Path) -> None:
    study = new(tmp_path / "s")
    study.run()
    responses, verdicts = (tmp_path / "s" / name for name in ("responses.jsonl", "verdicts.jsonl"))
    for path in (responses, verdicts):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(line for line in lines if msgspec.json.decode(line)["index"] < 40))
    early = study.estimate().estimates
    assert codes(early) == ["trials-missing", "family-differs", "family-differs"]
    found = new(tmp_path / "s").run().estimates
    assert codes(found) == ["extended"] and "40 trials" in found.deviations[0].words


def test_a_plan_that_is_younger_than_its_answers_is_a_deviation(tmp_path: Path) -> None:
    new(tmp_path / "s").run()
    saved = read_saved(tmp_path / "s")
    later = msgspec.structs.replace(saved, at="2999-01-01T00:00:00+00:00")
    assert isinstance(later, PlanFile)
    (tmp_path / "s" / "plan.json").write_bytes(msgspec.json.encode(later))
    assert codes(Study.open(tmp_path / "s").estimate().estimates) == ["answered-before", "plan-edited"]


def test_an_import_declares_after_its_answers(tmp_path: Path) -> None:
    made(tmp_path / "s", garak_report(tmp_path / "garak.1.report.jsonl"))
    assert codes(Study.open(tmp_path / "s").run().estimates)[0] == "recorded-before"


def test_a_plan_without_an_analysis_has_nothing_to_depart_from(tmp_path: Path) -> None:
    from heredity.study import plan as plans

    old = new(tmp_path / "s").resolved.questions
    plans.write_plan(tmp_path / "s", old)
    found = Study.open(tmp_path / "s").run().estimates
    assert found.deviations == () and found.forecast is None and found.declared_at == ""


@pytest.mark.parametrize("form", ["html", "markdown"])
def test_the_report_says_what_was_declared_and_marks_each_deviation(tmp_path: Path, form: str) -> None:
    new(tmp_path / "s", unclear_share=0.5).run()
    Study.open(tmp_path / "s", judge="rubric:scripted:careful").run()
    done = run_here("report", "s", "--format", form, "--out", "now", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "now").read_text("utf-8").replace("\u00a0", " ")
    for words in ("another-judge", "judged-again", "What this plan can show", "50 %"):
        assert words in page, words
    assert "another-judge" not in html.render(tmp_path / "s").partition("Declared before")[0]


def test_an_attack_for_one_technique_leaves_the_others_out_as_planned(tmp_path: Path) -> None:
    found = new(tmp_path / "s", attacks=("direct", "prefill@planted_secret")).run().estimates
    assert found.n_skipped > 0 and codes(found) == []


@pytest.mark.parametrize("field", ["at", "forecast"])
def test_an_edit_of_the_plans_time_or_forecast_is_a_deviation(tmp_path: Path, field: str) -> None:
    new(tmp_path / "s").run()
    saved = read_saved(tmp_path / "s")
    edits = {"at": "2020-01-01T00:00:00+00:00", "forecast": msgspec.UNSET}
    edited = msgspec.structs.replace(saved, **{field: edits[field]})
    (tmp_path / "s" / "plan.json").write_bytes(msgspec.json.encode(edited))
    found = Study.open(tmp_path / "s").estimate().estimates
    assert codes(found) == ["plan-edited"]
    assert "edited after the first answer" in html.write(tmp_path / "s", tmp_path / "r.html").read_text()


def test_runs_of_a_release_without_a_seal_show_no_edit(tmp_path: Path) -> None:
    new(tmp_path / "s").run()
    path = tmp_path / "s" / "runs.jsonl"
    rows = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    assert all(row.pop("plan_seal") for row in rows)
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    assert codes(Study.open(tmp_path / "s").estimate().estimates) == []
