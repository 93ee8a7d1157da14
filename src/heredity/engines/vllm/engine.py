"""Weights answered by vLLM: a server in another environment, or one that already runs.

HEREDITY_VLLM names the python of an environment that has vLLM, with options for its server ("venv/bin/python
--dtype float32"). Or it is the address of a running server ("http://host:8000/v1") that serves this model
under its name in the store. Without it, vLLM in this environment is used. An adapter is served over its base.

The server gets texts to continue, not messages. Prompts are rendered and tool calls are parsed here, as for
every engine. vLLM's chat endpoint would refuse tools without a parser, give the template the real date, and
use sampling defaults from the files of the model.

Promises: a prompt has the tokens that the torch engine gives it. A server that heredity started ends with the
engine, however this process ends; its log is kept. A lost server ends the run, and no error rows are written
for it.
Leaves to others: HTTP (completions.py). Batch invariance depends on vLLM: see docs/benchmarks.md.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from msgspec import UnsetType

from heredity.core.errors import EngineFailure, Unavailable
from heredity.core.host import Device
from heredity.core.records import Model, Reply, Request, digest
from heredity.core.sanitize import clean_text
from heredity.engines import NOT_VERIFIED, base_folder, failed_reply
from heredity.engines._workers import WorkerPool, error_row
from heredity.engines.chat.folder import FolderChat, has_tokenizer
from heredity.engines.chat.tool_calls import parse_tool_calls
from heredity.engines.protocols import AddressedRequest, Listener
from heredity.engines.vllm.adapter import server_options
from heredity.engines.vllm.completions import CompletionLost, CompletionRefused, Completions, VllmCompletion
from heredity.engines.vllm.server import ServerProgram, free_port

WHERE, KEY = "HEREDITY_VLLM", "VLLM_API_KEY"  # the second is vLLM's own
WIDTH = 64  # requests in flight; the server decides how many it computes at once
START_SECONDS = 900.0  # it reads large weights and compiles kernels
_ANSWER_SECONDS = 4 * 3600.0  # a busy machine is slow, but it answers
_SEEDS = 2**31
_BASE = "-base"  # behind the name of an adapter: its base, on the same server
_END_SECONDS = 10.0  # a server whose connection broke has ended within this time, if it ends


def load(
    model: Model,
    folder: Path,
    tuning: Path | None = None,
    device: Device | None = None,
    *,
    start_seconds: float = START_SECONDS,
) -> VllmEngine:
    """Load recorded weights. Raises Unavailable if vLLM is missing or does not start."""
    where = os.environ.get(WHERE, "").strip()
    served = model.name.removeprefix("vllm:")
    weights, names = folder, ["--served-model-name", served]
    if model.format == "adapter":
        weights = base_folder(model, folder)
        names = ["--served-model-name", f"{served}{_BASE}", *server_options(served, folder, weights)]
    chat = FolderChat(folder if has_tokenizer(folder) else weights, weights)
    if where.startswith(("http://", "https://")):
        return _opened(served, chat, where, os.environ.get(KEY, ""), None, where.rstrip("/"))
    python, *options = _command(where) or ([sys.executable] if find_spec("vllm") else [""])
    if not python:
        raise Unavailable(
            f"'{model.name}' needs vLLM, which is not in this environment. Set {WHERE} to the python of one"
            " that has it, or to the address of a running server (http://host:8000/v1).",
            code="package-missing",
        )
    port, key = free_port(), secrets.token_hex(16)
    command = [python, "-m", "vllm.entrypoints.openai.api_server", *options, "--model", str(weights)]
    command += [*names, "--host", "127.0.0.1", "--port", str(port)]
    log = tuning.with_suffix(".vllm.log") if tuning else Path(tempfile.mkdtemp()) / "vllm.log"
    own = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    own[KEY] = key  # a new key: the port is open to the whole machine
    if device is not None and device.index is not None:
        own["CUDA_VISIBLE_DEVICES"] = _visible(device.index)
    own["PYTHONSAFEPATH"] = "1"  # a folder "vllm" in the current directory is not vLLM
    server = ServerProgram(command, f"http://127.0.0.1:{port}/health", log, start_seconds, own)
    try:
        return _opened(served, chat, f"http://127.0.0.1:{port}/v1", key, server, _whose(options))
    except BaseException:
        server.close()
        raise


def _visible(index: int) -> str:
    """The name of a GPU for CUDA. An index counts among the GPUs that are visible to this process."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return names[index] if index < len(names) else str(index)


def shared_address(model: Model) -> str:  # noqa: ARG001
    """The address of a running server, which may hold other models and adapters; "" for one of our own."""
    where = os.environ.get(WHERE, "").strip()
    return where.rstrip("/") if where.startswith(("http://", "https://")) else ""


def _command(where: str) -> list[str]:
    """Return the program and its options; the whole text is the program if it is a file."""
    return [where] if Path(where).is_file() else shlex.split(where)


def _whose(options: list[str]) -> str:
    """Describe our own server. Without the port, which changes at every start."""
    parts = ["own server"]
    if options:
        parts.append(f"options {digest(options)[:8]}")
    if os.environ.get("VLLM_BATCH_INVARIANT") == "1":
        parts.append("batch-invariant")
    return ", ".join(parts)


def _opened(
    served: str, chat: FolderChat, base_url: str, key: str, server: ServerProgram | None, whose: str
) -> VllmEngine:
    """Return the engine of a ready server. Raises Unavailable if it does not serve the model."""
    client = Completions(base_url, key, WIDTH, _ANSWER_SECONDS)
    try:
        names = client.serves()
        if served not in names:
            there = ", ".join(names)[:300] or "nothing"
            raise Unavailable(
                f"The server at {client.base_url} serves {there}, not '{served}'. Start it with"
                f" --served-model-name {served}, or an adapter with --lora-modules {served}=FOLDER"
            )
        return VllmEngine(client, served, chat, server, f"{client.version()} {whose}")
    except BaseException:
        client.close()
        raise


class VllmEngine:
    """A vLLM server behind the Engine protocol. `server` None: somebody else started it."""

    def __init__(
        self, client: Completions, served: str, chat: FolderChat, server: ServerProgram | None, which: str
    ) -> None:
        self._client, self._served, self._chat, self.server = client, served, chat, server
        self._is_closed = False
        self.name, self.is_batch_unverified = f"vllm {which} ({NOT_VERIFIED})", True
        self.numerics = f"vllm {which}"

    def base_at_server(self) -> VllmEngine | None:
        """Return the engine of the model that vLLM lists first, the base of all its adapters.

        None if this model is the first itself.
        """
        first = self._client.serves()[0]
        if first == self._served:
            return None
        return VllmEngine(self._client, first, self._chat, None, self.numerics.removeprefix("vllm "))

    @property
    def is_base(self) -> bool:
        return self._chat.is_base

    def render(self, request: Request) -> str:
        return self._chat.render(request)

    def check_schema(self, schema: str) -> None:
        """Nothing is checked here: the server refuses each request with a schema that it cannot hold."""

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        return self._pool(self._answer).reply(requests)

    @property
    def width(self) -> int:
        return WIDTH

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        def answer(request: Request) -> Reply:
            return self._answer(request, listener)

        return self._pool(answer).reply(requests)

    def _pool(self, answer: Callable[[Request], Reply]) -> WorkerPool:
        if self._is_closed:
            raise EngineFailure("this engine is closed")
        return WorkerPool(lambda request, _: answer(request), WIDTH, _ANSWER_SECONDS, self.render)

    def close(self) -> None:
        self._is_closed = True
        try:
            self._client.close()
        finally:
            if self.server is not None:
                self.server.close()

    def body(self, request: Request, prompt: str) -> dict[str, object]:
        """Return the body of a request."""
        decoding = request.decoding
        body: dict[str, object] = {
            "model": self._served,
            "prompt": clean_text(prompt),
            # A rendered template is complete. A plain text gets the special tokens of its tokenizer.
            "add_special_tokens": self.is_base or not request.messages,
            "max_tokens": decoding.max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": request.seed % _SEEDS,
            "stop_token_ids": self._chat.stop_tokens,
            "skip_special_tokens": False,  # the control tokens that a model writes are part of its answer
        }
        if not isinstance(decoding.json_schema, UnsetType):
            body["structured_outputs"] = {"json": decoding.json_schema}
        if isinstance(request, AddressedRequest) and request.caller:
            body["cache_salt"] = request.caller
        if self._chat.stop_text and request.messages:
            body["stop"] = [self._chat.stop_text]
        return body

    def _answer(self, request: Request, listener: Listener | None = None) -> Reply:
        prompt = ""
        try:
            prompt = self.render(request)
            answer = self._completion(request, self.body(request, prompt), listener)
        except EngineFailure as error:  # the template refuses these messages
            return failed_reply(request, prompt, error)
        except (CompletionRefused, CompletionLost) as error:
            if why := self._why_down(isinstance(error, CompletionLost)):
                raise why from None
            code = error.code if isinstance(error, CompletionRefused) else EngineFailure.code
            return error_row(request, self.render, str(error), code)
        if answer.why not in ("stop", "length"):
            return error_row(request, self.render, f"vLLM ended this answer with '{answer.why}'")
        return Reply(
            request.key,
            prompt,
            answer.text,
            tool_calls=parse_tool_calls(answer.text),
            stop="length" if answer.why == "length" else "end",
            n_prompt_tokens=answer.n_prompt_tokens,
            n_tokens=answer.n_tokens,
        )

    def _completion(
        self, request: Request, body: dict[str, object], listener: Listener | None
    ) -> VllmCompletion:
        key = request.key
        if listener is None or not listener.is_heard(key):
            return self._client.go_on(body)

        def hear(more: str) -> bool:
            if more:
                listener.hear(key, more)
            return listener.is_wanted(key)

        return self._client.stream(body, hear)

    def _why_down(self, is_lost: bool) -> EngineFailure | None:
        """Return the reason why no request can succeed; None while the server is healthy."""
        if self._is_closed:
            return EngineFailure("this engine is closed")
        if self.server is not None and (why := self.server.ended()):
            return EngineFailure(why)
        if self._client.is_well():
            return None
        if self.server is not None and (why := self.server.ended(_END_SECONDS)):
            return EngineFailure(why)
        address = self._client.base_url
        if is_lost:
            return EngineFailure(f"the server at {address} is gone")
        return EngineFailure(f"the server at {address} reports that it is not healthy")
