"""What the tests of the remote engine share: a record of a model on the fault server, and its engine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heredity.core.records import Decoding, Message, Request
from heredity.engines.remote import engine as remote
from heredity.engines.remote.services import Budget, Calls, Price, Usage
from heredity.lineage.store import Store
from tests.support.fault_server import FaultServer

KEY = "sk-planted/Key+7f3a9c2e51d84b60"
VARIABLE = "HEREDITY_TEST_KEY"
os.environ[VARIABLE] = KEY
QUICK = {
    "connect_seconds": 5.0, "stall_seconds": 20.0, "total_seconds": 30.0, "retries": 2, "first_wait": 0.01,
    "patience_seconds": 60.0,
}  # fmt: skip
SHARED = (Message("system", "You answer for a shop."), Message("user", "Hi"), Message("assistant", "Hello."))


def calls(**changed: Any) -> Calls:
    return Calls(**{**QUICK, "keys": {"": VARIABLE}, **changed})  # type: ignore[arg-type]


@contextmanager
def engine(
    server: FaultServer, api: str, folder: Path, options: str = "", **changed: Any
) -> Iterator[remote.RemoteEngine]:
    """The engine of the model "tiny" on this server."""
    grown = Store(folder / "store").get(f"remote:{api}:tiny@{server.base_url(api)}{options}")
    found = remote.load(grown.record, grown.folder, calls=calls(**changed))
    try:
        yield found
    finally:
        found.close()


def ask(text: str = "q", key: int = 0, **more: Any) -> Request:
    return Request(key, (*SHARED, Message("user", text)), Decoding(64, 0.5, 0.9), 7, n_shared=3, **more)


def asks(n: int) -> Sequence[Request]:
    return [ask(f"q{i}", i) for i in range(n)]


__all__ = ["KEY", "SHARED", "VARIABLE", "Budget", "Calls", "Price", "Usage", "ask", "asks", "calls", "engine"]
