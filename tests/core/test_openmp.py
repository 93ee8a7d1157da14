"""The helpers that OpenMP keeps for a thread end when they are told to, and come again."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from heredity.core import openmp
from heredity.core.records import Message, Reply, Request
from heredity.deploy.serve.worker import EngineWorker
from heredity.engines.scripted import ScriptedEngine

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")


def n_threads() -> int:
    """Threads that Python did not start: one of another test may end meanwhile."""
    return len(list(Path("/proc/self/task").iterdir())) - threading.active_count()


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
    with openmp.temporary_helpers():
        return computed()


def test_the_helpers_of_a_thread_end_and_come_again() -> None:
    pytest.importorskip("torch")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(helped).result()
        without = n_threads()
        for _ in range(2):
            assert pool.submit(helped).result() == without + 3
            assert n_threads() == without
        assert pool.submit(computed).result() == n_threads() == without + 3
        assert pool.submit(openmp.end_helpers).result() and n_threads() == without


class Computing(ScriptedEngine):
    """Computes in parallel for each answer, which is the number of threads then."""

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        for each in requests:
            if each is not None:
                yield Reply(each.key, "", str(computed()))


def test_a_worker_that_waits_keeps_no_helpers_nor_does_the_thread_that_made_it() -> None:
    pytest.importorskip("torch")
    openmp.end_helpers()
    before = n_threads()
    computed()
    worker = EngineWorker(Computing("helpful"))
    for _ in range(2):
        reply = worker.ask(Request(0, (Message("user", "compute"),))).reply.result(30)
        assert int(reply.text) == before + 3
        deadline = time.monotonic() + 30
        while n_threads() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert n_threads() == before
    worker.close()


def test_without_torch_there_are_none() -> None:
    code = "import sys; from heredity.core import openmp; assert not openmp.end_helpers()"
    code += " and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
