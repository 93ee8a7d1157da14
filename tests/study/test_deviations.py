"""Each deviation from a declared analysis has a code, and a study as it was declared has none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from heredity.core.files import Rows
from heredity.core.records import Verdict, digest
from heredity.study import aggregate
from heredity.study import plan as plans
from heredity.study.estimates import Estimates
from heredity.study.plan import Plan, PlanFile, read_saved
from heredity.study.report import html
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from tests.study.importers.test_garak import garak_report
from tests.support.errors import run_here
from tests.support.importer_files import made
from tests.support.studies import APPLICATION, probes

MODELS = ("scripted:mixed", "scripted:careful")


def new(folder: Path, *models: str, n: int = 12, **settings: object) -> Study:
    return Study(StudySpec(models or MODELS, APPLICATION, probes=probes(n), out=folder, **settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "s"
    new(folder).run()
    return folder


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> None:
    """A study as it was declared, in the folder "s"."""
    shutil.copytree(whole, tmp_path / "s")


def codes(found: Estimates) -> list[str]:
    return [each.code for each in found.deviations]


def test_a_study_as_it_was_declared_has_no_deviation(tmp_path: Path) -> None:
    found = new(tmp_path / "s").run().estimates
    assert codes(found) == [] and found.declared_at == read_saved(tmp_path / "s").at
    assert found.forecast == read_saved(tmp_path / "s").forecast and found.forecast is not None
    assert not (tmp_path / "s" / "events.jsonl").exists()
    aggregate.read_proven(tmp_path / "s")


@pytest.mark.usefixtures("finished")
def test_another_judge_is_a_deviation_and_so_are_verdicts_given_again(tmp_path: Path) -> None:
    found = Study.open(tmp_path / "s", judge="rubric:scripted:careful").run().estimates
    assert codes(found) == ["another-judge", "judged-again"]
    assert "rules" in found.deviations[0].words and "rubric:scripted:careful" in found.deviations[0].words
    again = Study.open(tmp_path / "s", judge="rules").run().estimates
    assert codes(again) == ["judged-again"] * 2, "the declared judge decides; both were seen before"
    aggregate.read_proven(tmp_path / "s")


@pytest.mark.usefixtures("finished")
def test_a_later_version_of_the_checks_is_a_deviation(tmp_path: Path) -> None:
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
    rewrite(tmp_path / "s" / "runs.jsonl", lambda row: None if row["n_asked"] else row)  # as killed runs
    early = study.estimate().estimates
    assert codes(early) == ["trials-missing", "family-differs", "family-differs"]
    found = new(tmp_path / "s").run().estimates
    assert codes(found) == ["extended"] and "40 trials" in found.deviations[0].words


@pytest.mark.usefixtures("finished")
def test_a_plan_that_is_younger_than_its_answers_is_a_deviation(tmp_path: Path) -> None:
    saved = read_saved(tmp_path / "s")
    later = msgspec.structs.replace(saved, at="2999-01-01T00:00:00+00:00")
    assert isinstance(later, PlanFile)
    (tmp_path / "s" / "plan.json").write_bytes(msgspec.json.encode(later))
    assert codes(Study.open(tmp_path / "s").estimate().estimates) == ["answered-before", "plan-edited"]


def test_an_import_declares_after_its_answers(tmp_path: Path) -> None:
    made(tmp_path / "s", garak_report(tmp_path / "garak.1.report.jsonl"))
    assert codes(Study.open(tmp_path / "s").run().estimates)[0] == "recorded-before"


def test_a_plan_without_an_analysis_has_nothing_to_depart_from(tmp_path: Path) -> None:
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


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("field", ["at", "forecast"])
def test_an_edit_of_the_plans_time_or_forecast_is_a_deviation(tmp_path: Path, field: str) -> None:
    saved = read_saved(tmp_path / "s")
    edits = {"at": "2020-01-01T00:00:00+00:00", "forecast": msgspec.UNSET}
    edited = msgspec.structs.replace(saved, **{field: edits[field]})
    (tmp_path / "s" / "plan.json").write_bytes(msgspec.json.encode(edited))
    found = Study.open(tmp_path / "s").estimate().estimates
    assert codes(found) == ["plan-edited"]
    assert "edited after the first answer" in html.write(tmp_path / "s", tmp_path / "r.html").read_text()


def rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Change every row of a file of JSON lines; None drops it."""
    rows = [change(msgspec.json.decode(line)) for line in path.read_bytes().splitlines()]
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows if row is not None))


def unsealed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "plan_seal"}


def edit(folder: Path, change: Callable[[Plan], Plan]) -> None:
    """Edit the plan in plan.json, and compute its digest again."""
    saved = read_saved(folder)
    plan = change(saved.plan)
    edited = msgspec.structs.replace(saved, plan=plan, study=digest(plan))
    (folder / "plan.json").write_bytes(msgspec.json.encode(edited))


def undeclared(plan: Plan) -> Plan:
    return plan.questions


def of_decided(plan: Plan) -> Plan:
    assert plan.analysis is not None
    analysis = msgspec.structs.replace(plan.analysis, endpoint="decided_trials")
    return msgspec.structs.replace(plan, analysis=analysis)


def of_another_margin(plan: Plan) -> Plan:
    return msgspec.structs.replace(plan, margin=0.3)


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("change", [of_decided, of_another_margin])
def test_an_edit_of_the_plan_itself_is_named_as_one(tmp_path: Path, change: Callable[[Plan], Plan]) -> None:
    edit(tmp_path / "s", change)
    found = Study.open(tmp_path / "s").estimate().estimates
    assert codes(found) == ["plan-edited"]
    assert "margin" in found.deviations[0].words and "endpoint" in found.deviations[0].words


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("form", ["html", "markdown"])
def test_a_declared_analysis_that_is_gone_is_an_edit_and_the_report_shows_it(
    tmp_path: Path, form: str
) -> None:
    edit(tmp_path / "s", undeclared)
    assert codes(Study.open(tmp_path / "s").estimate().estimates) == ["plan-edited"]
    done = run_here("report", "s", "--format", form, "--out", "now", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "plan-edited" in (tmp_path / "now").read_text("utf-8")


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("is_edited", [True, False])
@pytest.mark.parametrize("runs", ["deleted", "emptied", "unsealed", "of one model"])
def test_a_plan_whose_answers_have_no_sealed_run_may_have_been_edited(
    tmp_path: Path, runs: str, is_edited: bool
) -> None:
    """So may that of a release that wrote no seal: nobody can tell it from a seal that was removed."""
    path = tmp_path / "s" / "runs.jsonl"
    if is_edited:
        edit(tmp_path / "s", of_decided)
    if runs == "deleted":
        path.unlink()
    elif runs == "emptied":
        path.write_bytes(b"")
    elif runs == "unsealed":
        rewrite(path, unsealed)
    else:
        model = msgspec.json.decode(path.read_bytes().splitlines()[0])["model"]
        rewrite(path, lambda row: row if row["model"] != model else None)
    expected = ["plan-edited"] * (is_edited and runs == "of one model") + ["plan-unsealed"]
    found = Study.open(tmp_path / "s").estimate().estimates
    assert codes(found) == expected
    assert ("1 model" if runs == "of one model" else "2 models") in found.deviations[-1].words


def test_a_plan_that_was_never_dated_needs_no_seal(tmp_path: Path) -> None:
    """As releases wrote it that declared no analysis."""
    plans.write_plan(tmp_path / "s", new(tmp_path / "s").resolved.questions)
    Study.open(tmp_path / "s").run()
    rewrite(tmp_path / "s" / "runs.jsonl", unsealed)
    assert codes(Study.open(tmp_path / "s").estimate().estimates) == []


def test_a_plan_without_answers_needs_no_seal(tmp_path: Path) -> None:
    new(tmp_path / "s").plan()
    assert "plan-unsealed" not in codes(Study.open(tmp_path / "s").estimate().estimates)


def drop(folder: Path, *indices: int) -> None:
    """Delete the answers of these trials and their verdicts."""
    for name in ("responses.jsonl", "verdicts.jsonl"):
        rewrite(folder / name, lambda row: None if row["index"] in indices else row)


@pytest.mark.usefixtures("finished")
def test_answers_that_were_removed_and_asked_again_are_a_deviation(tmp_path: Path) -> None:
    drop(tmp_path / "s", *range(10))
    found = Study.open(tmp_path / "s").run().estimates
    assert codes(found) == ["answers-removed"] and "10 answers" in found.deviations[0].words
    aggregate.read_proven(tmp_path / "s")


@pytest.mark.usefixtures("finished")
def test_answers_that_were_removed_show_beside_a_killed_run_of_another_model(tmp_path: Path) -> None:
    """A killed run counted nothing, so its answers must not stand for those of the other model."""
    rows = [msgspec.json.decode(line) for line in (tmp_path / "s" / "runs.jsonl").read_bytes().splitlines()]
    killed = rows[-1]["model"]
    rewrite(
        tmp_path / "s" / "runs.jsonl",
        lambda row: None if row["model"] == killed and row["n_asked"] else row,
    )
    assert codes(Study.open(tmp_path / "s").estimate().estimates) == []
    drop(tmp_path / "s", 0, 1)
    found = Study.open(tmp_path / "s").run().estimates
    assert codes(found) == ["answers-removed"] and "2 answers" in found.deviations[0].words


def test_answers_that_are_not_judged_yet_are_not_removed(tmp_path: Path) -> None:
    new(tmp_path / "s").ask()
    assert "answers-removed" not in codes(Study.open(tmp_path / "s").estimate().estimates)


def test_a_resumed_run_and_errors_asked_again_remove_no_answer(tmp_path: Path) -> None:
    models = ("scripted:flaky", "scripted:careful")
    new(tmp_path / "s", *models).run()
    for _ in range(2):
        found = new(tmp_path / "s", *models).run(retry_errors=True).estimates
        assert "errors-retried" in codes(found) and "answers-removed" not in codes(found)
