"""A study with worker processes: the rows of one process, whatever happens to the workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from heredity.core.errors import Damaged, EngineFailure, OutOfMemory, UsageError
from heredity.core.progress import Progress
from heredity.core.records import WORKER_DIED
from heredity.engines.remote.services import Budget, Calls
from heredity.study.plan import Plan
from heredity.study.spec import StudySpec
from heredity.study.storage import run_records
from heredity.study.study import Study
from heredity.study.workers import Workers
from tests.support import worker_engines
from tests.support.errors import raises
from tests.support.studies import (
    APPLICATION,
    by_index,
    drop_circumstances,
    plan,
    probes,
    responses,
    study,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the engines end with SIGKILL"),
]
ROOT = Path(__file__).parents[3]
MADE = plan(["scripted:mixed", "scripted:flaky"], n=2)


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the engines of workers note what they do."""
    folder = tmp_path / "notes"
    folder.mkdir()
    monkeypatch.setenv(worker_engines.FOLDER, str(folder))
    monkeypatch.chdir(ROOT)  # where a worker finds the package of the tests
    return folder


def named(function: str, n: int = 2, late_seconds: float = 900.0) -> Workers:
    return Workers(n, late_seconds=late_seconds, loader=f"tests.support.worker_engines:{function}")


def lines(notes: Path, name: str) -> list[str]:
    path = notes / name
    return path.read_text().splitlines() if path.exists() else []


def assert_as_of_one_process(folder: Path, made: Plan = MADE) -> None:
    one = folder.parent / "one"
    study(one, made).run()
    assert by_index(folder) == by_index(one)
    assert len(responses(folder)) == made.n_trials
    assert numbers(folder) == numbers(one)


def numbers(folder: Path) -> dict[str, object]:
    """Its estimates; not the forecast, which measures the speed of a study next to it."""
    found: dict[str, object] = msgspec.json.decode(drop_circumstances(folder))
    found.pop("forecast", None)
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_three_workers_write_the_rows_of_one_process_and_leave_no_process(
    tmp_path: Path, notes: Path
) -> None:
    found: list[Progress] = []
    (notes / "together").write_text("3")
    study(tmp_path / "several", MADE).run(found.append, workers=named("noting", 3))
    assert_as_of_one_process(tmp_path / "several")
    pids = {int(line.split()[1]) for line in lines(notes, "asked")}
    assert len(pids) == 3 and not any(map(is_alive, pids))
    asked = Counter(line.split()[0] for line in lines(notes, "asked"))
    assert all(n == len(by_index(tmp_path / "several")[int(key)].exchanges) for key, n in asked.items())
    last = [each for each in found if each.step == "ask"][-1]
    assert [(m.name, m.n_done, m.n_leased) for m in last.models] == [
        ("scripted:mixed", 56, 0), ("scripted:flaky", 56, 0),
    ]  # fmt: skip
    assert last.models[1].n_failed == sum(row.error is not None for row in responses(tmp_path / "several"))
    assert last.n_workers == 3


def test_a_study_of_one_process_is_finished_by_workers_and_asks_nothing_twice(
    tmp_path: Path, notes: Path
) -> None:
    folder = tmp_path / "several"
    study(folder, MADE).run()
    rows = (folder / "responses.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "responses.jsonl").write_bytes(b"".join(rows[:100]) + rows[100][:9])
    left = {msgspec.json.decode(row)["index"] for row in rows[100:]}
    study(folder, MADE).run(workers=named("noting"))
    assert {int(line.split()[0]) for line in lines(notes, "asked")} == left
    assert_as_of_one_process(folder)


def test_errors_are_rows_and_only_they_are_asked_again(tmp_path: Path, notes: Path) -> None:
    folder = tmp_path / "several"
    study(folder, MADE).run(workers=named("noting"))
    failed = {row.index for row in responses(folder) if row.error is not None}
    assert failed
    (notes / "asked").unlink()
    study(folder, MADE).run(workers=named("noting"), retry_errors=True)
    assert {int(line.split()[0]) for line in lines(notes, "asked")} == failed
    assert_as_of_one_process(folder)


def test_a_trial_that_kills_its_worker_becomes_an_error_row_and_all_others_are_answered(
    tmp_path: Path, notes: Path
) -> None:
    folder, made = tmp_path / "several", plan(["scripted:mixed"], n=2, attacks=("direct",), samples=1)
    study(folder, made).run(workers=named("poisoned"))
    study(tmp_path / "one", made).run()
    several, one = by_index(folder), by_index(tmp_path / "one")
    dead = [row for row in several.values() if row.error_code == WORKER_DIED]
    assert [row.probe for row in dead] == ["planted_secret/item-1"]
    assert {k: v for k, v in several.items() if v.index != dead[0].index} == {
        k: v for k, v in one.items() if k != dead[0].index
    }
    study(folder, made).run(workers=named("noting"), retry_errors=True)
    assert by_index(folder) == one


def test_a_worker_that_dies_while_it_loads_ends_the_study_with_advice(tmp_path: Path, notes: Path) -> None:
    made = plan(["scripted:mixed"], n=2)
    with raises(OutOfMemory, "out-of-memory", ["scripted:mixed", "SIGKILL", "--workers"]):
        study(tmp_path / "several", made).run(workers=named("dying", 3))
    assert len(lines(notes, "loaded")) == 3
    assert not any(is_alive(int(line.split()[1])) for line in lines(notes, "loaded"))


def test_an_error_of_loading_is_raised_as_it_is_in_one_process(tmp_path: Path, notes: Path) -> None:
    made = plan(["scripted:mixed"], n=2)
    with raises(Damaged, "damaged", ["a file is torn"]):
        study(tmp_path / "several", made).run(workers=named("damaged", 3))
    assert len(lines(notes, "loaded")) == 1


def test_an_engine_that_fails_on_the_way_is_started_again_and_loses_nothing(
    tmp_path: Path, notes: Path
) -> None:
    (notes / "good").write_text("25")  # of 112 trials, with two workers and two models: one fails at least
    study(tmp_path / "several", MADE).run(workers=named("failing"))
    assert_as_of_one_process(tmp_path / "several")
    assert lines(notes, "failed")


def test_an_engine_that_fails_every_time_ends_the_study_with_its_error(tmp_path: Path, notes: Path) -> None:
    (notes / "good").write_text("0")
    with raises(EngineFailure, "engine-failure", ["scripted:mixed", "the device is lost"]):
        study(tmp_path / "several", MADE).run(workers=named("failing"))


def test_a_slow_lease_is_given_to_another_and_its_late_answer_is_not_written_twice(
    tmp_path: Path, notes: Path
) -> None:
    folder = tmp_path / "several"
    made = plan(["scripted:mixed"], n=2, attacks=("direct",), samples=1)

    def watch(progress: Progress) -> None:
        if (notes / "late").exists() and progress.n_done == made.n_trials and progress.step == "ask":
            (notes / "go on").touch()

    study(folder, made).run(watch, workers=named("hanging", late_seconds=0.5))
    assert_as_of_one_process(folder, made)
    late = (notes / "late").read_text()
    assert [line.split()[0] for line in lines(notes, "asked")].count(late) >= 1
    hung = int((notes / "hangs").read_text())
    assert not is_alive(hung)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_driver_and_all_workers_and_keeps_the_rows(
    tmp_path: Path, notes: Path, stop: signal.Signals
) -> None:
    folder = tmp_path / "several"
    (notes / "seconds").write_text("0.05")
    study(folder, MADE)
    child = (
        "import signal, sys\nfrom pathlib import Path\nfrom heredity.study.study import Study\n"
        "from tests.study.workers.test_processes import named\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it\n"
        "Study.open(Path(sys.argv[1])).run(workers=named('noting', 3))"
    )
    process = subprocess.Popen([sys.executable, "-c", child, str(folder)], stderr=subprocess.PIPE, text=True)
    while not (folder / "responses.jsonl").exists() or len(lines(notes, "asked")) < 10:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(stop)
    _, printed = process.communicate(timeout=60)
    assert process.returncode != 0 and "leaked" not in printed
    pids = {int(line.split()[1]) for line in lines(notes, "loaded")}
    assert pids and not any(map(is_alive, pids))
    n = len(responses(folder))
    assert 0 < n < MADE.n_trials
    (notes / "seconds").unlink()
    study(folder, MADE).run(workers=named("noting"))
    assert_as_of_one_process(folder)


def test_workers_end_when_their_driver_is_killed(tmp_path: Path, notes: Path) -> None:
    folder = tmp_path / "several"
    (notes / "seconds").write_text("0.05")
    study(folder, MADE)
    child = (
        "import sys\nfrom pathlib import Path\nfrom heredity.study.study import Study\n"
        "from tests.study.workers.test_processes import named\n"
        "Study.open(Path(sys.argv[1])).run(workers=named('noting', 2))"
    )
    process = subprocess.Popen([sys.executable, "-c", child, str(folder)])
    while len(lines(notes, "asked")) < 10:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    pids = {int(line.split()[1]) for line in lines(notes, "loaded")}
    until = time.monotonic() + 60
    while any(map(is_alive, pids)):
        assert time.monotonic() < until
        time.sleep(0.01)
    (notes / "seconds").unlink()
    study(folder, MADE).run(workers=named("noting"))
    assert_as_of_one_process(folder)


def test_undecided_pairs_are_asked_by_workers_as_by_one_process(tmp_path: Path) -> None:
    def of(name: str) -> Study:
        return Study(
            StudySpec(
                ["scripted:leaky", "scripted:careful"],
                APPLICATION,
                probes=probes(12),
                samples=2,
                until_decided=True,
                out=tmp_path / name,
            )
        )

    one, several = of("one"), of("several")
    one.run()
    several.run(workers=named("noting"))
    n = one.resolved.n_trials
    assert by_index(tmp_path / "several") == by_index(tmp_path / "one")
    assert len(responses(tmp_path / "one")) < n
    assert numbers(tmp_path / "several") == numbers(tmp_path / "one")


def test_adaptive_attacks_keep_their_state_in_the_worker(tmp_path: Path) -> None:
    made = Study(
        StudySpec(
            ["scripted:mixed", "scripted:leaky"],
            APPLICATION,
            probes=probes(2),
            attacks=["crescendo", "pair", "refusal_direction"],
            attacker="scripted:helpful",
            out=tmp_path / "several",
        )
    ).plan()
    study(tmp_path / "several", made).run(workers=named("noting"))
    assert_as_of_one_process(tmp_path / "several", made)
    rows = responses(tmp_path / "several")
    assert any(len(row.exchanges) > 1 for row in rows) and any(row.consulted for row in rows)


def test_the_plan_does_not_know_of_workers(tmp_path: Path) -> None:
    study(tmp_path / "several", MADE).run(workers=named("noting"))
    study(tmp_path / "one", MADE).run()
    one, several = (
        msgspec.json.decode((tmp_path / name / "plan.json").read_bytes()) for name in ("one", "several")
    )
    assert one["study"] == several["study"] and one["plan"] == several["plan"]
    assert {run.plan_seal for run in run_records(tmp_path / "several")} != {""}


def test_what_workers_cannot_take_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    from heredity.engines.scripted import ScriptedEngine

    own = study(tmp_path / "own", MADE, loader=lambda grown: ScriptedEngine("mixed"))
    with raises(UsageError, "bad-usage"):
        own.run(workers=2)
    with raises(UsageError, "bad-usage"):
        own.run(workers=0)
    with raises(UsageError, "bad-usage"):
        Workers(2, calls=Calls(budget=Budget(max_tokens=100)))
    assert not (tmp_path / "own" / "responses.jsonl").exists()


def test_a_script_may_ask_with_workers_outside_of_any_block(tmp_path: Path, notes: Path) -> None:
    """Python's own processes would run the script again."""
    study(tmp_path / "several", MADE)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom heredity.study.study import Study\n"
        "from tests.study.workers.test_processes import named\n"
        "Study.open(Path(sys.argv[1])).run(workers=named('noting'))"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, str(script), str(tmp_path / "several")]
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert_as_of_one_process(tmp_path / "several")
