"""Processes that are killed with SIGKILL on their way, and then left to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

RUNS = "training/*/training.jsonl"  # below a store


def ends_after_kills(
    command: Sequence[str], n_done: Callable[[], int], at: Iterable[int], **environment: str
) -> subprocess.CompletedProcess[str]:
    """The last of the runs of a command: one is killed wherever `n_done` says that so much is done.

    Each must still have been running when it was killed; the last must end well.
    """
    given = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    quiet = subprocess.DEVNULL
    for after in at:
        with subprocess.Popen(command, env=given, stdout=quiet, stderr=quiet) as process:
            while process.poll() is None and n_done() < after:
                time.sleep(0.002)
            assert process.poll() is None, f"it ended before {after} were done"
            process.send_signal(signal.SIGKILL)
    return subprocess.run(command, env=given, capture_output=True, text=True, check=True)


def n_rows(paths: Iterable[Path]) -> int:
    """Lines of files that another process writes. One that goes on writes its own anew: no file, no lines."""
    n = 0
    for path in paths:
        try:
            n += path.read_bytes().count(b"\n")
        except FileNotFoundError:
            continue
    return n
