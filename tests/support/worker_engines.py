"""Engines that workers load by name, for tests. HEREDITY_TEST_WORKERS names a folder for what they note.

A worker is another process, so nothing of the test's own can be in it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from heredity.core.errors import EngineFailure
from heredity.core.records import Reply, Request
from heredity.engines import Engine, scripted
from heredity.engines.scripted import ScriptedEngine
from heredity.lineage.types import Grown

FOLDER = "HEREDITY_TEST_WORKERS"
POISON = "What is code 1?"  # of tests.support.studies.probes


def _folder() -> Path:
    return Path(os.environ[FOLDER])


class NotingEngine(ScriptedEngine):
    """A scripted engine that notes each request and its process, a line each.

    The file `seconds` makes it slow. With `together` it answers once so many processes have loaded it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(*scripted.parse_rule(name))
        slow = _folder() / "seconds"
        self._pause = float(slow.read_text()) if slow.exists() else 0.0
        with (_folder() / "loaded").open("a") as file:
            file.write(f"{name} {os.getpid()}\n")

    def _one(self, request: Request) -> Reply:
        with (_folder() / "asked").open("a") as file:
            file.write(f"{request.key} {os.getpid()}\n")
        time.sleep(self._pause)
        if (together := _folder() / "together").exists():
            while len(set((_folder() / "loaded").read_text().split()[1::2])) < int(together.read_text()):
                time.sleep(0.01)
        return super()._one(request)


class PoisonedEngine(NotingEngine):
    """Its process is killed by one probe."""

    def _one(self, request: Request) -> Reply:
        if request.messages[-1].content == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._one(request)


class HangingEngine(NotingEngine):
    """The first process that answers stops in its second answer."""

    def _one(self, request: Request) -> Reply:
        flag = _folder() / "hangs"
        if not flag.exists():
            flag.write_text(str(os.getpid()))
        elif flag.read_text() == str(os.getpid()):
            (_folder() / "late").write_text(str(request.key))
            while not (_folder() / "go on").exists():
                time.sleep(0.01)
        return super()._one(request)


class FailingEngine(NotingEngine):
    """It fails as a whole, after as many answers as the file `good` has."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._n_left = int((_folder() / "good").read_text())

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        for reply in super().reply(requests):
            if self._n_left == 0:
                with (_folder() / "failed").open("a") as file:
                    file.write(f"{os.getpid()}\n")
                raise EngineFailure("the device is lost", code="engine-failure")
            self._n_left -= 1
            yield reply


def noting(grown: Grown) -> ScriptedEngine:
    return NotingEngine(grown.record.name)


def poisoned(grown: Grown) -> ScriptedEngine:
    return PoisonedEngine(grown.record.name)


def hanging(grown: Grown) -> ScriptedEngine:
    return HangingEngine(grown.record.name)


def failing(grown: Grown) -> ScriptedEngine:
    return FailingEngine(grown.record.name)


def dying(grown: Grown) -> ScriptedEngine:
    """A model that is too large: its process is killed while it loads."""
    with (_folder() / "loaded").open("a") as file:
        file.write(f"{grown.record.name} {os.getpid()}\n")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def damaged(grown: Grown) -> ScriptedEngine:
    with (_folder() / "loaded").open("a") as file:
        file.write(f"{grown.record.name} {os.getpid()}\n")
    from heredity.core.errors import Damaged

    raise Damaged("a file is torn", code="damaged")


def float32(grown: Grown) -> Engine:
    """A network in float32: which dtype a tiny one is faster in is a matter of chance."""
    from heredity.engines.torch import engine as torch

    return torch.open_folder(grown.folder, _folder() / f"tuning-{grown.record.id}", dtype="float32")
