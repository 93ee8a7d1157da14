"""Processes that are killed with SIGKILL on their way, and then left to end."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.forkserver import Process, run

RUNS = "training/*/training.jsonl"  # below a store


def ends_after_kills(
    argv: Sequence[str], folder: Path, n_done: Callable[[], int], at: Iterable[int], **environment: str
) -> subprocess.CompletedProcess[str]:
    """The last of the runs of `python ARGV...`: one is killed wherever `n_done` says that so much is done.

    Each must still have been running when it was killed; the last must end well. folder: for its output.
    """
    for after in at:
        # Helpers of a killed process may write for a while: not into the output of the next one.
        process = Process(argv, folder / f"stdout-{after}", folder / f"stderr-{after}", **environment)
        while process.poll() is None and n_done() < after:
            time.sleep(0.002)
        assert process.poll() is None, f"it ended before {after} were done: {process.err.read_text('utf-8')}"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    done = run(argv, folder, **environment)
    assert done.returncode == 0, done.stderr
    return done


def n_rows(paths: Iterable[Path]) -> int:
    """Lines of files that another process writes. One that goes on writes its own anew: no file, no lines."""
    n = 0
    for path in paths:
        try:
            n += path.read_bytes().count(b"\n")
        except FileNotFoundError:
            continue
    return n


@contextmanager
def leaving_no_thread() -> Iterator[None]:
    """Fail if a thread that starts within the block does not end. One of another test may end meanwhile."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive(), thread
