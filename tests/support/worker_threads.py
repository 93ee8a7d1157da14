"""Workers that are threads of the test: driver and workers are real, only the processes are not."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from heredity.study.workers import Lease, Status, StudyWorker


class ThreadWorker:
    """Threads cannot be killed: `kill` lets it be."""

    def __init__(self, setup: bytes, folder: Path, **_: object) -> None:
        self._worker, self._executor = StudyWorker(setup, str(folder)), ThreadPoolExecutor(1)

    def poll(self, given: Sequence[Lease | None]) -> Future[Status]:
        return self._executor.submit(self._worker.poll, given)

    def kill(self) -> None:
        pass

    def why_lost(self, error: Exception) -> str:
        raise error
