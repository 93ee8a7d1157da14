"""A GGUF as it is shipped, answered by llama.cpp in its own arithmetic.

The binding is xllamacpp, which has wheels. Keys and values are kept in float32, and flash attention is off.
With these settings an answer had the same bits in any batch, with its prefix computed or reused, on a CPU
(docs/benchmarks.md). With float16, which is llama.cpp's default, it had not.

Promises: the prefix of a slot is computed once and reused. Sampling uses the request's own seed. A prompt
that is too long is an error row.
Leaves to others: log-probabilities of given texts, which this engine does not have.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import msgspec
import xllamacpp
from msgspec import UnsetType

from heredity.core import host
from heredity.core.errors import ContextOverflow, EngineFailure, Unavailable
from heredity.core.host import Device
from heredity.core.records import Model, Reply, Request, digest
from heredity.engines import AddressedRequest, Capabilities, Listener, Provenance, cache_budget, failed_reply
from heredity.engines._json_schemas import compact, grammar_of
from heredity.engines._workers import WorkerPool, error_row
from heredity.engines.chat import StopTexts, Template, parse_tool_calls
from heredity.formats.gguf import GgufHeader, GgufValue, read_gguf

WIDTH = 8  # slots: more are not faster on a CPU
MAX_SLOT_TOKENS = 4096  # tokens of prompt and answer per slot, if the model supports as many
_HOURS = 4 * 3600.0  # a machine that swaps is slow, but it answers
_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|end|>", "</s>")


class LlamaServer(Protocol):
    """The part of xllamacpp.Server that is used here."""

    listening_address: str

    def handle_completions(
        self, body: dict[str, object], callback: Callable[[dict[str, object]], bool] | None = None
    ) -> object:
        """Answer a request in JSON; with a callback, chunk by chunk."""


class LlamaToken(msgspec.Struct):
    """A token that was considered, with its natural-log probability; None if that is not a number."""

    id: int
    logprob: float | None = None


class LlamaLogprobs(msgspec.Struct):
    """The likeliest tokens of each generated token."""

    content: list[LlamaToken] | None = None


class LlamaChoice(msgspec.Struct):
    """The text of an answer, or of a chunk of it."""

    text: str
    finish_reason: str | None = None
    logprobs: LlamaLogprobs | None = None


class LlamaUsage(msgspec.Struct):
    """Token counts of an answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class LlamaCompletion(msgspec.Struct):
    """An answer of llama.cpp, or its error."""

    choices: list[LlamaChoice] = []
    usage: LlamaUsage | None = None
    error: object = None


def load(
    model: Model,
    folder: Path,
    tuning: Path | None = None,  # noqa: ARG001
    device: Device | None = None,  # noqa: ARG001 (its wheel decides)
) -> LlamaCppEngine:
    """Load a recorded GGUF."""
    (path,) = [folder / file.path for file in model.files if file.path.endswith(".gguf")]
    return open_file(path)


def open_file(path: Path, width: int = WIDTH, context: int = MAX_SLOT_TOKENS) -> LlamaCppEngine:
    """Load a GGUF. `width`: the most answers at once; fewer if memory is short.

    Raises Unavailable if llama.cpp does not load it, Damaged if the GGUF is incomplete.
    """
    header = read_gguf(path)
    shape = _Shape(header)
    n_tokens = min(context, shape.context)
    width = max(1, min(width, cache_budget() // max(1, shape.cache_bytes * n_tokens)))
    key = os.urandom(16).hex()
    return LlamaCppEngine(_serve(path, width, n_tokens, _threads(path), key), header, width, n_tokens, key)


def _serve(path: Path, width: int, n_tokens: int, n_threads: int, key: str = "") -> LlamaServer:
    try:
        settings = _settings(path, width, n_tokens, n_threads)
        settings.api_keys = [
            key or os.urandom(16).hex()
        ]  # the library opens a port of this machine: nobody else may use it
        server: LlamaServer = xllamacpp.Server(settings)
        # It must answer once: if it is closed while it still starts, the library hangs.
        server.handle_completions({"prompt": "Hello", "n_predict": 1})
        return server
    except Exception as error:  # the binding raises RuntimeError for any failure of llama.cpp
        raise Unavailable(f"llama.cpp does not load {path.name}: {error}") from error


def _threads(path: Path) -> int:
    """Return the number of cores; on a busy machine 1, if that is measured to be faster.

    All threads wait for each other hundreds of times per token. If other processes hold the cores, each wait
    takes a turn of the scheduler. Two threads on two busy cores were six times slower than one.
    """
    n_all = host.n_cores()
    if n_all == 1 or _load_average() < n_all / 2:
        return n_all

    def seconds(n_threads: int) -> float:
        server = _serve(path, 1, 256, n_threads)
        started = time.perf_counter()
        server.handle_completions({"prompt": "Hello", "n_predict": 4, "temperature": 0.0, "ignore_eos": True})
        return time.perf_counter() - started

    return min((n_all, 1), key=seconds)


class _Shape:
    """The memory that a model needs, from its header."""

    def __init__(self, header: GgufHeader) -> None:
        metadata, kind = header.metadata, header.text("general.architecture")
        heads = _number(metadata.get(f"{kind}.attention.head_count"), 1)
        kv_heads = _number(metadata.get(f"{kind}.attention.head_count_kv"), heads)
        head_dim = _number(metadata.get(f"{kind}.embedding_length"), 4096) // max(1, heads)
        key = _number(metadata.get(f"{kind}.attention.key_length"), head_dim)
        value = _number(metadata.get(f"{kind}.attention.value_length"), head_dim)
        self.context = _number(metadata.get(f"{kind}.context_length"), MAX_SLOT_TOKENS)
        layers = _number(metadata.get(f"{kind}.block_count"), 32)
        self.cache_bytes = 4 * layers * kv_heads * (key + value)  # of one token, in float32


def longest_token(header: GgufHeader) -> int:
    """Return the most bytes of a text that one token covers; 0 if a tokenizer may drop or merge more."""
    if header.text("tokenizer.ggml.model") not in ("gpt2", "llama"):
        return 0
    return max((len(token.encode("utf-8", "replace")) for token in header.tokens), default=0)


def _number(value: GgufValue | None, default: int) -> int:
    """Return an integer of the header; the largest of an array with one per layer."""
    if isinstance(value, tuple):
        return max((each for each in value if isinstance(each, int)), default=default)
    return value if isinstance(value, int) and value > 0 else default


def _settings(path: Path, width: int, n_tokens: int, n_threads: int) -> xllamacpp.CommonParams:
    given = xllamacpp.CommonParams()
    given.model.path = str(path)
    given.n_parallel, given.n_ctx = width, width * n_tokens
    given.kv_unified = False  # every slot attends only over its own cache
    given.cache_type_k = given.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    given.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    given.swa_full = True  # otherwise a model with sliding windows could not reuse a prefix
    given.ctx_shift = False  # an answer that is too long is an error; its beginning is not dropped
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = n_threads
    given.cache_ram_mib = 0
    given.special = True  # the control tokens that a model writes are part of its answer
    given.fit_params = given.ui = given.warmup = given.endpoint_slots = False
    # The prompt is rendered here. llama.cpp would try the file's own template, without limits, as it loads.
    given.use_jinja, given.chat_template = False, "chatml"
    given.offline, given.verbosity = True, 0
    return given


class LlamaCppEngine:
    """A loaded GGUF behind the Engine protocol."""

    def __init__(
        self, server: LlamaServer, header: GgufHeader, width: int, n_tokens: int, key: str = ""
    ) -> None:
        self._server: LlamaServer | None = server
        self._width, self._context, self._key = width, n_tokens, key
        self._bos, eos, eot = (header.special(name) for name in ("bos", "eos", "eot"))
        self._template = Template(header.text("tokenizer.chat_template"), self._bos, eos)
        self._ends = sorted({*_ENDS, eos, eot} - {""}, key=len, reverse=True)
        self._most_bytes = n_tokens * longest_token(header)
        gpus = [str(d["description"]) for d in xllamacpp.get_device_info() if int(d["type"]) != 0]
        self._is_batch_unverified = bool(gpus)
        device = f"cpu {digest(xllamacpp.get_system_info())[:8]}"  # its features decide the last bit
        if gpus:
            device = f"{', '.join(gpus)} (answers may depend on company: unproven there)"
        self.numerics = f"llamacpp {version('xllamacpp')} kv float32 {device}"
        self.name = f"llamacpp {version('xllamacpp')} kv float32 width {width} on {device}"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            streamer=self,
            is_base=bool(self._template.stop_text),
            check_schema=grammar_of,  # llama.cpp would ignore a bad one
            check_length=lambda request: self._check_length(self.render(request)),
            provenance=Provenance(is_batch_unverified=self._is_batch_unverified),
        )

    def render(self, request: Request) -> str:
        return self._template.render(request)

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        return self._replies(requests, None)

    @property
    def width(self) -> int:
        return self._width

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        return self._replies(requests, listener)

    def _replies(self, requests: Iterable[Request | None], listener: Listener | None) -> Iterator[Reply]:
        _ = self._loaded  # raise now, not in a worker
        return WorkerPool(
            lambda request, _: self._answer(request, listener), self._width, _HOURS, self.render
        ).reply(requests)

    def _check_length(self, prompt: str) -> None:
        """Raise ContextOverflow if a prompt is longer than as many of the longest tokens as fit.

        llama.cpp takes half a minute for the tokens of four megabytes, and a slot is taken meanwhile.
        """
        if 0 < self._most_bytes < len(prompt.encode("utf-8", "replace")):
            raise ContextOverflow(
                f"context overflow: over {self._context} tokens needed, {self._context} there"
            )

    def likeliest(self, tokens: Sequence[int]) -> tuple[int, float] | None:
        """Return the likeliest next token with its natural-log probability.

        None for a part of a character, which llama.cpp does not report.
        """
        asked = {"prompt": list(tokens), "n_predict": 1, "temperature": 0.0, "n_probs": 1}
        given = _read(self._loaded.handle_completions({**asked, "cache_prompt": True}))
        logprobs = given.choices[0].logprobs
        if logprobs is None or not logprobs.content:
            return None
        likeliest = logprobs.content[0]
        return likeliest.id, math.nan if likeliest.logprob is None else likeliest.logprob

    def tokenize(self, text: str) -> list[int]:
        """Return llama.cpp's tokens of a rendered text, control tokens included; nothing is prepended."""
        import httpx

        given = httpx.post(
            f"{self._loaded.listening_address}/tokenize",
            json={"content": text, "add_special": False, "parse_special": True},
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=60,
        )
        return [int(each) for each in given.raise_for_status().json()["tokens"]]

    @property
    def _loaded(self) -> LlamaServer:
        if self._server is None:
            raise EngineFailure("this engine is closed")
        return self._server

    def close(self) -> None:
        self._server = None
        host.trim_memory()

    def _answer(self, request: Request, listener: Listener | None) -> Reply:
        prompt = ""
        try:
            prompt = self.render(request)
            self._check_length(prompt)
        except EngineFailure as error:
            return failed_reply(request, prompt, error)
        body = self.body(request, prompt)
        is_heard = listener is not None and listener.is_heard(request.key)
        heard = _Heard(request.key, listener, StopTexts(self._ends)) if listener and is_heard else None
        server = self._loaded
        given = _read(server.handle_completions(body)) if heard is None else heard.ask(server, body)
        if given.error is not None:
            return error_row(request, self.render, *_error(given.error))
        usage, choice = given.usage or LlamaUsage(), given.choices[0]
        n_needed = usage.prompt_tokens + request.decoding.max_tokens
        if n_needed > self._context:  # as in every engine, even if this answer is short
            why = f"context overflow: {n_needed} tokens needed, {self._context} there"
            return error_row(request, self.render, why, ContextOverflow.code)
        text = (
            next(
                (choice.text.removesuffix(end) for end in self._ends if choice.text.endswith(end)),
                choice.text,
            )
            if choice.finish_reason == "stop"
            else choice.text
        )
        if heard is not None:
            heard.finish(text)
        return Reply(
            request.key,
            prompt,
            text,
            tool_calls=parse_tool_calls(text),
            stop="length" if choice.finish_reason == "length" else "end",
            n_prompt_tokens=usage.prompt_tokens,
            n_tokens=usage.completion_tokens,
        )

    def body(self, request: Request, prompt: str) -> dict[str, object]:
        """Return the body: temperature, then top-p, and no other sampler."""
        decoding = request.decoding
        if self._bos and self._template.stop_text == "":
            prompt = prompt.removeprefix(self._bos)  # llama.cpp adds it
        body: dict[str, object] = {
            "prompt": prompt,
            "n_predict": decoding.max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "samplers": ["temperature", "top_p"],
            "seed": request.seed % 0x7FFFFFFF,  # its seeds have 32 bits, and the last one means "any"
            # Its slots belong to all callers.
            "cache_prompt": not (isinstance(request, AddressedRequest) and request.caller),
        }
        if not isinstance(decoding.json_schema, UnsetType):
            body["json_schema"] = compact(decoding.json_schema)
        if self._template.stop_text:
            body["stop"] = [self._template.stop_text]
        return body


class _Heard:
    """A growing answer of llama.cpp, reported to a listener and joined to the whole.

    Half a character at the token limit is missing: llama.cpp does not report it.
    """

    def __init__(self, key: int, listener: Listener, ends: StopTexts) -> None:
        self._key, self._listener, self._ends = key, listener, ends
        self._pieces: list[str] = []
        self._last = LlamaCompletion()
        self._n_reported = 0

    def ask(self, server: LlamaServer, body: dict[str, object]) -> LlamaCompletion:
        """Ask with a body and return the answer. A cancelled one looks as if it had met its limit."""
        as_stream = {"stream": True, "stream_options": {"include_usage": True}}
        server.handle_completions(body | as_stream, self._hear)
        last = self._last
        if last.error is not None:
            return last
        choice = LlamaChoice("".join(self._pieces), last.choices[0].finish_reason or "length")
        return LlamaCompletion([choice], last.usage or LlamaUsage(0, len(self._pieces)))

    def _hear(self, chunk: dict[str, object]) -> bool:
        """Receive a chunk; return True to stop llama.cpp."""
        self._last = _read(chunk)
        if self._last.error is not None:
            return True
        text = self._last.choices[0].text
        self._pieces.append(text)
        self._report(self._ends.feed(text))
        return not self._listener.is_wanted(self._key)

    def finish(self, text: str) -> None:
        """Report the rest of the answer, which is `text` as a whole."""
        self._report(text[self._n_reported :])

    def _report(self, more: str) -> None:
        self._n_reported += len(more)
        if more:
            self._listener.hear(self._key, more)


def _read(given: object) -> LlamaCompletion:
    return msgspec.convert(given, LlamaCompletion)


def _error(given: object) -> tuple[str, str]:
    """Return the message of a failed request and the code of its error."""
    message = given.get("message", given) if isinstance(given, dict) else given
    kind = given.get("type", "") if isinstance(given, dict) else ""
    if "context" in str(kind):
        return f"context overflow: {message}", ContextOverflow.code
    return f"llama.cpp: {message}", EngineFailure.code


def _load_average() -> float:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return 0.0
