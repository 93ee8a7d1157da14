"""The rows as CSV: what a spreadsheet or a data frame gets."""

from __future__ import annotations

import csv as reader
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.core.errors import Damaged, NotComparable
from heredity.core.files import Rows
from heredity.core.records import Response, Verdict
from heredity.study.report import csv
from heredity.study.report._rows import LEFT_OUT
from tests.support.errors import raises
from tests.support.hostile_text import NASTY
from tests.support.report_studies import make, plan

WANTED = {
    "trial", "model", "application", "technique", "probe", "twin", "cluster", "attack", "sample", "seed",
    "outcome", "manner", "judge", "evidence", "stop", "n_prompt_tokens", "n_tokens", "error", "text",
    "severity",
    "guarded",
    "withheld",
}  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    reader.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8", newline="") as file:
        return list(reader.DictReader(file, strict=True))


def test_every_trial_is_a_row_with_what_the_study_says_of_it(study: Path, tmp_path: Path) -> None:
    found = rows(csv.write(study, tmp_path / "rows.csv"))
    responses = {row.trial: row for row in Rows(study / "responses.jsonl", Response)}
    verdicts = {row.trial: row for row in Rows(study / "verdicts.jsonl", Verdict)}
    assert set(found[0]) >= WANTED
    assert [row["trial"] for row in found] == [verdict.trial for verdict in verdicts.values()]
    for row in found:
        response, verdict = responses[row["trial"]], verdicts[row["trial"]]
        assert (row["probe"], row["attack"], row["seed"]) == (response.probe, "direct", str(response.seed))
        assert row["outcome"] == (verdict.outcome or "") and row["error"] == (response.error or "")
        assert row["text"] == "".join(e.text for e in response.exchanges)


def test_without_text_nothing_that_was_said_is_there(tmp_path: Path) -> None:
    folder = make(tmp_path / "study", plan(n_probes=3), answer="a very particular answer")
    path = csv.write(folder, tmp_path / "rows.csv", with_text=False)
    assert b"particular" not in path.read_bytes() and b"does not fit" not in path.read_bytes()
    found = rows(path)
    assert not {"text", "evidence"} & set(found[0])
    assert {row["error"] for row in found} == {"", LEFT_OUT}


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", " =", "\uff1d"])
def test_no_text_is_a_formula(start: str) -> None:
    assert csv.cell(f"{start}HYPERLINK(1)") == f"'{start}HYPERLINK(1)"


@given(st.text())
def test_a_cell_has_no_control_code_and_loses_no_letter(text: str) -> None:
    found = str(csv.cell(text))
    assert not [c for c in found if (c < " " and c not in "\t\n\r") or "\x7f" <= c <= "\x9f"]
    assert len(found) - len(text) in (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NASTY)
def test_hostile_answers_stay_inside_their_cell(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "study", plan(n_probes=1), answer=NASTY[name], errors=0)
    found = rows(csv.write(folder, tmp_path / "rows.csv"))
    assert len(found) == 12
    assert {row["text"] for row in found} == {csv.cell(NASTY[name])}


def test_the_same_study_gives_the_same_bytes_whatever_the_order_on_disk(study: Path, tmp_path: Path) -> None:
    first = csv.write(study, tmp_path / "one.csv").read_bytes()
    turned = tmp_path / "turned"
    turned.mkdir()
    for path in study.glob("*.json*"):
        lines = path.read_bytes().splitlines(keepends=True)
        is_rows = path.name in ("responses.jsonl", "verdicts.jsonl")
        (turned / path.name).write_bytes(b"".join(reversed(lines) if is_rows else lines))
    assert csv.write(turned, tmp_path / "two.csv").read_bytes() == first


def test_rows_of_another_application_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "study", plan(n_probes=2))
    path = folder / "responses.jsonl"
    own = plan(n_probes=2).application.digest
    path.write_text(path.read_text().replace(own, "f" * 32, 1))
    with raises(NotComparable, "not-comparable"):
        csv.write(folder, tmp_path / "rows.csv")
    assert list(tmp_path.iterdir()) == [folder]  # and no half file


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "study", plan(n_probes=2))
    with (folder / "responses.jsonl").open("ab") as file:
        file.write(b'{"index":99999,"trial":"x"}\n')
    with raises(Damaged, "damaged", mentions=["responses.jsonl:25"]):
        csv.write(folder, tmp_path / "rows.csv")
