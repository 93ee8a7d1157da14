"""`heredity import` as a user types it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.support.cli import Run
from tests.support.errors import check_refused

NO, YES = "I'm sorry, but I can't help with that.", "Sure. First find the lamp, then put it on the table."
ARGS = ("--columns", "prompt=question,response=answer,model=arm", "--verdict", "refused")


def recorded(place: Path, name: str = "answers.jsonl", n: int = 12) -> Path:
    rows = [
        {"arm": arm, "question": f"Where is lamp {i}?", "answer": said, "refused": int(said == NO)}
        for arm, said in (("parent", NO), ("child", YES))
        for i in range(n)
    ]
    path = place / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_command_judges_compares_and_reports(run: Run, place: Path) -> None:
    recorded(place)
    done = run("import", "answers.jsonl", *ARGS, "--out", "arms")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\nchild +\S+ \[.+\]  worse", done.stdout)
    assert "heredity, refused" in done.stdout and "kappa" in done.stdout
    assert "24 answers of 2 models to 12 prompts, recorded elsewhere" in done.stderr
    assert (place / "arms/report.html").exists() and (place / "arms/agreement.json").exists()


def test_report_and_gate_go_through_what_was_imported(run: Run, place: Path) -> None:
    recorded(place)
    done = run("import", "answers.jsonl", *ARGS, "--out", "gated")
    assert done.returncode == 0, done.stderr
    for kind, ending in (
        ("junit", "xml"),
        ("sarif", "sarif"),
        ("csv", "csv"),
        ("markdown", "md"),
        ("json", "json"),
    ):
        done = run("report", "gated", "--format", kind, "--no-text")
        assert done.returncode == 0, done.stderr
        assert (place / done.stdout.strip()).name == f"report.{ending}"
        assert "put it on the table" not in (place / done.stdout.strip()).read_text()
    assert run("gate", "gated", "--baseline", "parent", "--max-breach", "0.2").returncode == 1


def test_the_study_verb_goes_on_with_an_imported_folder(run: Run, place: Path) -> None:
    recorded(place)
    assert run("import", "answers.jsonl", *ARGS, "--out", "again").returncode == 0
    before = (place / "again/verdicts.jsonl").read_bytes()
    (place / "again/verdicts.jsonl").unlink()
    done = run("study", "again")
    assert done.returncode == 0 and "child breaks more often than parent" in done.stdout, done.stderr
    assert (place / "again/verdicts.jsonl").read_bytes() == before
    mixed = run("study", "again", "--model", "scripted:careful")
    check_refused(mixed, "", mentions=["--model"])
    asked = run("study", "again", "--retry-errors")
    check_refused(asked, "bad-usage", mentions=["again"])


def test_another_judge_decides_and_one_that_is_not_there_leaves_no_study(run: Run, place: Path) -> None:
    recorded(place)
    args = ("import", "answers.jsonl", *ARGS, "--out", "asked")
    done = run(*args, "--judge", "rulse")
    check_refused(done, "unknown-name", mentions=["rules"])
    assert not (place / "asked").exists()
    done = run(*args, "--judge", "rubric:scripted:refuser:yesno", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads((place / "asked/judge.json").read_text())["judge"] == "rubric:scripted:refuser:yesno"
    # What refuses to say yes or no judges nothing.
    assert all(
        rate["estimate"]["n"] == 0 for rate in json.loads(done.stdout)["rates"] if rate["judge"] == "heredity"
    )


def test_json_has_rates_pairs_and_agreement_with_n(run: Run, place: Path) -> None:
    recorded(place)
    done = run("import", "answers.jsonl", *ARGS, "--out", "json", "--json")
    found = json.loads(done.stdout)
    assert found["judges"] == ["heredity", "refused"]
    assert {row["estimate"]["n"] for row in found["rates"]} == {12}
    assert found["pairs"][0]["table"] == {"both": 0, "only_a": 0, "only_b": 12, "neither": 0}
    assert found["agreements"][0]["n"] == 24 and found["agreements"][0]["kappa"]["value"] == 1.0


def test_a_mistake_is_one_line_and_leaves_no_study(run: Run, place: Path) -> None:
    recorded(place)
    for args, code, named in (
        (("--columns", "prompt=qestion,response=answer,model=arm"), "unknown-key", ["question"]),
        (("--columns", "prompt=question,respons=answer"), "unknown-key", ["response"]),
        (("--columns", "prompt=question,response=answer"), "missing-key", ["answers.jsonl:1"]),
        ((*ARGS, "--verdict", "arm"), "bad-input", ["answers.jsonl:1", "parent", "arm"]),
    ):
        done = run("import", "answers.jsonl", *args, "--out", "none")
        check_refused(done, code, mentions=named)
    assert not (place / "none").exists()
    assert "Missing argument" in run("import", "--out", "none").stderr


def test_hostile_names_cannot_speak_to_the_terminal(run: Run, place: Path) -> None:
    row = {
        "prompt": "p",
        "response": NO,
        "model": "\x1b]0;owned\x07m",
        "category": "\x1b[2J",
        "\x1b[31mjudge": "safe",
    }
    (place / "hostile.jsonl").write_text(json.dumps(row) + "\n")
    done = run("import", "hostile.jsonl", "--out", "hostile", "--verdict", "\x1b[31mjudge")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr and "\x07" not in done.stdout + done.stderr
