"""A study that was stopped, torn or spoilt: it goes on, or says why not; nothing is lost or asked twice."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from heredity.core.errors import Busy, Damaged, HeredityError, NotComparable
from heredity.core.files import Lock
from heredity.lineage import store as lineage
from heredity.lineage.types import Grown
from heredity.study.study import Progress
from tests.support.errors import names, raises
from tests.support.studies import Recorder, by_index, drop_circumstances, plan, responses, study

ONE = ("scripted:mixed",)


class Stopped(Exception):
    """The process is told to stop."""


def stop_after(n: int) -> object:
    """A watcher that stops the study from inside once `n` trials of the asking are done."""

    def watch(progress: Progress) -> None:
        if progress.step == "ask" and progress.n_done >= n:
            raise Stopped

    return watch


@pytest.mark.slow
@pytest.mark.parametrize("n_kept", [0, 1, 57, 100])
@pytest.mark.parametrize("torn", [b"", b'{"index":3,"trial":"2862', b'{"index":3}'])
def test_a_torn_file_goes_on_as_if_nothing_had_happened(tmp_path: Path, n_kept: int, torn: bytes) -> None:
    study(tmp_path / "whole").run()
    study(tmp_path / "torn").run()
    for name in ("responses.jsonl", "verdicts.jsonl"):
        path = tmp_path / "torn" / name
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:n_kept]) + torn)
    study(tmp_path / "torn").run()
    rows = responses(tmp_path / "torn")
    assert len(rows) == len({row.index for row in rows}) == plan().n_trials
    assert by_index(tmp_path / "torn") == by_index(tmp_path / "whole")
    assert drop_circumstances(tmp_path / "torn") == drop_circumstances(tmp_path / "whole")


def test_the_same_command_again_asks_nothing(tmp_path: Path) -> None:
    study(tmp_path).run()
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    engine = Recorder()
    study(tmp_path, loader=lambda _: engine).run()
    assert not engine.asked
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == files


def test_each_step_goes_on_alone(tmp_path: Path) -> None:
    it = study(tmp_path)
    assert it.plan() == plan()
    it.ask()
    it.judge()
    (tmp_path / "verdicts.jsonl").unlink()
    assert it.estimate().estimates.n_asked == 0
    it.judge()
    assert it.estimate().estimates.n_asked == plan().n_trials


def test_models_are_loaded_one_at_a_time_and_only_where_they_have_trials_left(tmp_path: Path) -> None:
    loaded: list[Recorder] = []

    def loader(grown: Grown) -> Recorder:
        assert all(engine.is_closed for engine in loaded)
        loaded.append(Recorder(*grown.record.name.removeprefix("scripted:").partition("/")[::2]))
        return loaded[-1]

    study(tmp_path, loader=loader).ask()
    assert len(loaded) == 2
    path = tmp_path / "responses.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-5]))
    study(tmp_path, loader=loader).ask()
    assert len(loaded) == 3


@pytest.mark.slow
def test_a_study_that_is_stopped_keeps_what_was_said(tmp_path: Path) -> None:
    slow = [lambda _: Recorder()]
    with pytest.raises(Stopped):
        study(tmp_path, plan(samples=40), slow[0]).run(stop_after(200))  # type: ignore[arg-type]
    kept = responses(tmp_path)
    assert len(kept) >= 200
    study(tmp_path, plan(samples=40)).run()
    rows = responses(tmp_path)
    assert rows[: len(kept)] == kept
    assert len({row.index for row in rows}) == len(rows) == plan(samples=40).n_trials


def test_progress_counts_what_earlier_runs_did_and_ends_whole(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        study(tmp_path, loader=lambda _: Recorder()).run(stop_after(0))  # type: ignore[arg-type]
    study(tmp_path).ask()
    path = tmp_path / "responses.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    seen: list[Progress] = []
    study(tmp_path).run(seen.append)
    n = plan().n_trials
    asked = [p for p in seen if p.step == "ask"]
    assert asked[0].n_done == n - 3 and asked[0].model == "scripted:mixed/b"
    assert {p.step: (p.n_done, p.n_total) for p in seen} == {
        "ask": (n, n),
        "judge": (n, n),
        "estimate": (1, 1),
    }


def test_a_lock_is_let_go_after_every_step(tmp_path: Path) -> None:
    it = study(tmp_path)
    for step in (it.plan, it.ask, it.judge, it.estimate):
        step()
        with Lock(tmp_path):
            pass


def test_a_model_is_not_finished_under_other_arithmetic(tmp_path: Path) -> None:
    store = lineage.Store(tmp_path / "store")
    made, folder = plan(ONE), tmp_path / "out"
    study(folder, made, lambda _: Recorder(numerics="bfloat16"), store).ask()
    path = folder / "responses.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    kept = path.read_bytes()
    with raises(NotComparable, "not-comparable", mentions=["bfloat16", "float32"]):
        study(folder, made, lambda _: Recorder("mixed", "", 8, "float32"), store).ask()
    assert path.read_bytes() == kept
    study(folder, made, lambda _: Recorder(numerics="bfloat16"), store).ask()
    assert len(responses(folder)) == made.n_trials


def keep_lines(path: Path, keep: Callable[[str], bool]) -> None:
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if keep(line)))


def judged_again(folder: Path) -> bytes:
    """The verdicts of the answers that are there now, made from nothing."""
    (folder / "verdicts.jsonl").unlink()
    study(folder, plan(ONE)).run()
    return drop_circumstances(folder)


def test_a_trial_that_is_asked_again_is_judged_again(tmp_path: Path) -> None:
    made = plan(ONE)
    study(tmp_path, made, lambda _: Recorder("flaky")).run()
    keep_lines(tmp_path / "responses.jsonl", lambda line: '"error":null' in line)
    found = study(tmp_path, made, lambda _: Recorder("refuser")).run().estimates
    assert (found.n_errors, found.n_asked) == (0, made.n_trials)
    assert drop_circumstances(tmp_path) == judged_again(tmp_path)


def test_verdicts_on_answers_that_are_gone_do_not_count(tmp_path: Path) -> None:
    made = plan(ONE)
    study(tmp_path, made, lambda _: Recorder("helpful")).run()
    (tmp_path / "responses.jsonl").unlink()
    study(tmp_path, made, lambda _: Recorder("refuser")).run()
    assert drop_circumstances(tmp_path) == judged_again(tmp_path)


def test_judging_alone_drops_verdicts_on_answers_that_are_gone(tmp_path: Path) -> None:
    study(tmp_path).run()
    keep_lines(tmp_path / "responses.jsonl", lambda line: '"attack":"direct"' in line)
    it = study(tmp_path)
    it.judge()
    assert it.estimate().estimates.n_asked == plan().n_trials // 2


def test_answers_whose_arithmetic_is_not_known_are_not_gone_on_with(tmp_path: Path) -> None:
    study(tmp_path).run()
    (tmp_path / "runs.jsonl").unlink()
    with raises(Damaged, "damaged", mentions=["runs.jsonl", "scripted:mixed"]):
        study(tmp_path).run()
    assert not (tmp_path / "runs.jsonl").exists()


@pytest.mark.parametrize(
    ("spoilt", "error", "said"),
    [
        (None, Damaged, ("damaged", ["prefixes.jsonl"])),
        (lambda row: row[:-9], Damaged, ("damaged", ["prefixes.jsonl"])),
        (lambda row: b"\0" + row, Damaged, ("damaged", ["prefixes.jsonl:1"])),
        (lambda row: row.replace(b'"schema":1', b'"schema":0'), NotComparable, ("schema-mismatch", ["0"])),
        (lambda row: row.replace(b"Larkfield", b"Barkfield"), Damaged, ("damaged", [])),
    ],
)
def test_a_finished_study_without_its_prefixes_is_damaged(
    tmp_path: Path,
    spoilt: Callable[[bytes], bytes] | None,
    error: type[Exception],
    said: tuple[str, list[str]],
) -> None:
    study(tmp_path).run()
    path = tmp_path / "prefixes.jsonl"
    row = path.read_bytes()
    path.unlink()
    if spoilt is not None:
        path.write_bytes(spoilt(row))
    with raises(error, *said):
        study(tmp_path).run()


# --- bad folders ------------------------------------------------------------------------------------


def spoil(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("name", ["responses.jsonl", "verdicts.jsonl"])
def test_rows_of_an_older_schema_are_refused(tmp_path: Path, name: str) -> None:
    study(tmp_path).run()
    spoil(tmp_path, name, '"schema":2', '"schema":1')
    with raises(NotComparable, "schema-mismatch", mentions=[f"{name}:1", 1, 2]):
        study(tmp_path).run()


def test_estimates_of_an_older_schema_are_refused(tmp_path: Path) -> None:
    from heredity.study import storage

    study(tmp_path).run()
    path = tmp_path / "estimates.json"
    path.write_text(re.sub(r'"schema": \d+\n}\s*$', '"schema": 0\n}', path.read_text()))
    with raises(NotComparable, "schema-mismatch", mentions=["0"]):
        storage.read_estimates(tmp_path)


@pytest.mark.parametrize("name", ["responses.jsonl", "verdicts.jsonl"])
def test_a_row_of_another_plan_is_damage(tmp_path: Path, name: str) -> None:
    study(tmp_path / "a").run()
    study(tmp_path / "b", plan(seed=1)).run()
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with raises(Damaged, "damaged", mentions=[f"{name}:1"]):
        study(tmp_path / "a").run()


@pytest.mark.parametrize("name", ["responses.jsonl", "verdicts.jsonl"])
def test_a_trial_that_is_there_twice_is_damage(tmp_path: Path, name: str) -> None:
    study(tmp_path).run()
    path = tmp_path / name
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0])
    with raises(Damaged, "damaged"):
        study(tmp_path).run()


HOLDS = """
import sys
from pathlib import Path
from heredity.core.files import Lock
with Lock(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


@pytest.mark.slow
def test_a_second_process_is_told_that_the_folder_is_busy(tmp_path: Path) -> None:
    it = study(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline()
        with raises(Busy, "busy", mentions=[tmp_path]):
            it.run()
        other.communicate(b"\n")
    it.run()


def test_another_plan_in_the_folder_changes_nothing_there(tmp_path: Path) -> None:
    study(tmp_path).run()
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with raises(NotComparable, "another-study", mentions=["seed"]):
        study(tmp_path, plan(seed=2))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == files


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"probe":"planted_secret/item-0"', '"probe":"planted_secret/item-1"'),
        ('"probe":"planted_secret/item-0"', '"probe":"nothing/of-the-kind"'),
        ('"attack":"direct"', '"attack":"prefill"'),
        ('"model":"', '"model":"0'),
        ('"application":"', '"application":"0'),
        ('"sample":0', '"sample":1'),
        ('"seed":', '"seed":1'),
    ],
)
@pytest.mark.parametrize("step", ["ask", "judge"])
def test_a_response_that_is_not_of_its_trial_is_damage(tmp_path: Path, old: str, new: str, step: str) -> None:
    study(tmp_path).ask()
    path = tmp_path / "responses.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if old in line)
    lines[place] = lines[place].replace(old, new, 1)
    path.write_text("".join(lines))
    with raises(Damaged, "damaged", mentions=[f"responses.jsonl:{place + 1}"]):
        getattr(study(tmp_path), step)()


class Full:
    """A file system that takes `n` bytes more; every write goes through os.write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n: int, code: int) -> None:
        self.n, self.code, self.write = n, code, os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, handle: int, data: bytes) -> int:
        self.n -= len(data)
        if self.n < 0:
            half = bytes(data)[: len(data) // 2]
            self.write(handle, half)  # as a real one does: some of it fits
            raise OSError(self.code, os.strerror(self.code))
        return self.write(handle, data)


@pytest.mark.parametrize(("code", "said"), [(errno.ENOSPC, ("disk-full", [])), (errno.EIO, ("failure", []))])
def test_a_disk_that_fails_leaves_whole_rows_and_the_study_goes_on(
    tmp_path: Path, code: int, said: tuple[str, list[str]]
) -> None:
    study(tmp_path / "whole").run()
    it = study(tmp_path / "full")
    with pytest.MonkeyPatch.context() as patch:
        Full(patch, 6_000, code)
        with raises(HeredityError, *said):
            it.run()
    left = (tmp_path / "full" / "responses.jsonl").read_bytes()
    assert left == b"" or left.endswith(b"\n")
    study(tmp_path / "full").run()
    assert drop_circumstances(tmp_path / "full") == drop_circumstances(tmp_path / "whole")


LIMITED = """
import resource, sys
from pathlib import Path
from heredity.core.errors import HeredityError
from heredity.study.study import Study
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    Study.open(sys.argv[1]).run()
except HeredityError as error:
    print(error.code, error)
    raise SystemExit(2)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on file sizes to set")
def test_a_file_that_may_not_grow_is_a_clear_error_and_the_study_goes_on(tmp_path: Path) -> None:
    it = study(tmp_path, plan(samples=8))
    run = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (2, "")
    assert len(run.stdout.splitlines()) == 1
    assert run.stdout.startswith("failure ") and names(run.stdout, "responses.jsonl")
    assert len(responses(tmp_path)) < plan(samples=8).n_trials
    assert it.run().estimates.n_asked == plan(samples=8).n_trials
