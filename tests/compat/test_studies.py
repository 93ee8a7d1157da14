"""Study folders of 9797035 are read, gated, reported and resumed, with the same numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support import old_version as old

# Those without weights; the others are in test_store.py.
ASKED = ("attacks", "checks", "decided", "errors", "labelled")
IMPORTED = ("rows", "garak", "inspect")
WITH_WEIGHTS = ("lineage", "panel", "rubric")


def expected(studies: Path, name: str) -> Any:
    return json.loads((studies / "expected" / f"{name}.json").read_text(encoding="utf-8"))


def copied(studies: Path, place: Path, name: str) -> Path:
    return Path(shutil.copytree(studies / name, place / name))


def estimates(folder: Path) -> Any:
    return json.loads((folder / "estimates.json").read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ASKED, *IMPORTED, *WITH_WEIGHTS])
def test_it_is_reported_with_the_same_numbers(studies: Path, place: Path, name: str) -> None:
    folder = copied(studies, place, name)
    old.done("report", name, "--format", "json", "--out", "now.json")
    then = json.loads((folder / "expected-report.json").read_bytes())
    old.assert_same(then, json.loads(Path("now.json").read_bytes()), f"report {name} --format json")
    old.done("report", name, "--format", "csv", "--out", "now.csv")
    rows = (folder / "expected-report.csv").read_text(encoding="utf-8")
    today = old.rows_of(Path("now.csv").read_text(encoding="utf-8"))
    old.assert_same(old.rows_of(rows), today, f"report {name} --format csv")
    for form in ("html", "markdown", "junit", "sarif"):
        old.done("report", name, "--format", form, "--out", f"now.{form}")


@pytest.mark.parametrize("name", [*ASKED, *WITH_WEIGHTS])
def test_a_gate_decides_as_it_did(studies: Path, place: Path, name: str) -> None:
    copied(studies, place, name)
    gates = expected(studies, name)["gates"]
    assert gates
    for gate in gates:
        code, _, err = old.heredity("gate", name, *gate["argv"], "--json")
        assert code == gate["exit"], f"gate {name} {' '.join(gate['argv'])}: {err}"


@pytest.mark.parametrize("name", [*ASKED, *IMPORTED])
def test_opened_again_it_asks_nothing_and_estimates_the_same(studies: Path, place: Path, name: str) -> None:
    folder = copied(studies, place, name)
    before = (folder / "responses.jsonl").read_bytes()
    (folder / "estimates.json").unlink()
    old.done("study", name)
    assert (folder / "responses.jsonl").read_bytes() == before
    old.assert_same(expected(studies, name)["estimates"], estimates(folder), f"estimates.json of {name}")


@pytest.mark.parametrize("name", ["attacks", "rows", "lineage"])
def test_a_conversation_is_shown_as_it_was(studies: Path, place: Path, name: str) -> None:
    copied(studies, place, name)
    shown = json.loads(old.done("show", name, "--index", 0, "--json"))
    old.assert_same(expected(studies, name)["shown"], shown, f"show {name} --index 0 --json")


def test_an_error_of_then_is_shown_with_its_code(studies: Path, place: Path) -> None:
    """Rows of schema 1 said it in their sentence alone."""
    folder = copied(studies, place, "errors")
    rows = [json.loads(line) for line in (folder / "responses.jsonl").read_text("utf-8").splitlines()]
    failed = next(row for row in rows if row.get("error"))
    assert "error_code" not in failed
    shown = json.loads(old.done("show", "errors", "--index", failed["index"], "--json"))
    assert shown["response"]["error_code"] == shown["verdict"]["error_code"] == "engine-failure"
    assert shown["response"] == failed | {"error_code": "engine-failure", "schema": 2}


def test_the_options_of_then_are_the_same_study(studies: Path, place: Path) -> None:
    """With other attacks, probes or settings it would be refused as another study."""
    folder = copied(studies, place, "checks")
    before = (folder / "responses.jsonl").read_bytes()
    old.done(*expected(studies, "checks")["argv"], "--out", "checks")
    assert (folder / "responses.jsonl").read_bytes() == before


@pytest.mark.slow
def test_what_was_asked_when_it_was_killed_is_not_asked_again(studies: Path, place: Path) -> None:
    """The last line is torn, nothing is judged; the end is that of the study left alone."""
    folder, whole = copied(studies, place, "half-attacks"), expected(studies, "attacks")
    before = (folder / "responses.jsonl").read_bytes().splitlines(keepends=True)
    old.done("study", "half-attacks")
    after = (folder / "responses.jsonl").read_bytes().splitlines(keepends=True)
    assert after[: whole["n_kept"]] == before[: whole["n_kept"]]
    places = [json.loads(row)["index"] for row in after]
    assert sorted(places) == list(range(whole["estimates"]["n_trials"]))
    old.assert_same(whole["estimates"], estimates(folder), "estimates.json of half-attacks")


def test_a_judging_that_was_killed_is_finished(studies: Path, place: Path) -> None:
    folder = copied(studies, place, "half-judged")
    before = (folder / "responses.jsonl").read_bytes()
    old.done("study", "half-judged")
    assert (folder / "responses.jsonl").read_bytes() == before
    old.assert_same(expected(studies, "attacks")["estimates"], estimates(folder), "estimates of half-judged")


def test_errors_are_asked_again(studies: Path, place: Path) -> None:
    folder = copied(studies, place, "errors")
    then = [json.loads(row) for row in (folder / "responses.jsonl").read_bytes().splitlines()]
    failed = [row["index"] for row in then if row["error"] and not row["error"].startswith("skipped")]
    old.done("study", "errors", "--retry-errors")
    set_aside = (folder / "errors.jsonl").read_bytes().splitlines()
    assert failed and {json.loads(row)["index"] for row in set_aside} >= set(failed)


def test_labels_are_read_and_none_is_asked_for_twice(studies: Path, place: Path) -> None:
    """Every answer of then is drawn again, with its label; taken back, they give the same numbers."""
    folder = copied(studies, place, "labelled")
    before = (folder / "labels.jsonl").read_bytes()
    old.done("label", "labelled", "--n", 24, "--export", "sheet.csv")
    drawn = old.rows_of(Path("sheet.csv").read_text(encoding="utf-8"))
    given = {json.loads(row)["trial"]: json.loads(row) for row in before.splitlines()}
    assert len(drawn) == 24 and {row["trial"] for row in drawn} == set(given)
    assert all(row["label"] in given[row["trial"]].values() for row in drawn)
    old.done("label", "labelled", "--n", 24, "--import", "sheet.csv")
    assert (folder / "labels.jsonl").read_bytes().startswith(before)
    old.assert_same(expected(studies, "labelled")["estimates"], estimates(folder), "estimates of labelled")


@pytest.mark.parametrize("name", IMPORTED)
def test_an_import_s_other_judges_stand_beside(studies: Path, place: Path, name: str) -> None:
    """recorded.jsonl and agreement.json are read where the page is written."""
    folder = copied(studies, place, name)
    old.done("report", name, "--format", "html", "--out", "now.html")
    judge = json.loads((folder / "recorded.jsonl").read_bytes().splitlines()[0])["judge"]
    assert judge in Path("now.html").read_text(encoding="utf-8")
