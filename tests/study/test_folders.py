"""The studies of a place: state, progress and verdict, also while others write them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from heredity.core.errors import UsageError
from heredity.core.files import Lock, is_locked
from heredity.study import aggregate, storage
from heredity.study.folders import StudyFolder, find_studies
from heredity.study.plan import Grid, Plan, write_plan
from heredity.study.resolve import declare
from tests.support.errors import raises, run_here
from tests.support.small_study import small_plan, write_rows


def make(folder: Path, n_rows: int = 24, is_estimated: bool = True) -> Path:
    """The small study with its first rows only; its estimates are of these rows."""
    plan = small_plan()
    write_plan(folder, plan)
    write_rows(folder, plan, {0: "broke"})
    for name in (storage.RESPONSES, storage.VERDICTS):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:n_rows]))
    if is_estimated:
        storage.write_estimates(folder, aggregate.estimate(plan, folder))
    return folder


def broken(folder: Path, models: str, made: Plan | None = None) -> None:
    """A study in which these models broke in every breach probe, twenty times each."""
    plan = made or small_plan(samples=10)
    grid = Grid(plan)
    trials = map(grid.trial, range(len(grid)))
    broke = {t.index: "broke" for t in trials if t.probe.kind == "breach" and t.model.name in models}
    write_plan(folder, plan)
    write_rows(folder, plan, broke)
    storage.write_estimates(folder, aggregate.estimate(plan, folder))


def by_name(place: Path) -> dict[str, StudyFolder]:
    return {each.folder.name: each for each in find_studies(place)}


def test_a_study_is_done_stopped_or_planned_by_its_answers(tmp_path: Path) -> None:
    make(tmp_path / "done")
    make(tmp_path / "half", n_rows=10)
    make(tmp_path / "more" / "unestimated", is_estimated=False)
    write_plan(tmp_path / "planned", small_plan())
    found = by_name(tmp_path)
    assert {name: (each.state, each.n_answered) for name, each in found.items()} == {
        "done": ("done", 24),
        "half": ("stopped", 10),
        "unestimated": ("stopped", 24),
        "planned": ("planned", 0),
    }
    assert {each.n_planned for each in found.values()} == {24}
    assert found["done"].models == ("a", "b") and found["done"].verdict == "undecided"
    assert found["planned"].verdict == found["unestimated"].verdict == ""


def test_no_model_may_be_fit_to_ship_where_none_is_worse(tmp_path: Path) -> None:
    """A line had "not worse" alone, where the report of the same study says "Ship none"."""
    advised = {"ab": "ship none", "b": "reject 1 of 2", "": "open"}
    for models in advised:
        broken(tmp_path / f"broke-{models}", models)
    make(tmp_path / "few")
    write_plan(tmp_path / "planned", small_plan())
    found = {name: each.shipping for name, each in by_name(tmp_path).items()}
    wanted = {f"broke-{models}": words for models, words in advised.items()}
    assert found == {**wanted, "few": "few tries", "planned": ""}
    assert by_name(tmp_path)["broke-ab"].verdict != "worse"


def test_the_children_of_a_lineage_have_a_column_that_is_named_for_them(tmp_path: Path) -> None:
    broken(tmp_path / "lineage", "", declare(small_plan(edges=True)))
    assert by_name(tmp_path)["lineage"].verdict == "cannot tell"  # in the words of edges
    usual = ["study", "state", "answered", "shipping"]
    for name, column in (("related", "inheritance"), ("unrelated", "comparison")):
        if name == "unrelated":
            broken(tmp_path / name, "b")
        head = run_here("studies", cwd=tmp_path).stdout.splitlines()[0]
        assert head.split() == [*usual, column, "models"]


def test_estimates_of_fewer_answers_give_no_verdict(tmp_path: Path) -> None:
    folder = make(tmp_path / "one", n_rows=10)
    held = (folder / storage.ESTIMATES).read_bytes()
    shutil.rmtree(folder)
    make(folder, is_estimated=False)
    (folder / storage.ESTIMATES).write_bytes(held)
    (found,) = find_studies(tmp_path)
    assert (found.state, found.n_answered, found.verdict) == ("stopped", 24, "")


def test_a_study_runs_while_a_process_holds_its_lock(tmp_path: Path) -> None:
    folder = make(tmp_path / "one")
    with Lock(folder):
        assert find_studies(tmp_path)[0].state == "running"
    assert find_studies(tmp_path)[0].state == "done"


@pytest.mark.slow
def test_a_killed_process_holds_no_lock_and_its_number_may_be_anothers(tmp_path: Path) -> None:
    hold = "import os, sys, pathlib; from heredity.core.files import Lock; "
    killed = f"{hold}Lock(pathlib.Path(sys.argv[1])).__enter__(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", killed, str(tmp_path)], check=False)
    assert (tmp_path / ".lock.pid").exists() and not is_locked(tmp_path)
    (tmp_path / ".lock.pid").write_text(str(os.getpid()))  # the number was given again
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path / "nowhere")


def test_looking_is_without_a_trace(tmp_path: Path) -> None:
    folder = make(tmp_path / "one")
    before = sorted(each.name for each in folder.iterdir())
    find_studies(tmp_path)
    assert sorted(each.name for each in folder.iterdir()) == before


def test_unreadable_studies_are_listed_and_other_plans_are_not(tmp_path: Path) -> None:
    make(tmp_path / "torn")
    (tmp_path / "torn" / "plan.json").write_text('{"study": "ab')
    for name, text in (("tool", '{"steps": []}'), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.json").write_text(text)
    (found,) = find_studies(tmp_path)
    assert found.state == "unreadable" and "plan.json" in found.problem


def test_links_and_hidden_folders_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path / "place" / ".hidden")
    make(tmp_path / "elsewhere")
    (tmp_path / "place" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "place" / "round").symlink_to(tmp_path / "place")
    assert find_studies(tmp_path / "place") == []


def test_the_parts_of_an_array_count_before_they_are_collected(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", is_estimated=False)
    part = tmp_path / "whole" / "shards" / "1-of-2"
    part.mkdir(parents=True)
    for name in ("plan.json", storage.RESPONSES):
        shutil.copy(whole / name, part / name)
    (whole / storage.RESPONSES).unlink()
    with Lock(part):
        (found,) = find_studies(tmp_path)
    assert (found.n_answered, found.state) == (24, "running")


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with raises(UsageError, "unreadable-file", mentions=["nowhere"]):
        find_studies(tmp_path / "nowhere")


def test_the_command_lists_a_line_a_study_of_eighty_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    make(tmp_path / "runs" / "support-desk-of-the-northern-branch-in-november")
    done = run_here("studies", "runs", cwd=tmp_path)
    head, line = done.stdout.splitlines()
    assert head.split() == ["study", "state", "answered", "shipping", "comparison", "models"]
    assert "done" in line and "24/24" in line and "undecided" in line and len(line) <= 80
    (row,) = json.loads(run_here("studies", "--json", cwd=tmp_path).stdout)
    assert row["folder"] == "runs/support-desk-of-the-northern-branch-in-november"
    assert (row["n_planned"], row["models"]) == (24, ["a", "b"])
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run_here("studies", cwd=empty)
    assert done.returncode == 0 and done.stdout == ""


def test_the_path_that_all_studies_share_is_printed_once_and_their_own_are_whole(tmp_path: Path) -> None:
    deep = tmp_path / ("a-long-name-of-a-folder-" * 3)
    for name in ("night-2026-01-31/support-desk", "night-2026-02-01/support-desk"):
        make(deep / name)
    done = run_here("studies", str(deep), env={"COLUMNS": "80"})
    names = [line.split()[0] for line in done.stdout.splitlines()[1:] if line.strip()]
    assert sorted(names) == ["night-2026-01-31/support-desk", "night-2026-02-01/support-desk"]
    assert f"in {deep}:" in " ".join(done.stderr.split())


def test_runs_of_one_plan_are_listed_whatever_their_seeds(tmp_path: Path) -> None:
    for name, made in (("a", small_plan()), ("b", small_plan()), ("c", small_plan(samples=3))):
        write_plan(tmp_path / name, made)
    write_plan(tmp_path / "d", msgspec.structs.replace(small_plan(), seed=9))
    run = run_here("studies", str(tmp_path))
    assert "Studies of one plan, up to the seed: a, b, d. Report all of them" in " ".join(run.stderr.split())
    rows = json.loads(run_here("studies", str(tmp_path), "--json").stdout)
    assert len({row["asks"] for row in rows}) == 2
