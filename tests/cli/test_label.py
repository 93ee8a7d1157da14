"""`heredity label`: one key an answer, stopped and gone on with, or labelled elsewhere and read back."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import pytest

from heredity.core.files import Rows
from heredity.core.records import Response
from heredity.study import labels, storage
from tests.study.test_labels import unclear_study
from tests.support.errors import check_refused, run_here
from tests.support.studies import plan, study

MADE = plan(("scripted:mixed",), n=12, attacks=("direct",), samples=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    study(tmp_path / "s", MADE).run()
    return tmp_path / "s"


def test_a_key_an_answer_and_the_same_command_goes_on(folder: Path) -> None:
    first = run_here("label", str(folder), "--n", "4", input="y\nx\nn\nq\n")
    assert first.returncode == 0, first.stderr
    assert "Stopped" in first.stderr and "2 labels, 2 of 4 answers to go" in first.stderr
    assert "scripted:mixed" not in first.stdout  # neither the model nor the judge's verdict leads
    second = run_here("label", str(folder), "--n", "4", input="s\ny\n")
    assert "3 of 4" in second.stdout and "1 of 4" not in second.stdout
    assert [label.answer for label in labels.read_labels(folder).values()] == ["yes", "no", "skip", "yes"]
    assert (folder / "report.html").exists()


def test_unclear_answers_are_read_into_a_file_of_their_own(tmp_path: Path) -> None:
    made = unclear_study(tmp_path)
    first = run_here("label", str(tmp_path), "--unclear", "--n", "10", input="n\ny\nq\n")
    assert first.returncode == 0, first.stderr
    assert "2 labels, 17 of 19 answers to go" in first.stderr  # 10 of one model and all 9 of the other
    sheet = tmp_path.with_name("sheet.csv")
    assert run_here("label", str(tmp_path), "--unclear", "--export", str(sheet)).returncode == 0
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows[:3]] == ["no", "yes", ""] and len(rows) == 49
    sheet.write_text("trial,label\n" + "".join(f"{row['trial']},no\n" for row in rows))
    back = run_here("label", str(tmp_path), "--unclear", "--import", str(sheet))
    assert back.returncode == 0, back.stderr
    assert labels.unclear_shares(tmp_path, made)[0, False].n == 40
    assert labels.read_labels(tmp_path) == {}


def test_a_study_until_decided_takes_no_label_that_could_give_no_rate(tmp_path: Path) -> None:
    made = msgspec.structs.replace(plan(n=2), blocks=(7, len(plan(n=2).probes)))
    study(tmp_path / "s", made).run()
    run = run_here("label", str(tmp_path / "s"), input="y\n")
    assert run.stdout == ""
    check_refused(run, "bad-usage")
    assert labels.read_labels(tmp_path / "s") == {}


def test_a_closed_input_stops_and_keeps_what_was_said(folder: Path) -> None:
    run = run_here("label", str(folder), input="y\n")
    assert run.returncode == 0
    assert len(labels.read_labels(folder)) == 1


def test_what_a_terminal_would_obey_is_shown_by_name(folder: Path) -> None:
    (row,) = labels.draw_answers(folder, MADE)[:1]
    path = folder / "responses.jsonl"
    rows = list(Rows(path, Response))
    path.unlink()
    with Rows(path, Response) as out:
        for each in rows:
            if each.index == row.index:
                hostile = msgspec.structs.replace(each.exchanges[-1], text="\x1b[2J\u202eclear")
                each = msgspec.structs.replace(each, exchanges=(hostile,))
            out.append(each)
    run = run_here("label", str(folder), "--n", "1", input="q\n")
    assert "\x1b" not in run.stdout and "\u202e" not in run.stdout
    assert "clear" in run.stdout


def test_labels_given_elsewhere_come_back_and_make_a_rate(folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    out = run_here("label", str(folder), "--export", str(sheet))
    assert out.returncode == 0, out.stderr
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"index", "trial", "question", "prompt", "answer", "label"}
    for i, row in enumerate(rows):
        row["label"] = ("yes", "No", "1", "n", "")[i % 5]
    with sheet.open("w", newline="") as file:
        lines = csv.DictWriter(file, list(rows[0]))
        lines.writeheader()
        lines.writerows(rows)
    back = run_here("label", str(folder), "--import", str(sheet))
    assert back.returncode == 0, back.stderr
    assert len(labels.read_labels(folder)) == sum(bool(row["label"]) for row in rows)
    found = [
        r.by_labels for r in storage.read_estimates(folder).rates if (r.technique, r.attack) == ("all", "all")
    ]
    (by_labels,) = found
    assert by_labels is not None and by_labels.value is not None
    assert by_labels.method.startswith("prediction-powered")


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        ("trial,label\nnone,yes\n", "bad-input", ["sheet.csv:2", "none"]),
        ("trial,label\nTRIAL,perhaps\n", "unknown-name", ["perhaps"]),
    ],
)
def test_a_sheet_that_does_not_fit_names_its_line_and_changes_nothing(
    folder: Path, tmp_path: Path, text: str, code: str, named: list[str]
) -> None:
    sheet = tmp_path / "sheet.csv"
    sheet.write_text(text.replace("TRIAL", labels.draw_answers(folder, MADE)[0].trial))
    run = run_here("label", str(folder), "--import", str(sheet))
    check_refused(run, code, mentions=named)
    assert labels.read_labels(folder) == {}


def test_a_pair_is_read_blind_and_the_difference_is_told(tmp_path: Path) -> None:
    study(tmp_path / "s", plan(("scripted:careful", "scripted:mixed"), n=20, attacks=("direct",))).run()
    command = ("label", str(tmp_path / "s"), "--edge", "careful", "mixed", "-n", "12", "--reader", "ann")
    first = run_here(*command, input="y\nx\nn\nn\nq\n")
    assert first.returncode == 0, first.stderr
    assert "answer 1 -" in first.stdout and "answer 2 -" in first.stdout and "2 of 12" in first.stdout
    assert "scripted:" not in first.stdout and "broke" not in first.stdout
    assert "Stopped" in first.stderr and "3 labels, 11 of 12 pairs to go" in first.stderr
    rest = run_here(*command, input="n\n" * 21)
    assert rest.stdout.startswith("\n2 of 12: what was asked")
    assert "answer 1 -" not in rest.stdout.partition("3 of 12")[0]  # its first answer has a label
    assert "as read: " in rest.stderr and "by 12 pairs" in rest.stderr and "0 of 12 pairs" in rest.stderr
    assert {row.reader for row in labels.read_labels(tmp_path / "s", "harm").values()} == {"ann"}


def test_pairs_read_elsewhere_come_back_and_give_the_difference(tmp_path: Path) -> None:
    study(tmp_path / "s", plan(("scripted:careful", "scripted:mixed"), n=20, attacks=("direct",))).run()
    command = ("label", str(tmp_path / "s"), "--edge", "careful", "mixed", "-n", "12")
    sheet = tmp_path / "pairs.csv"
    assert run_here(*command, "--export", str(sheet)).returncode == 0
    with sheet.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 24
    assert all(one["prompt"] == two["prompt"] for one, two in zip(rows[::2], rows[1::2], strict=True))
    with sheet.open("w", newline="") as file:
        lines = csv.DictWriter(file, rows[0])
        lines.writeheader()
        lines.writerows(row | {"label": "no"} for row in rows)
    back = run_here(*command, "--import", str(sheet), "--reader", "ann")
    assert "by 12 pairs" in back.stderr and "0 of 12 pairs to go" in back.stderr
    both = run_here(*command, "--export", str(sheet), "--import", str(sheet))
    check_refused(both, "bad-usage")
