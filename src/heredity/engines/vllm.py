"""Weights answered by vLLM: a server in an environment of its own, or one that is already up.

HEREDITY_VLLM says where: the python of an environment that has vLLM, or the address of a running
server ("http://host:8000/v1") that serves this model under its name in the store. Without it,
vLLM in this environment.

Promises: a server that heredity started ends with the engine, also on an error; its log is kept.
Leaves to others: the conversation with it (remote.py). Whether an answer depends on its company is vLLM's
matter: see docs/targets.md.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from heredity.engines import UNPROVEN, remote
from heredity.engines._server import Server, free_port
from heredity.errors import Unavailable
from heredity.records import Model, RecipeRecord, Reply, Request

if TYPE_CHECKING:
    from heredity.engines.remote import Remote

WHERE = "HEREDITY_VLLM"
START_SECONDS = 900.0  # large weights are read, and kernels compiled


def load(
    model: Model, folder: Path, tuning: Path | None = None, *, start_seconds: float = START_SECONDS
) -> Vllm:
    """The engine of recorded weights. Raises Unavailable where no vLLM is there or it does not start."""
    where = os.environ.get(WHERE, "")
    served = model.name.removeprefix("vllm:")
    if where.startswith(("http://", "https://")):
        return Vllm(_client(model, where.rstrip("/"), served), None)
    python = where or (sys.executable if find_spec("vllm") else "")
    if not python:
        raise Unavailable(
            f"'{model.name}' needs vLLM, which is not in this environment. Set {WHERE} to the python of one"
            " that has it, or to the address of a running server (http://host:8000/v1)."
        )
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", served, "--host", "127.0.0.1", "--port", str(port)]
    log = tuning.with_suffix(".vllm.log") if tuning else Path(tempfile.mkdtemp()) / "vllm.log"
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    server = Server(command, f"http://127.0.0.1:{port}/health", log, start_seconds, quiet)
    try:
        return Vllm(_client(model, f"http://127.0.0.1:{port}/v1", served), server)
    except BaseException:
        server.close()
        raise


def _client(model: Model, base_url: str, served: str) -> Remote:
    settings = {
        "api": "openai",
        "base_url": base_url,
        "model": served,
        "options": {"prefill": "continue_final_message"},
    }
    record = msgspec.structs.replace(model, recipe=RecipeRecord("vllm", settings))
    return remote.load(record, Path())


class Vllm:
    """A vLLM server behind the Engine protocol; `server` None: not ours to end."""

    def __init__(self, client: Remote, server: Server | None) -> None:
        self._client, self.server = client, server
        whose = "own server" if server else client.where.base_url
        # The port is left out: it is another at every start, and changes no bit.
        self.name = f"vllm {whose} ({UNPROVEN})"
        self.numerics = f"vllm {whose}"

    def render(self, request: Request) -> str:
        return self._client.render(request)

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        yield from self._client.reply(requests)

    def close(self) -> None:
        try:
            self._client.close()
        finally:
            if self.server is not None:
                self.server.close()
