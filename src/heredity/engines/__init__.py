"""How a model answers. An engine is a loaded model that answers requests; each file here is one kind.

A local model comes with its files. A remote model is a record whose recipe holds its address. To add an
engine, add a file `engines/NAME.py` with a function `load` (EngineModule).

Promises: `Engine` lists what every engine guarantees. One that only answers text declares nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from msgspec import UnsetType

from heredity.core import registry
from heredity.core.errors import Damaged, EngineFailure, HeredityError, Unavailable, UnknownName
from heredity.core.host import CPU, Device
from heredity.core.records import Decoding, Model, Reply, Request, is_digest
from heredity.core.sanitize import clean_text
from heredity.formats.architectures import FAST, PACKED

if TYPE_CHECKING:
    import torch


class Engine(Protocol):
    """A loaded model that answers requests.

    Replies may come in any order; each carries the key of its request. An answer depends on its request only:
    not on the batch, the order, or a restart. An engine that does more has a property `capabilities`.
    """

    @property
    def name(self) -> str:
        """A description for people, stored with every row: kind, dtype, batch width, versions."""

    @property
    def numerics(self) -> str:
        """The part of `name` that can change the bits of an answer; a key of the response cache.

        An empty string means that answers are not worth caching (`scripted`).
        """

    def render(self, request: Request) -> str:
        """Return the full prompt of a request, prefill included. Uses no clock and no network.

        `chat.ChatCodec` lists where each engine takes its chat template from. The template of a remote
        model is unknown: its text is equal only for equal requests.
        """

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Answer a stream of requests, as many at a time as is fast.

        The thread that iterates over the replies also pulls `requests`, whenever there is room. None in the
        stream means "nothing is ready, but replies in flight will bring more". The engine then continues and
        asks again after its next reply. Closing the iterator early abandons the requests in flight.

        A failure of one request is a reply with stop "error". A failure of all requests raises EngineFailure,
        and so does a refused key. The run then ends and keeps its answers.
        """

    def close(self) -> None:
        """Free the memory."""


@runtime_checkable
class EngineModule(Protocol):
    """The module of an engine: it defines `load`."""

    def load(
        self, model: Model, folder: Path, tuning: Path | None = None, device: Device | None = None
    ) -> Engine:
        """Load a model. Raises Unavailable, with advice, if this machine cannot.

        folder: the verified files of the model; empty for a remote model.
        tuning: a file for the engine's measurements of this model on this machine; it may not exist yet.
        device: where the model computes; None: `host.choose_device`. A model elsewhere ignores it.
        """


class AddressedRequest(Request, frozen=True):
    """A request of a caller, or of one of the models that share an engine. Neither is stored.

    adapter: the number of its adapter in that engine; 0: the base. caller: an engine reuses nothing of a
    prompt for another caller, whom its time would tell that the prompt was sent; "" for none.
    """

    adapter: int = 0
    caller: str = ""


class Listener(Protocol):
    """Receives answers while they are generated. Any thread of the engine may call it."""

    def is_heard(self, key: int) -> bool:
        """Return True if the answer of this request is wanted in parts."""

    def hear(self, key: int, more: str) -> None:
        """Receive the next part: whole characters. All parts come before the reply."""

    def is_wanted(self, key: int) -> bool:
        """Return False to cancel the rest. The reply then comes soon, with stop "length"."""


class AnswerListener:
    """A `Listener` of one turn of a conversation.

    hear: takes each part; None: answers are not wanted in parts. n_heard: characters so far of the reply in
    progress.
    """

    def __init__(self, hear: Callable[[str], None] | None) -> None:
        self._hear, self.n_heard, self.is_stopped = hear, 0, False

    def stop(self) -> None:
        """End the answer in progress, and any after it in this turn. Any thread may call it."""
        self.is_stopped = True

    def is_heard(self, key: int) -> bool:  # noqa: ARG002
        """Whether answers are wanted in parts."""
        return self._hear is not None

    def hear(self, key: int, more: str) -> None:  # noqa: ARG002
        """Pass the next part on."""
        if self._hear is not None:
            self._hear(more)
            self.n_heard += len(more)

    def is_wanted(self, key: int) -> bool:  # noqa: ARG002
        """False once it was stopped."""
        return not self.is_stopped


class Streamer(Protocol):
    """Reports answers while they are generated, and cancels them."""

    @property
    def width(self) -> int:
        """The number of requests that it answers at once."""

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        """Do the same as `Engine.reply` and report to a listener. Pulls requests whenever there is room."""


class TokenScores(NamedTuple):
    """Natural-log probability of each token of a text, and whether greedy decoding gives that text."""

    logs: list[float]
    is_greedy: bool = False


class Scorer(Protocol):
    """Computes log-probabilities of given texts."""

    @property
    def boundary(self) -> str:
        """The token between texts, as text: an empty context consists of it."""

    def score(self, request: Request, continuations: Sequence[str]) -> list[TokenScores]:
        """Return the scores of each continuation of the prompt. Raises ContextOverflow."""


class TokenLog(NamedTuple):
    """A token of a text, and the natural-log probability that the model gave it there.

    log: None for the first token of a text. top: the likeliest tokens there, as text, with theirs.
    """

    token: int
    text: str
    log: float | None
    top: tuple[tuple[str, float], ...]


class TokenScorer(Protocol):
    """Scores every token of a text, given as tokens."""

    @property
    def context_length(self) -> int:
        """The most tokens of a text."""

    def prompt_tokens(self, request: Request) -> tuple[int, ...]:
        """Return the tokens of a request's prompt."""

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the plain text whose prompt has exactly these tokens.

        Raises UsageError if no text has them, or a token is not in the vocabulary.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """Return tokens as text. Raises UsageError if one is not in the vocabulary."""

    def token_logs(self, tokens: Sequence[int], start: int, n_top: int) -> list[TokenLog]:
        """Return the scores of `tokens[start:]`, and of the likeliest token after them.

        n_top: how many of the likeliest tokens to list at each place.
        Raises ContextOverflow, and UsageError if a token is not in the vocabulary.
        """


class WhiteBoxEngine(Engine, Protocol):
    """An engine that holds the weights and gives an attack access to them."""

    def direction(self, harmful: Sequence[Request], harmless: Sequence[Request]) -> str:
        """Find the residual direction that separates two kinds of request, as base64 text.

        Raises UsageError if there are too few requests.
        """

    def without(self, direction: str) -> Engine:
        """Return the same model with that direction projected out.

        The weights are shared. Name and numerics differ (`altered`); `base_numerics` stays the same.
        """

    def suffix(self, request: Request, mark: str, target: str, steps: int, seed: int) -> str:
        """Search a text to put in place of `mark`, so that the model begins its answer with `target`.

        Returns JSON with "text", "loss_before", "loss_after" and "n_steps". Raises EngineFailure if this
        model cannot be searched.
        """

    @property
    def n_layers(self) -> int:
        """The number of layers."""

    def until(self, n_layers: int) -> WhiteBoxEngine:
        """Return an engine of the first layers only. Raises EngineFailure if there are fewer layers."""

    def opening_logs(self, request: Request, texts: Sequence[str]) -> list[float]:
        """Return the natural-log probability that an answer begins with each of these texts."""

    def state(self, request: Request) -> torch.Tensor:
        """Return the residual stream after the last layer, at the last prompt token.

        A float32 tensor (hidden size,). Raises ContextOverflow.
        """


class FirstAnswer:
    """Calls `listener` at the first answer of each stream, errors aside."""

    def __init__(self) -> None:
        self.listener: Callable[[], object] | None = None

    def announce(self, replies: Iterator[Reply]) -> Iterator[Reply]:
        """Yield the replies."""
        is_first = True
        for reply in replies:
            if is_first and reply.error is None:
                is_first = False
                if self.listener is not None:
                    self.listener()
            yield reply


def _as_given(decoding: Decoding) -> Decoding:
    return decoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The facts about the source of answers that a study's rows and the keys of its cache hold.

    account: counts of a run (`n_...`, `cost`) and lists of texts, such as the `served` models of a service.
    as_sent: the decoding that a service really uses.
    base_numerics: the numerics before an attack changed the model; "" if none can.
    is_batch_unverified: an answer may depend on what else is in the batch.
    first_answer: of a model elsewhere, or of a function: it may never answer.
    base_at_server: an engine of an adapter's base at the same server, which ends with this one.
    """

    account: Callable[[], dict[str, object]] = dict
    as_sent: Callable[[Decoding], Decoding] = _as_given
    base_numerics: str = ""
    is_batch_unverified: bool = False
    first_answer: FirstAnswer | None = None
    base_at_server: Callable[[], Engine | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The things that an engine does besides answering. None: it does not.

    is_base: it also continues a plain text (a request without messages, the text as its prefill), and whether
    its model has no chat template. check_schema: raises BadArgument for a JSON schema that answers cannot be
    held to. check_length: raises ContextOverflow for a prompt that surely has more tokens than the context,
    in any thread.
    """

    streamer: Streamer | None = None
    is_base: bool | None = None
    scorer: Scorer | None = None
    token_scorer: TokenScorer | None = None
    weights: WhiteBoxEngine | None = None
    check_schema: Callable[[str], object] | None = None
    check_length: Callable[[Request], object] | None = None
    provenance: Provenance = Provenance()


@runtime_checkable
class DeclaringEngine(Protocol):
    """An engine that does more than answer."""

    @property
    def capabilities(self) -> Capabilities:
        """Its capabilities; made at each call, so that no circle of references holds the weights."""


def capabilities(engine: Engine) -> Capabilities:
    """Return what an engine declares; nothing of one that only answers."""
    return engine.capabilities if isinstance(engine, DeclaringEngine) else Capabilities()


_ALTERED = " | "
_ON_SERVERS = ("remote", "vllm")  # they have `shared_address`
_TEXT_ONLY = ("call", "url")  # they have `refuse_text_only`
PHASED = ("torch", "transformers")  # their `load` takes `watch`, which gets its phases while the engine lives
_UNKNOWN_MEMORY = 16 << 30  # bytes, where the system reports none
NOT_VERIFIED = "batch invariance not verified"  # in the name of such an engine
GENERAL = "transformers"  # the engine of models that `torch` does not read ...
NOT_READ = "architecture-unsupported"  # ... and so refuses with this code
KV_CACHE, DTYPE = "kv_cache", "dtype"  # recipes of a model that the torch engine computes otherwise
BY_FORMAT = {
    "safetensors": "torch",
    "gguf": "torch",
    "int8": "torch",
    "adapter": "torch",
    "remote": "remote",
    "scripted": "scripted",
}
_BY_OBJECTIVE = {"masked": "encoder", "contrastive": "dual"}
_COMPUTE_HERE = ("torch", "transformers", "encoder", "dual")  # engines that torch computes in this process
# Of engines whose extra has another name.
EXTRAS = {"encoder": "torch", "dual": "torch", "transformers": "torch"}


def choose(model: Model) -> str:
    """Return the name of the engine that answers for a model.

    A model's recipe may record it as the setting `engine`. Otherwise the objective decides for encoders, and
    the format for other models. A GGUF and packed weights are answered through their dequantized child.
    Safetensors that `torch` does not read, by their architecture or quantization, go to `transformers`.
    """
    settings = model.recipe.settings
    by_objective = _BY_OBJECTIVE.get(str(settings.get("objective")))
    engine = str(settings.get("engine") or by_objective or BY_FORMAT[model.format])
    is_other = bool(model.architecture) and model.architecture not in FAST
    is_packed = bool(model.quantization) and model.quantization not in PACKED
    is_beyond_torch = model.format == "safetensors" and (is_other or is_packed)
    return GENERAL if engine == "torch" and is_beyond_torch else engine


def is_converted(model: Model) -> bool:
    """Return True if the engine loads the dequantized child of a model instead of its own files."""
    if is_set(model):
        return False
    is_packed = model.format == "safetensors" and model.quantization in PACKED
    return is_packed or (model.format == "gguf" and choose(model) == "torch")


def is_set(model: Model) -> bool:
    """Return True if a record names its engine, or a setting that only `torch` has."""
    return "engine" in model.recipe.settings or model.recipe.kind in (KV_CACHE, DTYPE)


def base_of(model: Model) -> str | None:
    """Return the parent that an adapter applies to, as the record names it; None if it names none.

    In another engine ("vllm:NAME") the first parent is the adapter, and the second its base.
    """
    place = 1 if model.recipe.kind == "engine" else 0
    return model.parents[place] if len(model.parents) > place else None


def base_folder(model: Model, folder: Path) -> Path:
    """Return the folder of an adapter's base, in the same store. Raises Damaged if the record names none."""
    base = base_of(model)
    if base is None or not is_digest(base):  # an id, never a path
        raise Damaged(f"The record of '{model.name}', an adapter, names no model as its base.")
    return folder.parents[1] / base / folder.name


def holds_weights(model: Model) -> bool:
    """Return True if the engine of this model gives attacks its weights."""
    return choose(model) == "torch"


def computes_here(model: Model) -> bool:
    """Return True if torch computes the engine of this model in this process, so that it has a device."""
    return choose(model) in _COMPUTE_HERE


def refuse_text_only(model: Model) -> None:
    """Raise UsageError if a target takes only the user's text, so that no system prompt reaches it."""
    if model.format == "remote" and (name := choose(model)) in _TEXT_ONLY:
        registry.load("engines", name).refuse_text_only(model)


def shared_address(model: Model) -> str:
    """The address of the server that answers for a model and may hold others; "" for none."""
    with suppress(ImportError, UnknownName):  # an engine that is missing is reported when it is loaded
        if (name := choose(model)) in _ON_SERVERS:
            address: str = registry.load("engines", name).shared_address(model)
            return address
    return ""


def check_schema(engine: Engine, decoding: Decoding) -> None:
    """Raise Unavailable, or BadArgument, if an engine cannot hold its answers to a decoding's JSON schema."""
    if isinstance(decoding.json_schema, UnsetType):
        return
    if (check := capabilities(engine).check_schema) is None:
        raise Unavailable(
            f"The engine {engine.name} cannot hold its answers to a JSON schema; torch and llamacpp can."
        )
    check(decoding.json_schema)


def altered(name: str, change: str) -> str:
    """Return the name, or the numerics, of an engine whose model an attack has changed."""
    return f"{name}{_ALTERED}{change}"


def base_numerics(engine: Engine) -> str:
    """Return the numerics of an engine before an attack changed its model."""
    return capabilities(engine).provenance.base_numerics or engine.numerics


def failed_reply(
    request: Request,
    prompt: str,
    error: HeredityError,
    n_prompt_tokens: int = 0,
    n_tokens: int | None = None,
) -> Reply:
    """Return the reply of a request that an engine could not answer."""
    words = clean_text(str(error))
    return Reply(
        request.key, prompt, "", stop="error", error=words, error_code=error.code,
        n_prompt_tokens=n_prompt_tokens, n_tokens=n_tokens,
    )  # fmt: skip


class RequestStream:
    """The requests that an engine pulls. `is_open` is False after the last one."""

    def __init__(self, requests: Iterable[Request | None]) -> None:
        self._requests = iter(requests)
        self.is_open = True

    def next(self) -> Request | None:
        """Return the next request, or None if none is ready now or none is left."""
        if self.is_open:
            try:
                return next(self._requests)
            except StopIteration:
                self.is_open = False
        return None

    def refuse_idle(self) -> None:
        """Raise EngineFailure if the stream is open, for no request in flight can bring another."""
        if self.is_open:
            raise EngineFailure("the stream of requests has nothing ready and nothing in flight")


def cache_budget(device: Device = CPU) -> int:
    """Return the bytes for keys and values.

    A quarter of the memory of the machine or container; of a GPU half of what is free once weights are there.
    """
    if device.kind == "cuda":
        return (device.free_memory() or _UNKNOWN_MEMORY) // 2
    return (device.total_memory() or _UNKNOWN_MEMORY) // 4


def n_started(text: str, end: str) -> int:
    """Return the length of the longest proper beginning of `end` at the end of `text`."""
    return next((n for n in range(min(len(text), len(end) - 1), 0, -1) if text.endswith(end[:n])), 0)
