"""`heredity index`: what it prints of a folder of documents, and of a search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.errors import check_refused, run_here


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "heating.md").write_text("# Heat pumps\n\nIt hums at night.\n")
    (folder / "b.txt").write_text("A parcel \x1b[31mreturns.\n")
    (folder / "bad\nname.txt").write_text("x")
    (folder / "bad.txt").write_bytes(b"a\0b")
    return folder


def test_a_folder_is_indexed_and_searched(docs: Path):
    done = run_here("index", "docs")
    assert done.returncode == 0
    assert "bad.txt" in done.stdout and "bad\u240aname.txt" in done.stdout
    assert (docs.parent / "docs.index" / "index.json").is_file()
    found = run_here("index", "docs.index", "--ask", "does it hum at night")
    assert "heating.md:1-3" in found.stdout and "It hums at night." in found.stdout


def test_a_passage_cannot_control_the_terminal(docs: Path):
    run_here("index", "docs")
    assert "\x1b" not in run_here("index", "docs.index", "--ask", "parcel").stdout


def test_json_counts_what_was_left_out_and_names_the_reason(docs: Path):
    made = json.loads(run_here("index", "docs", "--json").stdout)
    assert (made["n_documents"], made["n_read"], made["n_kept"]) == (2, 2, 0)
    assert {each["reason"] for each in made["left_out"]} == {"binary", "file-name"}
    again = json.loads(run_here("index", "docs", "--json").stdout)
    assert (again["n_read"], again["n_kept"], again["hash"]) == (0, 2, made["hash"])
    asked = json.loads(run_here("index", "docs.index", "--ask", "parcel", "--json").stdout)
    assert (asked["index"], asked["method"]) == (made["hash"], "bm25")
    assert asked["passages"][0]["citation"] == "b.txt:1"


def test_one_document_is_not_told_as_several(docs: Path):
    run_here("index", "docs")
    (docs / "b.txt").write_text("Another parcel.")
    assert "1 document read, 1 unchanged, 0 passages embedded" in run_here("index", "docs").stderr


def test_mistakes_are_one_line(docs: Path):
    check_refused(run_here("index", "nowhere"), "unreadable-file", ["nowhere"])
    run_here("index", "docs")
    check_refused(run_here("index", "docs.index"), "bad-usage", ["--ask"])
    asked = ("index", "docs.index", "--ask", "x")
    check_refused(run_here(*asked, "--method", "dens"), "unknown-name", ["dense"])
    check_refused(run_here("index", "docs", "--ask", "x"), "bad-usage", ["docs"])
    (docs / "new.txt").write_text("new")
    check_refused(run_here(*asked), "refused", ["new.txt"])
