"""A real server over given models, and OpenAI's client that asks it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from heredity.application.spec import Application
from heredity.core.records import Request
from heredity.deploy.serve import ServerSettings, app
from heredity.deploy.serve.answers import Served
from heredity.deploy.serve.worker import EngineWorker
from heredity.engines.scripted import ScriptedEngine
from heredity.lineage.store import scripted

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
_CLIENTS: list[Any] = []  # closed with the server that they ask


@contextmanager
def listening(*served: Served, header_seconds: float = app.HEADER_SECONDS, **how: Any) -> Iterator[str]:
    """The address of a real server over these models."""
    embedders, keys, readers = how.pop("embedders", ()), how.pop("keys", ()), how.pop("readers", None)
    desk, log = how.pop("adapters", None), how.pop("log", None)
    named = {f"HEREDITY_TEST_KEY_{number}": key for number, key in enumerate(keys)}
    settings = ServerSettings(api_key_env=[*named], **how)
    with pytest.MonkeyPatch.context() as patch:
        for name, key in named.items():
            patch.setenv(name, key)
        api = app.app(served, settings, embedders, readers, desk, log)
    running = app.server(api, header_seconds, log_level="warning")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as bound:
        bound.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            until(lambda: running.started)
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join()
            while _CLIENTS:
                _CLIENTS.pop().close()
            for one in served:
                one.service.close()


def until(holds: Callable[[], bool]) -> None:
    """Wait for it, not for ever."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def client(address: str, key: str = "none") -> Any:
    _CLIENTS.append(openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0))
    return _CLIENTS[-1]


class Saying(ScriptedEngine):
    """Says one text, whatever it is asked, in parts of three characters. Its template shows tools."""

    def __init__(self, text: str) -> None:
        super().__init__("helpful")
        self._answer = lambda _: text

    def render(self, request: Request) -> str:
        shown = "".join(f"{tool.name}{tool.arguments_schema}" for tool in request.tools)
        return shown + super().render(request)

    def stream(self, requests: Any, listener: Any) -> Iterator[Any]:
        for reply in self.reply(requests):
            if listener.is_heard(reply.key):
                for at in range(0, len(reply.text), 3):
                    listener.hear(reply.key, reply.text[at : at + 3])
            yield reply


def saying(text: str, application: Application | None = None, **how: Any) -> Served:
    return Served(scripted("scripted:helpful").record, EngineWorker(Saying(text)), application, **how)


def named(behaviour: str, application: Application | None = None, **how: Any) -> Served:
    model = scripted(f"scripted:{behaviour}").record
    return Served(model, EngineWorker(ScriptedEngine(behaviour)), application, **how)
