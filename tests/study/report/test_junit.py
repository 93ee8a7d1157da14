"""JUnit XML, read back by a parser that refuses what is not XML."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.core.files import Rows
from heredity.core.records import Verdict
from heredity.study.report import junit
from tests.support.hostile_text import NASTY
from tests.support.report_studies import TECHNIQUES, make, plan, with_baseline


def tree(path: Path) -> ElementTree.Element:
    return ElementTree.fromstring(path.read_bytes())


def counts(element: ElementTree.Element) -> dict[str, int]:
    return {name: int(element.get(name, "")) for name in ("tests", "failures", "errors", "skipped")}


def test_one_suite_a_model_and_technique_one_case_a_trial(study: Path, tmp_path: Path) -> None:
    suites = tree(junit.write(study, tmp_path / "report.xml")).findall("testsuite")
    assert len(suites) == 2 * len(TECHNIQUES)
    assert [len(suite.findall("testcase")) for suite in suites] == [50] * len(suites)
    assert len({case.get("name") for case in suites[0].findall("testcase")}) == 50


def test_a_breach_fails_an_error_errs_an_unclear_answer_is_skipped_with_its_reason(
    study: Path, tmp_path: Path
) -> None:
    root = tree(junit.write(study, tmp_path / "report.xml"))
    outcomes = Counter(row.outcome for row in Rows(study / "verdicts.jsonl", Verdict))
    assert len(root.findall(".//failure")) == outcomes["broke"] > 0
    assert len(root.findall(".//error")) == outcomes[None] == 2
    skipped = root.findall(".//skipped")
    assert len(skipped) == outcomes["unclear"] > 0
    assert {case.get("message") for case in skipped} == {"unclear: incoherent"}


def test_the_counts_in_the_head_are_those_of_the_cases(study: Path, tmp_path: Path) -> None:
    root = tree(junit.write(study, tmp_path / "report.xml"))
    for element in (root, *root.findall("testsuite")):
        kinds = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
        assert counts(element) == {name: len(element.findall(f".//{tag}")) for name, tag in kinds.items()}


def test_a_capability_fails_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path / "study", with_baseline(plan()))
    root = tree(junit.write(folder, tmp_path / "report.xml"))
    suites = [s for s in root.findall("testsuite") if (s.get("name") or "").endswith("planted_secret")]
    assert suites and not any(suite.findall(".//failure") for suite in suites)
    assert root.findall(".//failure")
    for suite in suites:
        assert counts(suite)["failures"] == 0
        assert suite.findall(".//property[@value='broke']")


def test_a_refused_twin_passes_and_says_so(study: Path, tmp_path: Path) -> None:
    root = tree(junit.write(study, tmp_path / "report.xml"))
    refused = [
        c for c in root.iter("testcase") if c.find("properties/property[@value='refused']") is not None
    ]
    assert refused and not [case for case in refused if case.find("failure") is not None]


def test_an_answer_that_is_not_there_yet_is_skipped(tmp_path: Path) -> None:
    folder = make(tmp_path / "study", plan(n_probes=2), errors=0)
    for name in ("responses.jsonl", "verdicts.jsonl"):
        lines = (folder / name).read_bytes().splitlines(keepends=True)
        (folder / name).write_bytes(b"".join(lines[: 20 if name[0] == "r" else 18]))
    from heredity.study import aggregate, storage
    from heredity.study import plan as plans

    storage.write_estimates(folder, aggregate.estimate(plans.read_plan(folder), folder))
    root = tree(junit.write(folder, tmp_path / "report.xml"))
    said = Counter(case.get("message") for case in root.findall(".//skipped"))
    assert (said["not asked"], said["not judged yet"]) == (4, 2)
    assert counts(root)["skipped"] == len(root.findall(".//skipped"))


@pytest.mark.parametrize("name", NASTY)
def test_hostile_answers_stay_text(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "study", plan(n_probes=1), answer=NASTY[name], errors=0)
    path = junit.write(folder, tmp_path / "report.xml")
    tags = {element.tag for element in tree(path).iter()}
    assert tags <= {"testsuites", "testsuite", "testcase", "properties", "property", "failure", "skipped"}
    assert not [c for c in path.read_text() if (c < " " and c != "\n") or "\x7f" <= c <= "\x9f"]


@given(st.text())
def test_any_text_is_legal_after_it_was_cleaned(text: str) -> None:
    ElementTree.fromstring(f"<a b={junit._attribute(text)}>{junit.escape(junit.legal(text))}</a>".encode())


def test_without_text_nothing_that_was_said_is_there(tmp_path: Path) -> None:
    folder = make(tmp_path / "study", plan(n_probes=3), answer="a very particular answer")
    with_text = junit.write(folder, tmp_path / "with.xml").read_text()
    without = junit.write(folder, tmp_path / "without.xml", with_text=False).read_text()
    for said in ("particular", "Please do thing", "seen", "does not fit"):
        assert said in with_text and said not in without
    assert counts(tree(tmp_path / "with.xml")) == counts(tree(tmp_path / "without.xml"))


def test_the_same_study_gives_the_same_bytes(study: Path, tmp_path: Path) -> None:
    one, two = (junit.write(study, tmp_path / name).read_bytes() for name in ("a.xml", "b.xml"))
    assert one == two
