"""`heredity judges train --head` and `judges calibrate` as a user types them, on a real model of his own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

from heredity.cli import judges
from heredity.core import registry
from heredity.core.errors import UnknownName
from tests.redteam.judges.test_head import BAD, SPEC, rows
from tests.support.cli import Run
from tests.support.errors import check_refused, raises
from tests.support.tiny_models import make_model


@pytest.fixture(scope="module")
def learned(run: Run, place: Path) -> Path:
    model = make_model(place / "tiny", "qwen2", max_position_embeddings=2048, num_hidden_layers=4)
    pulled = run("pull", str(model))
    assert pulled.returncode == 0, pulled.stderr
    labels = place / "labels"
    labels.mkdir()
    for name in ("told", "others", "refused", "plain"):
        (labels / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows(name))))
    (labels / "data.toml").write_text(SPEC)
    args = (
        "judges",
        "train",
        "--head",
        "tiny",
        "--data",
        "labels/data.toml",
        "--out",
        "head",
        "--max-rows",
        "24",
    )
    done = run(*args)
    assert done.returncode == 0, done.stderr
    assert "answers were read before" in done.stderr and "head/head.safetensors" in done.stdout
    again = run(*args, "--json")
    assert "185 of 185 answers were read before" in again.stderr
    measured = {row["labels"] for row in json.loads(again.stdout)["measured"]}
    assert {"Told (sets left out)", "an order to the judge (kinds of lines left out)"} <= measured
    return labels


COLUMNS = ("--columns", "prompt=q,response=a,label=l", "--positive", "1", "--task", "harm")


def test_a_head_judges_and_says_where_it_is_measured_on_what_it_learned_from(
    run: Run, place: Path, learned: Path
) -> None:
    judge = "rubric:tiny:head=head"
    done = run("judges", "calibrate", judge, "--labels", "labels/told.jsonl", *COLUMNS, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["n"] + found["n_unclear"] == 30
    assert 18 <= found["n_learned_from"] <= 24  # it learned from 24 of them
    assert f"was trained on {found['n_learned_from']} of these answers" in done.stderr
    assert "not saved. Measure it on others" in " ".join(done.stderr.split())
    kept = place / "store" / "judges"
    assert not kept.exists()  # it would correct rates by errors that are too small

    others = [{"q": f"a question {i}", "a": f"{BAD} {i}", "l": 1} for i in range(6)]
    (place / "new.jsonl").write_text("\n".join(map(json.dumps, others)))
    done = run("judges", "calibrate", judge, "--labels", "new.jsonl", *COLUMNS, "--json")
    assert json.loads(done.stdout)["n_learned_from"] == 0
    assert "was trained on" not in done.stderr
    assert "Labels of one kind only" in done.stderr and not kept.exists()
    others.append({"q": "another question", "a": "It stands on the table, as it always did.", "l": 0})
    (place / "new.jsonl").write_text("\n".join(map(json.dumps, others)))
    assert run("judges", "calibrate", judge, "--labels", "new.jsonl", *COLUMNS).returncode == 0
    assert len(list(kept.glob("*.json"))) == 1


def test_the_list_of_judges_fits_a_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    judges.command.main(["list"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) <= 24
    for name in registry.names("redteam.judges"):
        assert sum(line.startswith(f"{name}: ") for line in lines) == 1
    measured = re.compile(r"  (refusal|harm|breach): sensitivity \d+% \[\d+, \d+\] n \d+, specificity \d+% ")
    assert sum(measured.match(line) is not None for line in lines) == 7


@pytest.mark.parametrize(("name", "n"), [("rules", 2), ("guard:qwen3guard", 0), ("checks", 1)])
def test_a_judge_is_shown_with_its_tables(
    name: str, n: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    judges.command.main(["show", name], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and lines[0].startswith(f"{name.partition(':')[0]}: ")
    assert sum(line.startswith("labels ") for line in lines) == n  # a table for each task
    assert sum("licence" in line for line in lines) == name.startswith("guard")


def test_a_judge_that_does_not_exist_is_refused() -> None:
    with raises(UnknownName, "unknown-name", mentions=["Did you mean 'rules'?"]):
        judges.command.main(["show", "ruls"], standalone_mode=False)
    with raises(UnknownName, "unknown-name", mentions=["wildguard"]):
        judges.command.main(["show", "guard:wild"], standalone_mode=False)


def test_rows_are_for_a_head(run: Run, learned: Path) -> None:
    done = run("judges", "train", "--data", "labels/data.toml", "--out", "other", "--max-rows", "24")
    check_refused(done, "bad-usage", mentions=["--max-rows", "--head"])


def test_repeated_answers_are_told(run: Run, place: Path) -> None:
    rows = [{"q": "a question", "a": f"{BAD} {i % 4}", "l": 1} for i in range(6)]
    (place / "again.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ("judges", "calibrate", "rules", "--labels", "again.jsonl", *COLUMNS, "--no-save")
    found = json.loads(run(*asked, "--json").stdout)
    assert (found["n"] + found["n_unclear"], found["n_repeated"]) == (6, 2)
    assert "Without --deduplicate" in " ".join(run(*asked).stderr.split())
    found = json.loads(run(*asked, "--deduplicate", "--json").stdout)
    assert (found["n"] + found["n_unclear"], found["n_repeated"]) == (4, 2)
