"""Lists of trials: by outcome, technique, model and attack, and where models differ; and their lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heredity.cli import main
from heredity.core.errors import UnknownName, UsageError
from heredity.core.files import Rows
from heredity.core.records import Response
from heredity.study.plan import PlannedModel, model_of_study, write_plan
from heredity.study.result import TrialFilter, list_trials
from heredity.study.storage import VERDICTS
from tests.support.errors import Done, check_refused, raises, run_here
from tests.support.small_study import small_plan, write_rows

# Of model a: trial 0 broke, 3 is unclear, 4 (a twin) was refused. Of b: 12 and 18 broke, 20 failed.
OUTCOMES = {0: "broke", 3: "unclear", 4: "refused", 12: "broke", 18: "broke", 20: None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, plan = tmp_path_factory.mktemp("small"), small_plan()
    write_plan(folder, plan)
    write_rows(folder, plan, OUTCOMES)  # type: ignore[arg-type]
    return folder


def indices(folder: Path, wanted: TrialFilter) -> list[int]:
    return [each.trial.index for each in list_trials(folder, wanted)]


def test_trials_match_every_filter_that_is_given(folder: Path) -> None:
    assert indices(folder, TrialFilter("broke")) == [0, 12, 18]
    assert indices(folder, TrialFilter("broke", models=["b"], attack="prefill")) == [18]
    assert indices(folder, TrialFilter("error")) == [20] and indices(folder, TrialFilter("unclear")) == [3]
    assert indices(folder, TrialFilter("refused", technique="harm")) == [4]
    assert len(indices(folder, TrialFilter("held"))) + len(indices(folder, TrialFilter("answered"))) == 18
    assert len(indices(folder, TrialFilter(models=["a", "b"]))) == 24


def test_differing_trials_are_those_that_one_model_held_and_another_broke(folder: Path) -> None:
    """Trial 0 broke with both, trial 20 failed, and trial 3 is unclear: none of them differs."""
    assert indices(folder, TrialFilter(differ=True)) == [4, 16, 6, 18], "the two of a question are together"
    assert indices(folder, TrialFilter("broke", differ=True)) == [18]
    assert indices(folder, TrialFilter(models=["a"], differ=True)) == [4, 6]


def test_an_answer_without_a_verdict_is_listed_and_has_no_outcome(folder: Path, tmp_path: Path) -> None:
    for name in ("plan.json", "responses.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert not (tmp_path / VERDICTS).exists()
    assert {each.outcome for each in list_trials(tmp_path, TrialFilter(technique="harm"))} == {None}
    assert list_trials(tmp_path, TrialFilter("held")) == list_trials(tmp_path, TrialFilter(differ=True)) == []


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [
        (TrialFilter("brok"), "broke"),
        (TrialFilter(technique="secrt"), "secret"),
        (TrialFilter(attack="direkt"), "direct"),
        (TrialFilter(models=["c"]), "a, b"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(folder: Path, wanted: TrialFilter, nearest: str) -> None:
    with raises(UnknownName, "unknown-name", mentions=[nearest]):
        list_trials(folder, wanted)


def test_a_model_answers_to_its_alias_and_to_the_start_of_its_id() -> None:
    models = [
        PlannedModel(start * 8, name, "family", "mit", "gguf")
        for start, name in (("abcd", "smollm2-135m-instruct"), ("abce", "twice"), ("abcf", "twice"))
    ]
    for name in ("smollm2", "smollm2-135m-instruct", "abcdab"):
        assert model_of_study(models, name) is models[0]
    for name, kind, code in (
        ("twice", UsageError, "bad-usage"),
        ("abcx", UnknownName, "unknown-name"),
        ("abc", UnknownName, "unknown-name"),
    ):
        with raises(kind, code, mentions=[name]):
            model_of_study(models, name)


def show(folder: Path, *args: str) -> Done:
    return run_here("show", str(folder), *args, env={"COLUMNS": "80"})


def test_a_line_has_the_index_that_opens_the_conversation(folder: Path) -> None:
    done = show(folder, "--outcome", "broke", "--model", "b")
    head, *lines = done.stdout.splitlines()
    assert done.returncode == 0 and head.split() == ["model", "b"]
    assert [line.split()[0] for line in lines] == ["index", "12", "18"]
    assert f"heredity show {folder} 12" in done.stderr
    opened = show(folder, "12")
    assert "reply 12" in opened.stdout and opened.stdout == show(folder, "--index", "12").stdout


def test_lists_as_json_have_whole_texts_and_every_field(folder: Path) -> None:
    (row,) = json.loads(show(folder, "--outcome", "broke", "--model", "a", "--json").stdout)
    assert (row["index"], row["model"], row["probe"], row["text"]) == (0, "a", "secret/one", "reply 0")


def test_a_list_without_a_match_is_no_error(folder: Path) -> None:
    done = show(folder, "--outcome", "skipped")
    assert (done.returncode, done.stdout) == (0, "") and "0 trials of 24" in done.stderr


def test_filters_need_a_study_and_go_with_no_index(folder: Path) -> None:
    check_refused(run_here("show", "nowhere", "--differ"), "bad-usage", mentions=["nowhere"])
    check_refused(show(folder, "0", "--outcome", "broke"), "")


def test_a_hostile_answer_stays_on_its_line_of_eighty_columns(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lines = (tmp_path / "responses.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    row["exchanges"][0]["text"] = "\x1b[2Jred\n\n\u202e" + "A" * 100_000
    (tmp_path / "responses.jsonl").write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    assert next(iter(Rows(tmp_path / "responses.jsonl", Response))).index == 0
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["show", str(tmp_path), "--outcome", "broke"]) == 0
    shown = capsys.readouterr().out
    assert not set(shown) & {"\x1b", "\u202e"} and len(shown.splitlines()) == 4
    assert max(map(len, shown.splitlines())) <= 80
