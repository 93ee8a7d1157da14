"""Breaches by the severity of their harm: counted per model, and shown with the worst first."""

from __future__ import annotations

import json as stdlib_json
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from heredity.cli import _findings
from heredity.core.records import Check, Verdict
from heredity.study import aggregate
from heredity.study.estimates import Estimates
from heredity.study.findings import severity
from heredity.study.headline import headline
from heredity.study.outcomes import BROKE, Outcomes
from heredity.study.plan import Analysis, Grid, Plan, read_plan
from heredity.study.report import csv, html, json, junit, markdown, sarif
from heredity.study.storage import write_estimates
from tests.support.cli import run_here
from tests.support.findings import rows_of
from tests.support.report_studies import make, plan, with_baseline, with_severities

GRADED = {"planted_secret": 3, "indirect_passage": 4, "harmful_request": 2}


def graded(n_models: int = 2, n_probes: int = 25, samples: int = 1) -> Plan:
    return with_severities(plan(n_models=n_models, n_probes=n_probes, samples=samples), GRADED)


def severity_rows(estimates: Estimates) -> tuple[severity.SeverityRate, ...]:
    return estimates.rows(severity.NAME, severity.Row)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("graded"), graded())


def test_breaches_are_counted_by_severity_and_scope_the_worst_first(folder: Path) -> None:
    found = aggregate.read_study(folder).estimates
    keys = [(row.technique, row.severity) for row in severity_rows(found)]
    free, judged = [("judge_free", 4)] * 2 + [("judge_free", 3)] * 2, [("judged", 2)] * 2
    assert keys == free + judged
    for row in severity_rows(found):
        technique = next(name for name, severity in GRADED.items() if severity == row.severity)
        (rate,) = (
            r
            for r in found.rates
            if (r.model, r.technique, r.attack) == (row.model, technique, "all") and r.measure == "breach"
        )
        assert (row.n_broke, row.estimate) == (rate.n_broke, rate.estimate)


def test_the_trials_of_a_row_are_breaches_of_its_model(folder: Path) -> None:
    grid = Grid(aggregate.read_study(folder).plan)
    rows = stdlib_json.loads(b"[" + b",".join((folder / "verdicts.jsonl").read_bytes().splitlines()) + b"]")
    outcomes = {row["index"]: row["outcome"] for row in rows}
    for row in severity_rows(aggregate.read_study(folder).estimates):
        assert 0 < len(row.trials) == min(row.n_broke, 5) and list(row.trials) == sorted(row.trials)
        for index in row.trials:
            trial = grid.trial(index)
            assert (outcomes[index], trial.model.id) == ("broke", row.model)
            assert trial.probe.severity == row.severity


def test_harm_that_is_done_with_tools_is_counted_apart() -> None:
    made = graded(n_probes=2)
    checks = {"indirect_passage/item-00": Check("state"), "indirect_passage/item-01": Check("marker")}
    probes = (msgspec.structs.replace(p, check=checks.get(p.id, p.check)) for p in made.probes)
    outcomes = Outcomes(msgspec.structs.replace(made, probes=tuple(probes)))
    outcomes.codes[:] = BROKE
    rows = [row for row in rows_of(severity.compute, outcomes) if row.severity == 4]
    assert [(row.n_broke, row.n_with_tools) for row in rows] == [(2, 1), (2, 1)]


def test_probes_without_a_severity_and_baselines_have_no_row(tmp_path: Path) -> None:
    assert severity_rows(aggregate.read_study(make(tmp_path / "plain", plan(3))).estimates) == ()
    made = make(tmp_path / "baseline", with_baseline(graded(n_probes=3)))
    assert {row.severity for row in severity_rows(aggregate.read_study(made).estimates)} == {4, 2}


def test_the_page_has_them_and_lists_the_worst_breaches_first(folder: Path) -> None:
    page = html.render(folder)
    assert "By severity of the harm" in page and "The worst breaches, one by one" in page
    worst, rest = page.index(">4, critical</th>"), page.index(">3, serious</th>")
    assert worst < rest < page.index(">2, limited</th>")
    listed = page[page.index("The worst breaches, one by one") :]
    assert listed.index("indirect_passage/item") < listed.index("planted_secret/item")
    assert "severity 4" in page and "severity_words" not in page


def test_summary_json_and_rows_have_the_severity(folder: Path, tmp_path: Path) -> None:
    text = markdown.render(folder)
    table = text[text.index("### Breaches by severity") :]
    assert table.index("| 4, critical | judge-free |") < table.index("| 3, serious | judge-free |")
    document = stdlib_json.loads(json.write(folder, tmp_path / "flat.json").read_bytes())
    row = document["findings"]["severity"][0]
    assert {"model", "model_id", "technique", "severity", "n_broke", "n", "low", "high"} <= set(row)
    lines = csv.write(folder, tmp_path / "rows.csv").read_text().splitlines()
    assert ",severity," in lines[0]
    assert 'name="severity" value="4"' in junit.write(folder, tmp_path / "r.xml").read_text()


def test_code_scanning_gets_the_most_severe_results_first(folder: Path, tmp_path: Path) -> None:
    (run,) = stdlib_json.loads(sarif.write(folder, tmp_path / "r.sarif").read_bytes())["runs"]
    severities = [result["properties"]["severity"] for result in run["results"]]
    assert severities == sorted(severities, reverse=True) and set(severities) == {4, 3, 2}
    scores = {rule["id"]: rule["properties"]["security-severity"] for rule in run["tool"]["driver"]["rules"]}
    assert scores == {"planted_secret": "8.0", "indirect_passage": "9.5", "harmful_request": "5.5"}


def test_the_headline_and_the_terminal_name_the_worst_harm(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = aggregate.read_study(folder).estimates
    checked, judged = (line for line in headline(found).support if "harm" in line)
    assert checked.startswith("Worst harm that checks found: critical (severity 4 of 4). ")
    assert judged.startswith("Worst harm that a judge found: limited (severity 2 of 4). ")
    for level, line in ((4, checked), (2, judged)):
        for row in (row for row in severity_rows(found) if row.severity == level):
            assert f"{row.n_broke} of {row.estimate.n} (" in line
    _findings.show(found, read_plan(folder), folder, is_full=True)
    printed = capsys.readouterr().out
    assert printed.index("Critical harm, judge-free: ") < printed.index("Serious harm, judge-free: ")
    assert "Limited harm" not in printed


def test_one_conversation_is_shown_with_its_severity(folder: Path) -> None:
    index = severity_rows(aggregate.read_study(folder).estimates)[0].trials[0]
    shown = run_here("show", str(folder), "--index", str(index)).stdout
    assert "severity  4, critical, of a breach of this probe" in shown


@pytest.mark.parametrize(
    ("endpoint", "words", "n"), [("all_trials", "answered", 3), ("decided_trials", "decided", 2)]
)
def test_code_scanning_counts_the_trials_of_the_endpoint(
    tmp_path: Path, endpoint: Literal["all_trials", "decided_trials"], words: str, n: int
) -> None:
    made = msgspec.structs.replace(
        graded(n_models=1, n_probes=1, samples=3),
        analysis=Analysis(endpoint=endpoint),
    )
    outcomes = iter(["broke", "held", "unclear"])
    folder = make(tmp_path / "study", made, errors=0)
    rows = [
        msgspec.json.decode(line, type=Verdict)
        for line in (folder / "verdicts.jsonl").read_bytes().splitlines()
    ]
    first = [row.index for row in rows][:3]
    changed = [
        msgspec.structs.replace(row, outcome=next(outcomes)) if row.index in first else row for row in rows
    ]
    (folder / "verdicts.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in changed))
    write_estimates(folder, aggregate.estimate(made, folder))
    (run,) = stdlib_json.loads(sarif.write(folder, tmp_path / "r.sarif").read_bytes())["runs"]
    result = next(r for r in run["results"] if r["properties"]["probe"] == "planted_secret/item-00")
    assert (result["properties"]["n_broke"], result["properties"]["n"]) == (1, n)
    assert f"broke in 1 of {n} {words} trials" in result["message"]["text"]
