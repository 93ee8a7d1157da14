"""How a model answers. An engine is a loaded model that answers requests; each file here is one kind.

A local model comes with its files. A remote model is a record whose recipe holds its address. To add an
engine, add a file `engines/NAME.py` with a function `load` (protocols.EngineModule).

Promises: `protocols.Engine` lists what every engine guarantees.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from msgspec import UnsetType

from heredity.core import registry
from heredity.core.errors import Damaged, EngineFailure, HeredityError, Unavailable, UnknownName
from heredity.core.host import CPU, Device
from heredity.core.records import Decoding, Model, Reply, Request, is_digest
from heredity.core.sanitize import clean_text
from heredity.engines.protocols import Engine, capabilities
from heredity.formats.architectures import FAST, PACKED

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
