"""Evaluations and calibrations of 9797035 are read and, where they were half done, finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import old_version as old

TABLE = old.table("more")


@pytest.fixture
def kept(place: Path) -> Path:
    return old.unpack("more", place)


def test_an_evaluation_asks_nothing_twice_and_grades_the_same(kept: Path) -> None:
    before = Path("evals/answers.jsonl").read_bytes()
    graded = json.loads(old.done(*TABLE["eval"]["argv"], "--out", "evals", "--json"))
    assert Path("evals/answers.jsonl").read_bytes() == before
    old.assert_same(TABLE["eval"]["json"], graded, "eval --json")


def test_an_evaluation_that_was_killed_is_finished(kept: Path) -> None:
    before = Path("half-evals/answers.jsonl").read_bytes().splitlines()[:20]
    graded = json.loads(old.done(*TABLE["eval"]["argv"], "--out", "half-evals", "--json"))
    after = Path("half-evals/answers.jsonl").read_bytes().splitlines()
    assert after[:20] == before and len(after) == TABLE["eval"]["rows"]
    old.assert_same(TABLE["eval"]["json"], graded, "eval --json of half-evals")


def test_a_study_keeps_the_calibration_that_corrects_it(kept: Path) -> None:
    """It lies in the study's folder, for just the judge that was measured."""
    Path("calibrated/estimates.json").unlink()
    old.done("study", "calibrated")
    found = json.loads(Path("calibrated/estimates.json").read_bytes())
    old.assert_same(TABLE["calibrated"]["estimates"], found, "estimates.json of calibrated")


def test_a_store_s_calibration_corrects_new_studies(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same labels with the same counts; the correction itself is that of today."""
    monkeypatch.setenv("HEREDITY_STORE", str(kept / "kept"))
    asked = json.loads(Path("calibrated/plan.json").read_bytes())["plan"]["probes"]
    argv = TABLE["calibrated"]["argv"]
    pattern = argv.index("--probes") + 1  # it matches more probes today
    ids = [each for probe in asked if probe["kind"] == "breach" for each in ("--probes", probe["id"])]
    old.done(*argv[: pattern - 1], *ids, *argv[pattern + 1 :], "--out", "new")
    then, now = TABLE["calibrated"]["estimates"], json.loads(Path("new/estimates.json").read_bytes())
    assert now["corrected_by"]["refusal"].startswith(then["corrected_by"]["refusal"])
    mine = [[row for row in each["judges"] if row["labels"] == "labelled.csv"] for each in (then, now)]
    assert mine[0]
    old.assert_same(*mine, "the user's own measurement")
    for before, after in zip(then["rates"], now["rates"], strict=True):
        assert (before["n_held"], before["n_broke"]) == (after["n_held"], after["n_broke"])
        assert after["corrected"] is not None and after["corrected"]["n"] == before["corrected"]["n"]
