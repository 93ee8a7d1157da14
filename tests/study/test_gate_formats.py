"""A gate for machines: JSON, JUnit, annotations and a summary. What a study says stays text in each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from heredity.cli import main
from heredity.study import gate as gates
from heredity.study.estimates import JUDGED, Estimates
from heredity.study.gate import GateRule, gate
from heredity.study.spec import SourcePlace, StudySources, save_sources
from tests.support import gate_estimates, studies
from tests.support.gate_estimates import FIRST, SECOND, both, with_counts, with_pair

DESK = SourcePlace("desks/support desk.toml", 7)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Estimates:
    """A made-up study without errors and unclear answers."""
    return gate_estimates.clean(tmp_path_factory.mktemp("clean"))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real study of scripted models, whose application is written in desks/support desk.toml."""
    folder = tmp_path_factory.mktemp("studied")
    studies.study(folder).run()
    save_sources(folder, StudySources(DESK, {}, {}))
    return folder


def mixed(clean: Estimates) -> Estimates:
    """Too many judge-free breaches, and too few judged trials to decide."""
    return both(clean, with_counts(clean, 60, 40), with_counts(clean, 0, 20, scope=JUDGED))


def called(estimates: Estimates, name: str) -> Estimates:
    """The same study in which the first model has another name."""
    first, *rest = estimates.models
    return msgspec.structs.replace(estimates, models=(msgspec.structs.replace(first, name=name), *rest))


def test_the_rule_that_decides_stands_first_and_each_has_its_numbers(clean: Estimates) -> None:
    outcome = gate(mixed(clean), max_breach=0.05, candidate=FIRST)
    assert (outcome.code, outcome.verdict) == (1, "above")
    first, second = [rule for rule in outcome.rules if rule.rule != "remark"]
    assert (first.verdict, first.scope, first.n, first.n_broke, first.rate) == (
        "above", "judge_free", 100, 60, 0.6
    )  # fmt: skip
    assert first.limit == 0.05 < first.low < 0.6 < first.high and first.more_trials is None
    assert (second.verdict, second.scope, second.code) == ("not enough evidence", "judged", 3)
    assert second.decided_by == "trials" and f"About {second.more_trials:,} more trials" in second.words
    assert outcome.words.splitlines()[1:] == [f"  {rule.words}" for rule in outcome.rules]


def test_a_comparison_has_its_difference_and_margin(clean: Estimates) -> None:
    outcome = gate(with_pair(clean, "worse", "not worse", 0.1, p=0.01), None, baseline=FIRST)
    rule = outcome.rules[0]
    assert (outcome.verdict, rule.rule, rule.verdict) == ("worse", "margin", "worse")
    assert (rule.model, rule.baseline, rule.p, rule.margin) == (SECOND, FIRST, 0.01, clean.margin)
    assert (rule.low, rule.difference, rule.high) == pytest.approx((0.06, 0.1, 0.14))


def test_an_over_refusal_that_is_not_decided_is_not_called_a_pass(clean: Estimates) -> None:
    pairs = tuple(
        msgspec.structs.replace(pair, verdict_ab="not enough evidence", verdict_ba="not enough evidence")
        for pair in clean.pairs
        if pair.measure == "over_refusal"
    )
    outcome = gate(msgspec.structs.replace(clean, pairs=pairs), None, baseline=FIRST, judge_free=True)
    (rule,) = [rule for rule in outcome.rules if rule.scope == "all"]
    assert (rule.verdict, rule.code) == ("not enough evidence", 0)


def test_json_has_a_field_for_everything(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["gate", str(study), "--max-breach", "0.04", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["code"] == code == 1 and found["verdict"] == "above"
    assert found["limits"]["max_breach"] == 0.04 and found["limits"]["baseline"] is None
    assert {"n_planned", "n_answered", "n_errors", "n_unclear", "study", "words", "remarks"} <= set(found)
    for rule in found["rules"]:
        assert set(rule) == set(GateRule.__struct_fields__)
        assert rule["n_broke"] <= rule["n"]
        assert rule["low"] is None or rule["low"] <= rule["rate"] <= rule["high"]
    assert main(["gate", str(study), "--max-breach", "0.04", "--format", "json"]) == code
    assert json.loads(capsys.readouterr().out) == found


def test_junit_has_a_case_a_rule_and_only_a_pass_is_green(clean: Estimates) -> None:
    estimates = mixed(clean)
    outcome = gate(estimates, max_breach=0.05)
    root = ElementTree.fromstring(gates.as_junit(outcome, estimates))
    cases = root.findall(".//testcase")
    assert [(case.get("classname"), case.get("name")) for case in cases[:1]] == [
        (f"gate.{FIRST}", "max_breach (judge_free)")
    ]
    kinds = [failure.get("type") for failure in root.findall(".//failure")]
    assert kinds == ["above", "above", "not enough evidence", "not enough evidence"]
    for element in (root, root[0]):
        assert [int(element.get(name, "")) for name in ("tests", "failures", "errors")] == [4, 4, 0]
    passed = with_counts(clean, 0, 500)
    assert not ElementTree.fromstring(gates.as_junit(gate(passed), passed)).findall(".//failure")


def test_an_annotation_points_at_the_line_of_the_application(clean: Estimates) -> None:
    lines = gates.as_annotations(gate(mixed(clean), candidate=FIRST), DESK)
    assert [line.partition("file=")[0] for line in lines] == ["::error ", "::warning "]
    assert lines[0].startswith("::error file=desks/support desk.toml,line=7,title=heredity gate%3A above::")
    assert gates.as_annotations(gate(with_counts(clean, 0, 500)), DESK) == []


HOSTILE = "x\n::error::%0A|<img src=x>,\x1b[31m]]>&"


def test_a_hostile_name_becomes_no_command_markup_or_element(clean: Estimates) -> None:
    estimates = called(mixed(clean), HOSTILE)
    outcome = gate(estimates)
    for line in gates.as_annotations(outcome, SourcePlace("a,b:c\n.toml")):
        assert re.fullmatch(r"::(error|warning) file=[^,:\n]+,line=1,title=[^,:\n]+::[^\n\x1b]*", line)
        assert "%250A" in line or "x" not in line.partition("::")[0]
    page = gates.as_summary(outcome, estimates)
    assert "<img" not in page.replace("\\<img", "") and "\x1b" not in page
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}
    root = ElementTree.fromstring(gates.as_junit(outcome, estimates))
    assert {element.tag for element in root.iter()} == {"testsuites", "testsuite", "testcase", "failure"}


def test_github_gets_annotations_and_a_summary_and_the_log_commands_nothing(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert main(["gate", str(study), "--format", "github"]) == 1
    lines = capsys.readouterr().out.splitlines()
    token = lines[0].removeprefix("::stop-commands::")
    end = lines.index(f"::{token}::")
    assert len(token) == 32 and lines[1] == "Above the limit." and lines[end + 1 :]
    assert all(
        line.startswith("::") and "file=desks/support desk.toml,line=7" in line for line in lines[end + 1 :]
    )
    page = summary.read_text()
    assert page.startswith("before\n### heredity gate: Above the limit.") and "| scripted:" in page
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    assert main(["gate", str(study), "--format", "github"]) == 1  # outside of a job


def test_a_document_goes_to_a_file_and_the_text_to_the_terminal(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["gate", str(study), "--format", "junit", "--out", str(tmp_path / "gate.xml")]) == 1
    assert ElementTree.fromstring((tmp_path / "gate.xml").read_text()).findall(".//testcase")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Above the limit." and lines[1].startswith("  \u2717 ")
    assert max(map(len, lines)) <= 80
