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
Batch invariance depends on vLLM: see docs/benchmarks.md.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import secrets
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import httpx
import truststore
from filelock import FileLock, Timeout
from msgspec import UnsetType
from safetensors import SafetensorError, safe_open

from heredity.core.errors import ContextOverflow, Damaged, EngineFailure, Unavailable
from heredity.core.host import Device
from heredity.core.records import Model, Reply, Request, digest
from heredity.core.sanitize import clean_text
from heredity.engines import (
    NOT_VERIFIED,
    AddressedRequest,
    Capabilities,
    Listener,
    Provenance,
    base_folder,
    failed_reply,
)
from heredity.engines._workers import EventReader, WorkerPool, error_row
from heredity.engines.chat import FolderChat, has_tokenizer, parse_tool_calls, vocabulary

# --- the program: it ends with this process, even after kill -9, with all its child processes ------------

_GRACE_SECONDS = 10.0
_READ_BYTES = 1 << 20  # of the end of a log; the cause precedes the last line by many lines
# Waits for the end of its input, which comes with the end of this process, and then ends the group.
_WATCH = """
read -r _
kill -TERM "$1"
for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$1" || break; sleep 1; done
kill -s KILL -- "-$1"
"""
# A logger's words in front of a line: "(EngineCore pid=7) ERROR 11-26 04:12:37 [core.py:9] ".
_LOGGED = re.compile(r"(?:\([^)]*\) )?(?:([A-Z]+) [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
# The last line of an exception, or of an option parser.
_CAUSE = re.compile(r"(?:[\w.]*(?:Error|Exception)|[\w.]+: error): ")


class ServerProgram:
    """A started program that answers `health` (an address) with 200 once it is ready.

    log: the file for its output; another name next to it if another program uses that file.
    """

    def __init__(
        self, command: Sequence[str], health: str, log: Path, seconds: float, environment: Mapping[str, str]
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._held = _alone(log)
        self._watch: subprocess.Popen[bytes] | None = None
        with self._log.open("wb") as output:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a group of its own, so that its workers end with it
                    env={**os.environ, **environment},
                )
            except OSError as error:
                self._held.release()
                raise Unavailable(f"{command[0]} does not start: {error.strerror}.") from error
        atexit.register(self.close)
        try:
            self._watch = subprocess.Popen(
                ["/bin/sh", "-c", _WATCH, "sh", str(self._process.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal must not reach it
            )
            self._wait(health, seconds)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The id of the program and of its group."""
        return self._process.pid

    def ended(self, seconds: float = 0.0) -> str:
        """Return how the program ended, "" while it runs. `seconds`: how long to wait for its end."""
        with suppress(subprocess.TimeoutExpired):
            return f"the server ended with code {self._process.wait(seconds)}: {self._tail()}"
        return ""

    def close(self) -> None:
        """End the whole group. The program gets some seconds to end its workers; then the group is killed."""
        atexit.unregister(self.close)
        try:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
        finally:  # a second Ctrl-C arrives here at once
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)  # even if the program itself has ended
            self._process.wait()
            if self._watch is not None:  # last: until here it guards against a sudden end of this process
                self._watch.kill()
                self._watch.communicate()
            self._held.release()

    def _wait(self, health: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            while time.monotonic() < deadline:
                if why := self.ended():
                    raise Unavailable(f"It does not start: {why}")
                with suppress(httpx.HTTPError):
                    if client.get(health).status_code == 200:
                        return
                time.sleep(0.1)
        raise Unavailable(f"The server was not ready within {seconds:g} s: {self._tail()}")

    def _tail(self) -> str:
        text = self._log.read_bytes()[-_READ_BYTES:].decode("utf-8", "replace")
        return f"{cause(text)} (all of it: {self._log})"


def cause(text: str) -> str:
    """Return the cause of a program's end from its log: the first logged error and the first exception.

    Later exceptions only repeat the first one. Without either, the last lines are returned.
    """
    logged, named, lines = [], [], []
    for each in text.splitlines():
        match = _LOGGED.match(each)
        if line := each[match.end() if match else 0 :].strip():
            lines.append(line[:200])
            if match and match[1] == "ERROR":
                logged.append(line[:200])
            if _CAUSE.match(line):
                named.append(line[:300])
    causes = list(dict.fromkeys([*logged[:1], *named[:1]]))
    return " / ".join(causes or lines[-3:])


def _alone(log: Path) -> tuple[Path, FileLock]:
    """Return the first of log, log-2, ... that no other program uses, and its lock. The file is new."""
    own, number = log, 1
    while True:
        held = FileLock(f"{own}.lock", timeout=0, thread_local=False)
        with suppress(Timeout):
            held.acquire()
            own.unlink(missing_ok=True)  # not emptied: a program may outlive a killed owner and still write
            return own, held
        number += 1
        own = log.with_stem(f"{log.stem}-{number}")


def free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- an adapter ------------------------------------------------------------------------------------------
# vLLM 0.32 ignores two things without an error: an embedding that an adapter holds whole, and a module that
# has another name in the base. Earlier versions also ignore the ranks and scales of single modules. The
# answers are then of another model than the recorded one. So only an adapter of plain LoRA is served, with
# the names and the tokenizer of its base. Of the weights only the headers are read.

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
_OF_LORA = re.compile(r"base_model\.model\.(.+)\.lora_(?:embedding_)?[AB](?:\.weight)?")
_ACTIVATED = "alora_invocation_tokens"  # vLLM does not read it (pull request 19710 is closed)
# Settings that change what an adapter computes, and that not every version of vLLM has.
_OTHER_FORMS = (
    "rank_pattern",
    "alpha_pattern",
    "target_parameters",
    "use_dora",
    "lora_bias",
    "modules_to_save",
)
_OF_TOKENIZER = ("normalizer", "pre_tokenizer", "post_processor")  # of tokenizer.json, beside its vocabulary


def server_options(name: str, adapter: Path, base: Path) -> list[str]:
    """Return the options of a server that has an adapter under `name`, and its base under another name.

    Raises as `check_adapter` does.
    """
    rank = check_adapter(name, adapter, base)
    module = json.dumps({"name": name, "path": str(adapter)})
    return ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(rank), "--lora-modules", module]


def check_adapter(name: str, adapter: Path, base: Path, base_name: str = "BASE") -> int:
    """Return the smallest rank of vLLM that holds the adapter's. base_name: for the advice.

    Raises Unavailable for an adapter that vLLM would serve in part, Damaged for files that do not read.
    """
    rank, why = _config(adapter)
    if why == _ACTIVATED:
        raise Unavailable(
            f"vLLM cannot serve the adapter '{name}': it is an activated LoRA (aLoRA), which vLLM would apply"
            " to the whole text. Name it without 'vllm:'; the torch engine answers it."
        )
    if not why:
        why = _other_names(adapter, base)
    if not why and has_tokenizer(adapter) and _tokenizer(adapter) != _tokenizer(base):
        why = "its tokenizer differs from that of its base"
    if why:
        raise Unavailable(
            f"vLLM cannot serve the adapter '{name}': {why}. Merge it, and name the result:"
            f" heredity derive merge_adapter {shlex.quote(name)} {shlex.quote(base_name)}"
        )
    return next(each for each in _RANKS if each >= rank)


def _config(adapter: Path) -> tuple[int, str]:
    """Return the rank, and what vLLM would not take in the config; "" for nothing."""
    path = adapter / _CONFIG
    try:
        config = json.loads(path.read_bytes())
        if config.get(_ACTIVATED):
            return 0, _ACTIVATED
        rank, forms = config["r"], [key for key in _OTHER_FORMS if config.get(key)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path}: does not read ({type(error).__name__}).") from None
    if forms:
        return 0, f"it has {forms[0]}, which not every version serves"
    if not isinstance(rank, int) or not 0 < rank <= _RANKS[-1]:
        return 0, f"its rank is {str(rank)[:20]}, and vLLM's largest {_RANKS[-1]}"
    return rank, ""


def _other_names(adapter: Path, base: Path) -> str:
    """Return a tensor that is not a matrix of LoRA on a module of the base; "" for none."""
    there = {name for path in sorted(base.glob("*.safetensors")) for name in _names(path)}
    for name in _names(adapter / _TENSORS):
        match = _OF_LORA.fullmatch(name)
        if match is None or f"{match[1]}.weight" not in there:
            return f"{name[:80]!r} is not a matrix of LoRA on a module of the base"
    return ""


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, "numpy") as file:
            return sorted(file.keys())
    except (OSError, SafetensorError) as error:
        raise Damaged(f"{path}: {error}") from None


def _tokenizer(folder: Path) -> list[object]:
    """Return the parts of a tokenizer that decide the tokens of a text."""
    fast, slow = folder / "tokenizer.json", folder / "tokenizer.model"
    try:
        if not fast.is_file():
            return [slow.read_bytes()]
        whole = json.loads(fast.read_bytes())
        merges = [
            " ".join(each) if isinstance(each, list) else each for each in whole["model"].get("merges") or ()
        ]
        return [vocabulary(folder), merges, *(whole.get(key) for key in _OF_TOKENIZER)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{folder}: its tokenizer does not read ({type(error).__name__}).") from None


# --- the requests ----------------------------------------------------------------------------------------

_OTHER_SHAPE = (ValueError, KeyError, IndexError, TypeError)
_CONNECT_SECONDS, _SHORT_SECONDS = 10.0, 15.0
# Of these vLLM takes other defaults from generation_config.json; a draw is by temperature and top_p alone.
NEUTRAL = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
# vLLM 0.32 has several sentences for what does not fit; where max_tokens alone is more than the context, the
# second: before it has read the prompt.
_TOO_LONG = re.compile(r"context length|max_model_len|maximum model length")


class CompletionRefused(Exception):
    """The server answered, and not with an answer; the message says with what."""

    def __init__(self, message: str, code: str = EngineFailure.code) -> None:
        super().__init__(message)
        self.code = code


class CompletionLost(Exception):
    """No whole answer came back."""


class VllmCompletion(NamedTuple):
    """The continuation of a prompt; `why` is vLLM's word for its end."""

    text: str
    why: str
    n_prompt_tokens: int
    n_tokens: int


class Completions:
    """A server's address, with or without "/v1" at its end."""

    def __init__(self, base_url: str, key: str, width: int, seconds: float) -> None:
        self.base_url = base_url.rstrip("/")
        self._root = self.base_url.removesuffix("/v1")
        is_here = httpx.URL(self._root).host in ("127.0.0.1", "localhost", "::1")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(seconds, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=width + 1, max_keepalive_connections=width + 1),
            trust_env=not is_here,  # no proxy stands before this machine
            verify=truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )

    def version(self) -> str:
        """vLLM's version, "?" where the server does not tell it."""
        try:
            answer = self._client.get(f"{self._root}/version", timeout=_SHORT_SECONDS).json()
            return str(answer["version"])[:40]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return "?"

    def serves(self) -> list[str]:
        """Return the names of the served models. Raises Unavailable with the reason if they are unknown."""
        url = f"{self._root}/v1/models"
        try:
            response = self._client.get(url, timeout=_SHORT_SECONDS)
        except httpx.HTTPError as error:
            raise Unavailable(f"No server answers at {self.base_url} ({type(error).__name__}).") from None
        if response.status_code == 401:
            raise Unavailable(
                f"The server at {self.base_url} wants a key. Set it: export VLLM_API_KEY=...",
                code="key-unset",
            )
        try:
            return [str(model["id"]) for model in response.raise_for_status().json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            status = f"HTTP {response.status_code}"
            raise Unavailable(f"The server at {url} is not a vLLM server: {status}.") from None

    def is_well(self) -> bool:
        """Whether the server says that it can answer."""
        try:
            return self._client.get(f"{self._root}/health", timeout=_SHORT_SECONDS).status_code == 200
        except httpx.HTTPError:
            return False

    def go_on(self, body: Mapping[str, object]) -> VllmCompletion:
        """Return the continuation of a body's prompt. Raises CompletionRefused or CompletionLost."""
        try:
            response = self._client.post(f"{self._root}/v1/completions", json={**NEUTRAL, **body})
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: closed by another thread
            raise CompletionLost(f"{type(error).__name__}: {error}") from None
        if response.status_code != 200:
            raise _refused(response)
        try:
            answer = response.json()
            choice, usage = answer["choices"][0], answer["usage"]
            return VllmCompletion(
                str(choice["text"]),
                str(choice["finish_reason"]),
                int(usage["prompt_tokens"]),
                int(usage.get("completion_tokens") or 0),
            )
        except _OTHER_SHAPE as error:
            raise _other_shape(error) from None

    def stream(self, body: Mapping[str, object], hear: Callable[[str], bool]) -> VllmCompletion:
        """Do the same as `go_on` and pass the text on as it comes.

        hear: takes the next part, and returns False to end the answer, whose reason is then "length".
        """
        asked = {**NEUTRAL, **body, "stream": True, "stream_options": {"include_usage": True}}
        growing, reader = _Growing(), EventReader()
        try:
            with self._client.stream("POST", f"{self._root}/v1/completions", json=asked) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refused(response)
                for data in (each for part in response.iter_bytes() for each in reader.feed(part)):
                    if data == b"[DONE]":
                        return growing.completion()
                    if not hear(growing.feed(data)):
                        return growing.completion()._replace(why="length")
        except (httpx.HTTPError, RuntimeError) as error:
            raise CompletionLost(f"{type(error).__name__}: {error}") from None
        raise CompletionLost("the stream ended without its end marker")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class _Growing:
    """A completion that arrives in parts."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._why = "no reason"
        self._n_prompt_tokens, self._n_tokens = 0, 0

    def feed(self, data: bytes) -> str:
        """Receive the data of an event; return the text that the answer grows by."""
        try:
            chunk = json.loads(data)
            if error := chunk.get("error"):
                raise CompletionRefused(f"vLLM ended the stream: {_short(str(error.get('message', error)))}")
            if usage := chunk.get("usage"):
                self._n_prompt_tokens = int(usage["prompt_tokens"])
                self._n_tokens = int(usage.get("completion_tokens") or 0)
            if not chunk["choices"]:
                return ""
            choice = chunk["choices"][0]
            self._why = str(choice.get("finish_reason") or self._why)
            self._texts.append(str(choice["text"]))
            return self._texts[-1]
        except (*_OTHER_SHAPE, AttributeError) as error:
            raise _other_shape(error) from None

    def completion(self) -> VllmCompletion:
        """Return the completion so far; one that was ended early has about a token in each part."""
        n_tokens = self._n_tokens or len(self._texts)
        return VllmCompletion("".join(self._texts), self._why, self._n_prompt_tokens, n_tokens)


def _other_shape(error: Exception) -> CompletionRefused:
    return CompletionRefused(f"an answer of another shape than vLLM's ({type(error).__name__})")


def _short(message: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in message).split())[:300]


def _refused(response: httpx.Response) -> CompletionRefused:
    """A refusal in one line; vLLM has no code for a prompt that is too long, only words."""
    try:
        answer = response.json()
        error = answer.get("error", answer)
        message = str(error.get("message", error))
    except (ValueError, AttributeError):
        message = response.text
    plain = _short(message)
    if _TOO_LONG.search(plain):
        return CompletionRefused(f"context overflow: {plain}", ContextOverflow.code)
    return CompletionRefused(f"HTTP {response.status_code}: {plain}")


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
    where, served = os.environ.get(WHERE, "").strip(), model.name.removeprefix("vllm:")
    weights, names = folder, ["--served-model-name", served]
    if model.format == "adapter":
        weights = base_folder(model, folder)
        names = ["--served-model-name", f"{served}{_BASE}", *server_options(served, folder, weights)]
    chat = FolderChat(folder if has_tokenizer(folder) else weights, weights)
    if where.startswith(("http://", "https://")):
        return _opened(served, chat, where, os.environ.get(KEY, ""), None, where.rstrip("/"))
    own_python = [sys.executable] if find_spec("vllm") else [""]
    python, *options = ([where] if Path(where).is_file() else shlex.split(where)) or own_python
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
    # A new key, because the port is open to the whole machine. A folder "vllm" in this folder is not vLLM.
    own = {KEY: key, "PYTHONSAFEPATH": "1", "VLLM_NO_USAGE_STATS": "1"}
    own |= {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    if device is not None and device.index is not None:
        own["CUDA_VISIBLE_DEVICES"] = _visible(device.index)
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
        self.name = f"vllm {which} ({NOT_VERIFIED})"
        self.numerics = f"vllm {which}"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            streamer=self,
            is_base=self._chat.is_base,
            # The server refuses each request with a schema that it cannot hold.
            check_schema=lambda _: None,
            provenance=Provenance(is_batch_unverified=True, base_at_server=self.base_at_server),
        )

    def base_at_server(self) -> VllmEngine | None:
        """Return the engine of the model that vLLM lists first, the base of all its adapters.

        None if this model is the first itself.
        """
        first = self._client.serves()[0]
        if first == self._served:
            return None
        return VllmEngine(self._client, first, self._chat, None, self.numerics.removeprefix("vllm "))

    def render(self, request: Request) -> str:
        return self._chat.render(request)

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        return self._replies(requests, None)

    @property
    def width(self) -> int:
        return WIDTH

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        return self._replies(requests, listener)

    def _replies(self, requests: Iterable[Request | None], listener: Listener | None) -> Iterator[Reply]:
        if self._is_closed:
            raise EngineFailure("this engine is closed")
        return WorkerPool(
            lambda request, _: self._answer(request, listener), WIDTH, _ANSWER_SECONDS, self.render
        ).reply(requests)

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
            "add_special_tokens": self._chat.is_base or not request.messages,
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

    def _answer(self, request: Request, listener: Listener | None) -> Reply:
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
