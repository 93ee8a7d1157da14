"""The helpers that OpenMP keeps for a thread end when they are told to, and come again.

Threads are counted in a process of their own: no thread of another test starts or ends meanwhile.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from heredity.core import host
from heredity.core.records import Message, Reply, Request
from heredity.deploy.serve.worker import EngineWorker
from heredity.engines.scripted import ScriptedEngine
from tests.support import forkserver

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")


def n_threads() -> int:
    """Threads that Python did not start."""
    return len(list(Path("/proc/self/task").iterdir())) - threading.active_count()


def settles_at(n: int) -> None:
    """Wait until so many are left: a thread that ends is listed for a moment."""
    deadline = time.monotonic() + 60
    while n_threads() != n:
        assert time.monotonic() < deadline, f"{n_threads()} threads, not {n}"
        time.sleep(0.01)


def computed() -> int:
    """Compute in parallel. Return the threads that this leaves."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        torch.ones(4_000_000).sum()
        return n_threads()
    finally:
        torch.set_num_threads(before)


def helped() -> int:
    with host.temporary_helpers():
        return computed()


def n_kept() -> int:
    """Threads that torch starts once and keeps."""
    helped()
    n_before, n = -1, n_threads()
    while n != n_before:
        time.sleep(1)
        n_before, n = n, n_threads()
    return n


def counted_alone(claim: str, folder: Path) -> None:
    """Check a claim of this module in a new process."""
    pytest.importorskip("torch")
    done = forkserver.run(["-c", f"from {__name__} import {claim}; {claim}()"], folder)
    assert done.returncode == 0, done.stderr


def helpers_end_and_come_again() -> None:
    with ThreadPoolExecutor(1) as pool:
        without = n_kept()
        for _ in range(2):
            assert pool.submit(helped).result() == without + 3
            settles_at(without)
        assert pool.submit(computed).result() == n_threads() == without + 3
        assert pool.submit(host.end_helpers).result()
        settles_at(without)


@pytest.mark.slow
def test_the_helpers_of_a_thread_end_and_come_again(tmp_path: Path) -> None:
    counted_alone("helpers_end_and_come_again", tmp_path)


class Computing(ScriptedEngine):
    """Computes in parallel for each answer, which is the number of threads then."""

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        for each in requests:
            if each is not None:
                yield Reply(each.key, "", str(computed()))


def a_worker_that_waits_keeps_no_helpers() -> None:
    before = n_kept()
    computed()
    worker = EngineWorker(Computing("helpful"))
    for _ in range(2):
        reply = worker.ask(Request(0, (Message("user", "compute"),))).reply.result(60)
        assert int(reply.text) == before + 3
        settles_at(before)
    worker.close()


@pytest.mark.slow
def test_a_worker_that_waits_keeps_no_helpers_nor_does_the_thread_that_made_it(tmp_path: Path) -> None:
    counted_alone("a_worker_that_waits_keeps_no_helpers", tmp_path)


@pytest.mark.slow
def test_without_torch_there_are_none() -> None:
    code = "import sys; from heredity.core import host; assert not host.end_helpers()"
    code += " and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
