"""Studies whose workers and driver are killed on their way, held against the study of one process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from tests.support.studies import by_index, drop_circumstances, responses

ACTOR = b"ray::StudyWorker"  # how Ray names the process of an actor
PROCESS = b"multiprocessing.spawn"  # in the command of a worker of this machine


def children(pid: int) -> list[int]:
    """The processes that a process has started: those of a driver are workers and a tracker."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_command(pid: int, words: bytes) -> bool:
    """Whether the command of a process has these words."""
    try:
        return words in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def workers(pid: int) -> list[int]:
    """The workers of a driver of this machine."""
    return [each for each in children(pid) if is_command(each, PROCESS)]


def actors(pid: int) -> list[int]:
    """The actors of the Ray cluster that a driver has started."""
    found, waiting = list[int](), children(pid)
    while waiting:
        each = waiting.pop()
        waiting += children(each)
        if is_command(each, ACTOR):
            found.append(each)
    return found


def n_rows(folder: Path) -> int:
    """The answers that a study's folder has."""
    path = folder / "responses.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run_under_kills(
    command: Sequence[str],
    folder: Path,
    moments: Sequence[int],
    workers: Callable[[int], list[int]] = workers,
    every: int = 4,
    **how: Any,
) -> list[str]:
    """Run a study to its end, and kill at each of `moments`, numbers of rows. Who was killed, in order.

    Each time but for one of `every` it is a worker; then it is the driver, which is started again.
    workers: the processes of a driver's workers. how: of Popen.
    """
    process, found = subprocess.Popen(command, **how), list[str]()
    for n, moment in enumerate(moments):
        victims: list[int] = []
        while process.poll() is None and (n_rows(folder) < moment or not victims):
            victims = workers(process.pid)
            time.sleep(0.005)
        if process.poll() is not None:
            break
        if n % every == every - 1:
            process.kill()
            process.wait()
            found.append("driver")
            process = subprocess.Popen(command, **how)
        else:
            with suppress(ProcessLookupError):  # it has ended by itself: nobody was killed
                os.kill(random.choice(victims), signal.SIGKILL)
                found.append("worker")
    assert process.wait() == 0
    return found


def assert_as_of_one_process(n_trials: int, several: Path, whole: Path) -> None:
    """Check that each trial has one row, and that rows and estimates are those of `whole`."""
    rows = responses(several)
    assert sorted(row.index for row in rows) == list(range(n_trials))
    found, expected = by_index(several), by_index(whole)
    assert {i: (row.exchanges, row.error) for i, row in found.items()} == {
        i: (row.exchanges, row.error) for i, row in expected.items()
    }
    assert numbers(several) == numbers(whole)


def numbers(folder: Path) -> Mapping[str, Any]:
    """The estimates without what depends on the run: its circumstances and the names of engines."""
    found: dict[str, Any] = msgspec.json.decode(drop_circumstances(folder))
    found.pop("forecast", None)
    for card in found["models"]:
        del card["engine"]  # its name has the width, which is measured
    return found
