"""Verdicts belong to what they judged, errors are asked again, and no moment to be killed in loses a row."""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from heredity.core.errors import HeredityError
from heredity.core.files import Rows, rewrite
from heredity.core.records import Reply, Request, Response, Verdict, digest_response
from heredity.redteam import judges
from heredity.redteam.judges import checks, rules
from heredity.redteam.no_answer import row_stamp
from tests.study.test_resume import Full
from tests.support.errors import raises
from tests.support.studies import Recorder, by_index, drop_circumstances, plan, responses, study

ONE = ("scripted:mixed",)
SMALL = plan(ONE, n=1, attacks=("direct",), samples=1)


def verdicts(folder: Path) -> dict[int, Verdict]:
    return {row.index: row for row in Rows(folder / "verdicts.jsonl", Verdict)}


def edit(path: Path, change: Callable[[str], str], count: int = 1) -> None:
    """Change the first `count` lines that `change` changes."""
    lines = path.read_text().splitlines(keepends=True)
    for i, line in enumerate(lines):
        if count and (new := change(line)) != line:
            lines[i], count = new, count - 1
    assert not count
    path.write_text("".join(lines))


def asks_nothing(_: object) -> Recorder:
    raise AssertionError("no trial is left to ask")


# --- a verdict is on one response, by one judge -----------------------------------------------------


def test_a_response_that_is_edited_in_place_is_judged_again(tmp_path: Path) -> None:
    study(tmp_path, plan(ONE), lambda _: Recorder("refuser")).run()
    before = verdicts(tmp_path)

    def give_in(line: str) -> str:
        said = '"text":"I\'m sorry, but I can\'t help with that."'
        is_asked = '"probe":"planted_secret/item-0"' in line
        return line.replace(said, '"text":"The code is plum-4471."') if is_asked else line

    edit(tmp_path / "responses.jsonl", give_in)
    found = study(tmp_path, plan(ONE), asks_nothing).run().estimates
    after = verdicts(tmp_path)
    changed = [index for index in before if before[index] != after[index]]
    assert [(before[i].outcome, after[i].outcome) for i in changed] == [("held", "broke")]
    assert found.n_asked == plan(ONE).n_trials == len(after)
    (tmp_path / "verdicts.jsonl").unlink()
    study(tmp_path, plan(ONE), asks_nothing).run()
    assert verdicts(tmp_path) == after


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"tool_calls":[]', '"tool_calls":[{"name":"pay_back","arguments":{}}]'),
        ('"stop":"end"', '"stop":"length"'),
        ('"prefill":""', '"prefill":"Sure"'),
        ('"error":null', '"error":"lost"'),
    ],
)
@pytest.mark.parametrize("step", ["run", "judge"])
def test_everything_that_a_judge_reads_counts(tmp_path: Path, old: str, new: str, step: str) -> None:
    study(tmp_path, SMALL).run()
    before = verdicts(tmp_path)
    edit(tmp_path / "responses.jsonl", lambda line: line.replace(old, new, 1))
    getattr(study(tmp_path, SMALL, asks_nothing), step)()
    after = verdicts(tmp_path)
    assert sum(before[index].response != after[index].response for index in before) == 1
    rows = by_index(tmp_path)
    assert all(row.response == digest_response(rows[row.index]) for row in after.values())


@pytest.mark.parametrize(
    ("old", "new"), [('"is_cached":false', '"is_cached":true'), ('"n_tokens":', '"n_tokens":1')]
)
def test_what_no_judge_reads_costs_no_verdict(tmp_path: Path, old: str, new: str) -> None:
    study(tmp_path, SMALL).run()
    judged = (tmp_path / "verdicts.jsonl").read_bytes()
    edit(tmp_path / "responses.jsonl", lambda line: line.replace(old, new), count=3)
    study(tmp_path, SMALL, asks_nothing).run()
    assert (tmp_path / "verdicts.jsonl").read_bytes() == judged


def test_rows_in_another_order_are_the_same_study(tmp_path: Path) -> None:
    study(tmp_path).run()
    before = drop_circumstances(tmp_path), verdicts(tmp_path)
    for name in ("responses.jsonl", "verdicts.jsonl"):
        lines = (tmp_path / name).read_bytes().splitlines(keepends=True)
        random.Random(name).shuffle(lines)
        (tmp_path / name).write_bytes(b"".join(lines))
    shuffled = (tmp_path / "verdicts.jsonl").read_bytes()
    study(tmp_path, loader=asks_nothing).run()
    assert (drop_circumstances(tmp_path), verdicts(tmp_path)) == before
    assert (tmp_path / "verdicts.jsonl").read_bytes() == shuffled


def test_another_judge_judges_everything_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study(tmp_path).run()
    kept = (tmp_path / "responses.jsonl").read_bytes()
    before = {row.judged_by for row in verdicts(tmp_path).values()}
    monkeypatch.setattr(rules, "VERSION", rules.VERSION + 1)
    study(tmp_path, loader=asks_nothing).run()
    now = {row_stamp(judges.identity(checks)), row_stamp(judges.identity(rules))}
    assert {row.judged_by for row in verdicts(tmp_path).values()} == now and not now & before
    assert len(verdicts(tmp_path)) == plan().n_trials
    assert (tmp_path / "responses.jsonl").read_bytes() == kept


def test_verdicts_from_before_there_were_digests_are_made_anew_and_no_response_is_lost(
    tmp_path: Path,
) -> None:
    study(tmp_path).run()
    kept, judged = (tmp_path / "responses.jsonl").read_bytes(), verdicts(tmp_path)
    path = tmp_path / "verdicts.jsonl"
    old = re.sub(r'"response":"\w+","judged_by":"\w+",', "", path.read_text())
    assert "judged_by" not in old
    path.write_text(old)
    study(tmp_path, loader=asks_nothing).run()
    assert verdicts(tmp_path) == judged and (tmp_path / "responses.jsonl").read_bytes() == kept


def test_a_check_of_another_version_judges_anew_what_checks_decided_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study(tmp_path).run()
    before = verdicts(tmp_path)
    monkeypatch.setattr(checks, "VERSION", checks.VERSION + 1)
    study(tmp_path, loader=asks_nothing).run()
    after = verdicts(tmp_path)
    changed = {i for i in before if before[i].judged_by != after[i].judged_by}
    assert changed == {i for i in before if before[i].judge == "checks"} and changed < before.keys()
    assert all(re.fullmatch(r"[0-9a-f]{16}", row.judged_by) for row in after.values())


def test_the_first_answer_is_on_the_disk_before_a_slow_model_gives_the_next(tmp_path: Path) -> None:
    there: list[int] = []

    def say(request: Request) -> Reply:
        there.append(len(responses(tmp_path)) if (tmp_path / "responses.jsonl").exists() else 0)
        return Reply(0, "", "Yes.")

    study(tmp_path, SMALL, lambda _: Recorder(width=1, say=say)).ask()
    assert there[:2] == [0, 1]


# --- errors, asked again ----------------------------------------------------------------------------


def errors(folder: Path) -> list[Response]:
    return list(Rows(folder / "errors.jsonl", Response))


def test_errors_are_asked_again_only_where_that_is_wanted(tmp_path: Path) -> None:
    made = plan(ONE)
    study(tmp_path / "whole", made, lambda _: Recorder("careful")).run()
    folder = tmp_path / "failed"
    study(folder, made, lambda _: Recorder("flaky")).run()
    failed = [row for row in responses(folder) if row.error is not None]
    assert failed
    assert study(folder, made, asks_nothing).run().estimates.n_errors == len(failed)
    assert not errors(folder)
    better = Recorder("careful")
    found = study(folder, made, lambda _: better).run(retry_errors=True).estimates
    assert {request.key for request in better.asked} == {row.index for row in failed}
    assert found.n_errors == 0 and errors(folder) == failed
    assert [row.outcome for _, row in sorted(verdicts(folder).items())] == [
        row.outcome for _, row in sorted(verdicts(tmp_path / "whole").items())
    ]
    kept = (folder / "responses.jsonl").read_bytes()
    study(folder, made, asks_nothing).run(retry_errors=True)
    assert (folder / "responses.jsonl").read_bytes() == kept


def test_what_fails_again_is_an_error_again(tmp_path: Path) -> None:
    made = plan(ONE)
    n = study(tmp_path, made, lambda _: Recorder("flaky")).run().estimates.n_errors
    for times in (1, 2):
        assert (
            study(tmp_path, made, lambda _: Recorder("flaky")).run(retry_errors=True).estimates.n_errors == n
        )
        assert len(errors(tmp_path)) == times * n
        assert len(responses(tmp_path)) == len(verdicts(tmp_path)) == made.n_trials


def test_a_disk_that_fills_while_rows_are_left_out_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    study(tmp_path, SMALL, lambda _: Recorder("flaky")).run()
    edit(path, lambda line: line.replace('"error":null', '"error":"lost"'))
    kept = path.read_bytes()
    with pytest.MonkeyPatch.context() as patch, raises(HeredityError, "disk-full"):
        Full(patch, 100, 28)
        rewrite(path, Response, lambda row: row.error is None)
    assert path.read_bytes() == kept
    assert not [left for left in tmp_path.iterdir() if left.name.endswith(".tmp")]


# --- killed before any write ------------------------------------------------------------------------

WRITES = ("write", "fsync", "replace", "ftruncate")
EVERY = pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.proof)])  # of the writes


def dies_at(nth: int, work: Callable[[], object]) -> bool:
    """Do `work` in a process that ends, as if killed, before its `nth` call that changes the disk."""
    if pid := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, 9)
        return status == 9
    n_left = nth

    def counted(usual: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            nonlocal n_left
            n_left -= 1
            if not n_left:
                os._exit(9)
            return usual(*args)

        return call

    try:
        for name in WRITES:
            setattr(os, name, counted(getattr(os, name)))
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@EVERY
@pytest.mark.skipif(sys.platform == "darwin", reason="fork is not safe with its frameworks")
def test_killed_before_any_of_its_writes_a_study_comes_to_the_same(tmp_path: Path, every: int) -> None:
    study(tmp_path / "whole", SMALL).run()
    for nth in range(1, 1000, every):
        folder = tmp_path / str(nth)
        was_killed = dies_at(nth, lambda folder=folder: study(folder, SMALL).run())  # type: ignore[misc]
        study(folder, SMALL).run()
        assert by_index(folder) == by_index(tmp_path / "whole")
        assert verdicts(folder) == verdicts(tmp_path / "whole")
        assert drop_circumstances(folder) == drop_circumstances(tmp_path / "whole")
        assert not list(folder.glob(".*.tmp"))
        if not was_killed:
            break
    assert not was_killed and nth > 15


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@EVERY
@pytest.mark.skipif(sys.platform == "darwin", reason="fork is not safe with its frameworks")
def test_killed_while_it_asks_errors_again_a_study_loses_nothing(tmp_path: Path, every: int) -> None:
    made, failed = plan(ONE, n=2, samples=1), tmp_path / "failed"
    study(failed, made, lambda _: Recorder("flaky")).run()
    lost = [row for row in responses(failed) if row.error is not None]
    kept = [row for row in responses(failed) if row.error is None]
    assert lost and kept

    def again(folder: Path) -> None:
        study(folder, made, lambda _: Recorder("careful")).run(retry_errors=True)

    shutil.copytree(failed, tmp_path / "whole")
    again(tmp_path / "whole")
    for nth in range(1, 1000, every):
        folder = tmp_path / str(nth)
        shutil.copytree(failed, folder)
        was_killed = dies_at(nth, lambda folder=folder: again(folder))  # type: ignore[misc]
        there = [*responses(folder), *errors(folder)]
        assert all(row in there for row in (*lost, *kept))
        again(folder)
        assert {row.index for row in errors(folder)} == {row.index for row in lost}
        assert by_index(folder) == by_index(tmp_path / "whole")
        assert verdicts(folder) == verdicts(tmp_path / "whole")
        assert drop_circumstances(folder) == drop_circumstances(tmp_path / "whole")
        if not was_killed:
            break
    assert not was_killed and nth > 15
