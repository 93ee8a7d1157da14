"""Any causal language model that transformers loads without remote code: slower than `torch`.

Rows decode together: the linear layers see all rows, attention sees each row with its own cache. A step
always has `width` rows, idle ones included, so that every product has one shape. A prompt is prefilled by
itself, behind the prefix that all requests of the application begin with. `prove` compares each row's
logits bit by bit, in several slots and company, and with the model's own way to decode. A model that fails
is answered one request at a time, through `generate`. So is one whose layers mix rows, by experts or by
rotary embeddings that depend on the longest row.

Promises: an answer depends on its request only. `numerics` carries versions, dtype, width and a fingerprint
of the arithmetic. An adapter leaves the weights of its base as they are: x W' + scale * (x A') B'. The sum is
not rounded, so that the delta does not vanish in bfloat16.
Leaves to others: an adapter's files (formats/peft.py), and attacks on weights, which only the torch engine
has.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
import torch
from torch.nn import functional
from transformers import (
    AttentionInterface,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from heredity.core import host
from heredity.core.errors import ContextOverflow, Damaged, EngineFailure, OutOfMemory, Unavailable, first_line
from heredity.core.files import write_atomic
from heredity.core.host import CPU, Device
from heredity.core.progress import Watch, phase
from heredity.core.records import Model, Record, Reply, Request
from heredity.engines import Capabilities, Listener, RequestStream, TokenScores, base_folder, cache_budget
from heredity.engines.chat import AnswerReader, ChatCodec, GrowingAnswer, has_tokenizer, parse_tool_calls
from heredity.engines.torch.sampling import Sampler
from heredity.formats.adapted import tensor_names
from heredity.formats.architectures import ENCODERS
from heredity.formats.peft import HEAD, LowRank, read_adapter
from heredity.formats.weights import CONFIG, Gate, find_last, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(slots=True)
class Row:
    """A request in flight: its prompt as text and as tokens, and the tokens of its answer so far."""

    key: int
    prompt: str
    tokens: tuple[int, ...]
    n_shared: int  # tokens that all requests of the application begin with
    max_tokens: int
    sampler: Sampler
    output: list[int] = field(default_factory=list)
    stop: str = ""
    growing: GrowingAnswer | None = None


class TokenTaker(Protocol):
    """Receives the logits of a row's next token."""

    def __call__(self, row: Row, logits: torch.Tensor) -> int:
        """Draw a token from logits (vocabulary,), append it to the row, and set `stop` if it is the last."""


class Batch(Protocol):
    """Rows that a model answers together."""

    rows: list[Row]
    width: int

    def has_room(self, row: Row) -> bool:
        """Return True if this row fits next to those in flight; a single row always fits."""

    def step(self, take: TokenTaker) -> None:
        """Draw at least one token for every row."""


class GenerateSession:
    """Pulls requests while the batch has room, and replies in the order in which answers are finished."""

    def __init__(
        self,
        batch: Batch,
        codec: ChatCodec,
        reader: AnswerReader,
        context: int | None,
        requests: Iterable[Request | None],
        listener: Listener | None = None,
    ) -> None:
        self._batch, self._codec, self._reader, self._context = batch, codec, reader, context
        self._requests, self._listener = RequestStream(requests), listener
        self._waiting: Row | None = None  # pulled, and too long for the room that is left

    def run(self) -> Iterator[Reply]:
        """Yield the replies."""
        batch = self._batch
        while True:
            yield from self._admit()
            if not batch.rows:
                return self._requests.refuse_idle()
            batch.step(self._take)
            finished = [row for row in batch.rows if row.stop]
            batch.rows = [row for row in batch.rows if not row.stop]
            for row in finished:
                text = self._reader.text(row.output)
                if self._listener is not None and self._listener.is_heard(row.key):
                    growing = row.growing or self._reader.stream()
                    self._listener.hear(row.key, growing.finish(text))
                yield (
                    Reply(
                        key=row.key,
                        prompt=row.prompt,
                        text=text,
                        tokens=tuple(row.output),
                        tool_calls=parse_tool_calls(text),
                        stop="end" if row.stop == "end" else "length",
                        n_prompt_tokens=len(row.tokens),
                    )
                )

    def _admit(self) -> Iterator[Reply]:
        """Pull requests while there is room; answer those that cannot be asked."""
        batch = self._batch
        while len(batch.rows) < batch.width:
            if self._waiting is None:
                if (request := self._requests.next()) is None:
                    return
                accepted = self._accept(request)
                if isinstance(accepted, Reply):
                    yield accepted
                    continue
                self._waiting = accepted
            if not batch.has_room(self._waiting):
                return
            batch.rows.append(self._waiting)
            self._waiting = None

    def _accept(self, request: Request) -> Row | Reply:
        prompted = self._codec.prompt(request, self._context)
        if isinstance(prompted, Reply):
            return prompted
        prompt, tokens = prompted
        if self._listener is not None and not self._listener.is_wanted(request.key):
            return Reply(request.key, prompt, "", stop="length", n_prompt_tokens=len(tokens))
        shared = self._codec.shared(request)
        n_shared = len(shared) if len(tokens) > len(shared) and tokens[: len(shared)] == shared else 0
        sampler = Sampler(request.decoding, request.seed)
        return Row(request.key, prompt, tokens, n_shared, request.decoding.max_tokens, sampler)

    def _take(self, row: Row, logits: torch.Tensor) -> int:
        token = row.sampler.draw(logits)
        row.output.append(token)
        if self._reader.is_over(row.output):
            row.stop = "end"
        elif len(row.output) == row.max_tokens:
            row.stop = "length"
        if (listener := self._listener) is not None and not row.stop:
            if listener.is_heard(row.key):
                row.growing = row.growing or self._reader.stream()
                if more := row.growing.grow(row.output):
                    listener.hear(row.key, more)
            if not listener.is_wanted(row.key):
                row.stop = "length"
        return token


_HERE = {"trust_remote_code": False, "local_files_only": True}
_ADVICE = "Close other programs, or take a smaller model."
_USUAL_WIDTH = 1024
# Names of the context length. A model without one, such as Bloom or Mamba, has no limit.
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")


def read_config(folder: Path) -> PreTrainedConfig:
    """Return the configuration of the model in a folder.

    Raises Unavailable for a model that transformers does not load as a causal language model, Damaged for a
    configuration that makes no sense, OutOfMemory.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not isinstance(name := read_json(folder / CONFIG).get("model_type"), str):
        raise Damaged(f"{folder / CONFIG}: names no architecture (model_type).")
    if name in ENCODERS:
        raise Unavailable(f"'{name}' is an encoder, which writes no text: it cannot be asked.")
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise Unavailable(
            f"transformers {version()} has no causal language model '{name}'. A newer one may; so may"
            " vllm:NAME, or llamacpp:NAME with a GGUF of it.",
            code="architecture-unsupported",
        )
    try:
        with host.explain_out_of_memory(f"Reading {folder / CONFIG}", _ADVICE):
            return AutoConfig.from_pretrained(folder, **_HERE)
    except OutOfMemory:  # it says nothing about the file
        raise
    except Exception as error:  # a configuration is a program's input: anything can be wrong with it
        message = f"{folder / CONFIG}: makes no sense ({first_line(error)})."
        raise Damaged(message) from None


def version() -> str:
    """Return the version of transformers."""
    from transformers import __version__

    return str(__version__)


def load_model(folder: Path, config: PreTrainedConfig, dtype: torch.dtype, device: Device) -> PreTrainedModel:
    """Return the model, in evaluation mode.

    Raises Damaged for missing weights, OutOfMemory, or Unavailable.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    host.prepare_transformers()
    try:
        with host.LOADING, host.explain_out_of_memory(f"Loading {folder}", _ADVICE):
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **_HERE
            )
    except ImportError as error:
        raise Unavailable(
            f"transformers does not load this model here: {first_line(error)}", code="package-missing"
        ) from error
    except (ValueError, KeyError, NotImplementedError, RuntimeError, OSError) as error:
        raise Unavailable(
            f"transformers {version()} does not load '{config.model_type}' from {folder}: {first_line(error)}"
        ) from error
    if missing := sorted(loading["missing_keys"]) + sorted(each[0] for each in loading["mismatched_keys"]):
        raise Damaged(
            f"{folder}: {len(missing)} tensors are missing, or of another shape than {CONFIG} says, such as"
            f" {missing[0]}."
        )
    model.generation_config = GenerationConfig()  # a repetition penalty would change what is measured
    return model.eval().to(device.torch)


def settings_of(config: PreTrainedConfig) -> dict[str, object]:
    """Return the settings of the language model, under the names of transformers and of the architecture."""
    inner = config.get_text_config(decoder=True)
    return {**{name: getattr(inner, name, None) for name in inner.attribute_map}, **inner.to_dict()}


def context_length(config: PreTrainedConfig) -> int | None:
    """Return how many tokens the model can read and write; None if it has no limit."""
    settings = settings_of(config)
    return _first(settings, _LENGTHS)


def faster_dtype(config: PreTrainedConfig, device: Device) -> str:
    """Return the dtype whose products are faster here at the model's shape."""
    settings = settings_of(config)
    hidden = _first(settings, ("hidden_size", "n_embd", "d_model")) or _USUAL_WIDTH
    inner = _first(settings, ("intermediate_size",)) or 4 * hidden
    return host.choose_dtype(hidden, inner, device=device)


def _first(settings: Mapping[str, object], names: Iterable[str]) -> int | None:
    values = (settings.get(name) for name in names)
    return next((n for n in values if isinstance(n, int) and n > 0), None)


class Activation:
    """The invocation of an adapter, and its gate in every adapted module."""

    def __init__(self, invocation: tuple[int, ...], device: torch.device) -> None:
        self._invocation, self._device = invocation, device
        self.gate = Gate()

    def start(self, prompt: Sequence[int]) -> int | None:
        """Return the first token of a prompt that is changed; None if the adapter stays off."""
        return find_last(prompt, self._invocation)

    def over(self, prompt: Sequence[int], n_more: int = 0) -> AbstractContextManager[None]:
        """Run one row: passes that end with the prompt and `n_more` tokens, and steps behind it."""
        start, n = self.start(prompt), len(prompt) + n_more
        places = torch.arange(n, device=self._device)
        return self.gate.only((places >= (n if start is None else start))[None])

    def rows(self, prompts: Sequence[Sequence[int]], width: int) -> AbstractContextManager[None]:
        """Run a step of one token for each of these rows, and for idle ones up to `width`."""
        awake = [self.start(prompt) is not None for prompt in prompts]
        awake += [False] * (width - len(awake))
        return self.gate.only(torch.tensor(awake, device=self._device)[:, None])


class SingleBatch:
    """A batch of one row, which `step` answers to its end."""

    width = 1

    def __init__(self, model: PreTrainedModel, activation: Activation | None = None) -> None:
        self._model, self._activation = model, activation
        self.rows: list[Row] = []

    def has_room(self, row: Row) -> bool:  # noqa: ARG002
        """Return True if no row is there."""
        return not self.rows

    def step(self, take: TokenTaker) -> None:
        """Answer the row."""
        for row in self.rows:
            ids = torch.tensor([row.tokens], device=self._model.device)
            config = GenerationConfig(max_new_tokens=row.max_tokens, do_sample=False, use_cache=True)
            awake = nullcontext() if self._activation is None else self._activation.over(row.tokens)
            try:
                with awake:
                    self._model.generate(
                        ids,
                        generation_config=config,
                        attention_mask=torch.ones_like(ids),
                        logits_processor=LogitsProcessorList([_Chooser(row, take)]),
                        stopping_criteria=StoppingCriteriaList([_Stopper(row)]),
                    )
            except (ValueError, TypeError, IndexError, RuntimeError) as error:
                raise EngineFailure(f"transformers failed at this model: {error}") from error


class _Chooser(LogitsProcessor):  # type: ignore[misc]
    """Draws the token, and leaves `generate` no other."""

    def __init__(self, row: Row, take: TokenTaker) -> None:
        self._row, self._take = row, take

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        token = self._take(self._row, scores[0].cpu())
        only = torch.full_like(scores, -torch.inf)
        only[0, token] = 0
        return only


class _Stopper(StoppingCriteria):  # type: ignore[misc]
    """Stops when the row has its last token."""

    def __init__(self, row: Row) -> None:
        self._row = row

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:  # noqa: ARG002
        return torch.tensor([bool(self._row.stop)], device=input_ids.device)


WIDTH = 8
_NAME = "heredity_rows"  # of the attention below, in transformers' registry
_STEADY = ("default", "linear", "llama3", "yarn")  # rotary embeddings that do not depend on the longest row
_ATTENDED = ("full_attention", "sliding_attention")
_MAX_PREFIXES = 4
_CLOSE = 0.05  # of the length of a row's logits: the rounding of another order of sums in bfloat16
_N_STEPS = 3
Attention = Callable[..., tuple[torch.Tensor, object]]


class RowCaches(DynamicCache):  # type: ignore[misc]
    """The caches of the rows of a step behind the interface of one; None for an idle row."""

    def __init__(self, caches: Sequence[DynamicCache | None]) -> None:
        super().__init__()
        self.caches = caches
        self.last: list[tuple[torch.Tensor, torch.Tensor] | None] = []  # of the layer that was updated last

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append each row's key and value to its own cache."""
        self.last = [
            None
            if cache is None
            else cache.update(key_states[at : at + 1], value_states[at : at + 1], layer_idx)
            for at, cache in enumerate(self.caches)
        ]
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the length of the longest row."""
        return max(int(cache.get_seq_length(layer_idx)) for cache in self.caches if cache is not None)


class _Attention(threading.local):
    """The model's own attention, called once for each row of the step that this thread computes."""

    caches: RowCaches | None = None
    inner = ""

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,  # noqa: ARG002 (of this step only: the caches have it)
        value: torch.Tensor,  # noqa: ARG002
        attention_mask: torch.Tensor | None,  # noqa: ARG002
        **settings: object,
    ) -> tuple[torch.Tensor, None]:
        assert self.caches is not None
        attend: Attention = (
            vars(sys.modules[type(module).__module__])["eager_attention_forward"]
            if self.inner == "eager"
            else AttentionInterface()[self.inner]
        )
        window, outputs = settings.get("sliding_window"), list[torch.Tensor | None]()
        for at, kept in enumerate(self.caches.last):
            if kept is None:
                outputs.append(None)
                continue
            keys, values = kept
            if isinstance(window, int) and keys.shape[2] > window:
                keys, values = keys[:, :, -window:], values[:, :, -window:]
            outputs.append(attend(module, query[at : at + 1], keys, values, None, **settings)[0])
        shape = next(each for each in outputs if each is not None)
        return torch.cat([torch.zeros_like(shape) if each is None else each for each in outputs]), None


_ATTENTION = _Attention()


def may_batch(model: PreTrainedModel) -> bool:
    """Return True if no layer of the model mixes the rows of a step, as far as its parts tell."""
    settings = settings_of(model.config)
    caches = DynamicCache(config=model.config).layers
    kinds = settings.get("layer_types") or ()
    names = (type(module).__name__.lower() for module in model.modules())
    return (
        bool(model._supports_attention_backend)
        and model.config._attn_implementation in ("sdpa", "eager")
        and "position_ids" in inspect.signature(model.forward).parameters
        and bool(caches)
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in caches)
        and all(kind in _ATTENDED for kind in (kinds if isinstance(kinds, list) else ()))
        and all(kind in _STEADY for kind in _rotary_kinds(settings.get("rope_parameters")))
        and not settings.get("quantization_config")
        and not any("moe" in name or "expert" in name or "router" in name for name in names)
    )


def _rotary_kinds(parameters: object) -> Iterator[str]:
    if isinstance(parameters, dict):
        if "rope_type" in parameters:
            yield str(parameters["rope_type"])
        for inner in parameters.values():
            yield from _rotary_kinds(inner)


class RowBatch:
    """Rows that draw one token each per step."""

    def __init__(
        self, model: PreTrainedModel, width: int = WIDTH, activation: Activation | None = None
    ) -> None:
        self._model, self.width, self._activation = model, width, activation
        self.rows: list[Row] = []
        self._budget = cache_budget(Device.parse(str(model.device)))
        self._caches: dict[int, DynamicCache] = {}
        self._prefixes: dict[tuple[int, ...], DynamicCache] = {}
        known = inspect.signature(model.forward).parameters
        self._short = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self._cache_name = "cache" if "cache" in known else "past_key_values"  # its name before 5.24

    def has_room(self, row: Row) -> bool:
        """Return True if the caches of all rows and of this one fit into memory, and a slot is free."""
        if not self.rows:
            return True
        n_tokens = sum(len(each.tokens) + each.max_tokens for each in (*self.rows, row))
        return len(self.rows) < self.width and n_tokens * self._bytes_per_token() <= self._budget

    def step(self, take: TokenTaker) -> None:
        """Prefill the new rows, which gives their first tokens; otherwise draw one token for every row."""
        known = {row.key for row in self.rows}
        self._caches = {key: cache for key, cache in self._caches.items() if key in known}
        if new := [row for row in self.rows if row.key not in self._caches]:
            for row in new:
                take(row, self.prefill(row))
            return
        caches = [self._caches[row.key] for row in self.rows]
        with (
            nullcontext()
            if self._activation is None
            else self._activation.rows([row.tokens for row in self.rows], self.width)
        ):
            logits = self.decode(caches, [row.output[-1] for row in self.rows])
        for at, row in enumerate(self.rows):
            take(row, logits[at])

    def prefill(self, row: Row) -> torch.Tensor:
        """Compute the cache of a row's prompt. Return the logits of its first token (vocabulary,)."""
        shared = row.tokens[: row.n_shared]
        if self._activation is None:
            return self._prefilled(row, shared)
        start = self._activation.start(row.tokens)
        if start is not None and start < len(shared):  # the adapter changes a part of it
            shared = ()
        with self._activation.over(row.tokens):
            return self._prefilled(row, shared)

    def _prefilled(self, row: Row, shared: tuple[int, ...]) -> torch.Tensor:
        cache = copy.deepcopy(self._prefix(shared)) if shared else DynamicCache(config=self._model.config)
        self._caches[row.key] = cache
        return self.run(row.tokens[len(shared) :], cache)

    def _prefix(self, tokens: tuple[int, ...]) -> DynamicCache:
        if tokens not in self._prefixes:
            if len(self._prefixes) == _MAX_PREFIXES:
                self._prefixes.pop(next(iter(self._prefixes)))
            self._prefixes[tokens] = cache = DynamicCache(config=self._model.config)
            with nullcontext() if self._activation is None else self._activation.over((), len(tokens)):
                self.run(tokens, cache)
        return self._prefixes[tokens]

    def run(self, tokens: tuple[int, ...], cache: DynamicCache) -> torch.Tensor:
        """Append tokens to a row's cache. Return the logits after them (vocabulary,)."""
        ids = torch.tensor([tokens], device=self._model.device)
        n_before = cache.get_seq_length()
        places = torch.arange(n_before, n_before + len(tokens), device=ids.device)[None]
        return self.call(ids, places, cache)[0]

    def call(self, ids: torch.Tensor, places: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """Run the model on tokens at their places (rows, tokens). Return the last logits of each row."""
        kept = {self._cache_name: cache}
        out = self._model(input_ids=ids, position_ids=places, use_cache=True, **kept, **self._short)
        logits: torch.Tensor = out.logits[:, -1].float().cpu()
        return logits

    def decode(self, caches: Sequence[DynamicCache | None], tokens: Sequence[int]) -> torch.Tensor:
        """Return the next logits of each row (width, vocabulary) after its token; each cache grows by one.

        caches: one a slot, None for an idle one; idle ones follow.
        """
        filled = [*caches, *[None] * (self.width - len(caches))]
        lengths = [0 if cache is None else cache.get_seq_length() for cache in filled]
        ids = torch.tensor([*tokens, *[0] * (self.width - len(tokens))], device=self._model.device)
        places = torch.tensor(lengths, device=ids.device)
        with self._by_rows(RowCaches(filled)) as rows:
            return self.call(ids[:, None], places[:, None], rows)

    @contextmanager
    def _by_rows(self, caches: RowCaches) -> Iterator[RowCaches]:
        """Let the model attend row by row. It then makes no mask: a row sees its whole cache."""
        config = self._model.config
        inner = config._attn_implementation
        AttentionInterface.register(_NAME, _ATTENTION)
        _ATTENTION.caches, _ATTENTION.inner = caches, inner
        config._attn_implementation = _NAME
        try:
            yield caches
        finally:
            config._attn_implementation = inner
            _ATTENTION.caches = None

    def _bytes_per_token(self) -> float:
        for cache in self._caches.values():
            n_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
            return float(n_bytes / max(1, cache.get_seq_length()))
        return 0.0


@torch.inference_mode()
def prove(model: PreTrainedModel, width: int = WIDTH) -> bool:
    """Return True if each row's logits are the same bits in any slot and any company, and are the model's."""
    if not may_batch(model):
        return False
    batch, n_tokens = RowBatch(model, width), int(model.get_input_embeddings().weight.shape[0])
    stream = torch.Generator().manual_seed(1)
    prompts = [
        tuple(torch.randint(n_tokens, (3 + 9 * at,), generator=stream).tolist()) for at in range(width)
    ]
    nexts = torch.randint(n_tokens, (_N_STEPS, width), generator=stream).tolist()
    caches = []
    for prompt in prompts:
        cache = DynamicCache(config=model.config)
        batch.run(prompt, cache)
        caches.append(cache)

    def run(slots: Sequence[int | None]) -> dict[int, torch.Tensor]:
        own = [None if at is None else copy.deepcopy(caches[at]) for at in slots]
        logits_by_step = [
            batch.decode(own, [0 if at is None else step[at] for at in slots]) for step in nexts
        ]
        logits = torch.stack(logits_by_step, 1)  # (width, steps, vocabulary)
        return {at: logits[slot] for slot, at in enumerate(slots) if at is not None}

    expected = run(range(width))
    others = [
        run(range(width - 1, -1, -1)),
        run([at if at % 2 else None for at in range(width)]),
        run([*[None] * (width - 1), 0]),
        run([width - 1]),
    ]
    if any(not torch.equal(expected[at], row) for other in others for at, row in other.items()):
        return False
    return all(_is_close(batch, copy.deepcopy(caches[at]), [step[at] for step in nexts], expected[at])
               for at in range(width))  # fmt: skip


def _is_close(batch: RowBatch, cache: DynamicCache, tokens: Sequence[int], expected: torch.Tensor) -> bool:
    """Return True if decoding this row by itself gives the same logits, up to rounding."""
    own = torch.stack([batch.run((token,), cache) for token in tokens])
    return bool(((own - expected).norm(dim=1) <= _CLOSE * own.norm(dim=1)).all())


Hook = Callable[[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]


def apply_adapter(model: PreTrainedModel, folder: Path, base: Path) -> Activation | None:
    """Add the adapter in `folder` to a loaded model, whose files are in `base`.

    Returns what wakes an activated adapter; None for another one.

    Raises Unavailable for an adapter that is more than low-rank matrices, Damaged for one that does not fit.
    """
    names = tensor_names(base)
    is_tied = bool(model.config.get_text_config().tie_word_embeddings) and HEAD not in names
    adapter = read_adapter(folder).fitted(names, is_tied, folder, model.config.model_type)
    if adapter.whole or any(low.magnitude is not None for low in adapter.low_rank.values()):
        raise _must_be_merged(folder, "it replaces tensors or is DoRA")
    activation = Activation(adapter.invocation, model.device) if adapter.invocation else None
    modules = dict(model.named_modules())
    for name, low in adapter.low_rank.items():
        module = modules.get(name)
        if module is None or isinstance(module, torch.nn.Embedding):
            raise _must_be_merged(folder, f"it adapts '{name[:80]}'")
        weight = module.get_parameter("weight")
        n_out, n_in = weight.shape[::-1] if low.is_transposed else weight.shape
        if (len(low.b), low.a.shape[1]) != (n_out, n_in):
            raise Damaged(
                f"The adapter's '{name[:80]}' has {low.a.shape[1]} inputs and {len(low.b)} outputs; its base"
                f" has {n_in} and {n_out}.",
                code="adapter-misfit",
            )
        module.register_forward_hook(_hook(low, model.dtype, model.device, activation))
    return activation


def _must_be_merged(folder: Path, why: str) -> Unavailable:
    return Unavailable(
        f"{folder}: the engine transformers does not apply this adapter as it is ({why}). Merge it first:"
        " heredity derive merge_adapter ADAPTER BASE."
    )


def _hook(
    low: LowRank, dtype: torch.dtype, device: torch.device, activation: Activation | None = None
) -> Hook:
    a, b = low.a.to(device, dtype), (low.b * low.scale).to(device, dtype)
    bias = None if low.bias is None else (low.bias * low.scale).to(device, dtype)

    def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + functional.linear(functional.linear(inputs[0], a), b, bias)

    def add_where_awake(
        _: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        assert activation is not None
        if output.ndim != 3:  # rows of experts are not those of the pass
            raise EngineFailure("an activated LoRA changes a layer whose rows are not tokens in their order")
        return activation.gate.add(
            output, lambda: functional.linear(functional.linear(inputs[0], a), b, bias)
        )

    return add if activation is None else add_where_awake


_WITNESS = 24  # tokens behind the fingerprint


class RowTuning(Record, frozen=True):
    """The result of the probe of a model on a machine."""

    numerics: str
    machine: str
    width: int


def load(
    model: Model,
    folder: Path,
    tuning: Path | None = None,
    device: Device | None = None,
    watch: Watch | None = None,
) -> TransformersEngine:
    """Load a recorded model. An adapter is applied to its base.

    tuning: None measures nothing; the engine then answers one request at a time.
    device: where it computes; None: `host.choose_device`.
    watch: gets the measuring of the width.
    """
    is_probed, where = tuning is not None, host.choose_device(device)
    if model.format != "adapter":
        return open_folder(folder, tuning, is_probed=is_probed, device=where, watch=watch)
    base = base_folder(model, folder)
    return open_folder(base, tuning, is_probed=is_probed, adapter=folder, device=where, watch=watch)


def open_folder(
    folder: Path,
    tuning: Path | None = None,
    dtype: str | None = None,
    is_probed: bool = True,
    adapter: Path | None = None,
    device: Device = CPU,
    watch: Watch | None = None,
) -> TransformersEngine:
    """Load the safetensors in a folder, with the adapter of another folder.

    tuning: a file that keeps the result of the probe.
    dtype: "float32" or "bfloat16" instead of the faster one.
    is_probed: False answers one request at a time.
    device: where it computes. watch: as of `load`.
    Raises Unavailable for a model that transformers does not load here, Damaged for missing weights.
    """
    host.keep_freed_memory()
    host.prepare_device(device)
    config = read_config(folder)
    chosen = dtype or faster_dtype(config, device)
    model = load_model(folder, config, getattr(torch, chosen), device)
    activation = None if adapter is None else apply_adapter(model, adapter, folder)
    source = folder if adapter is None or not has_tokenizer(adapter) else adapter
    engine = TransformersEngine(model, ChatCodec(source), folder, activation=activation)
    return engine.batched(_proven_width(engine, tuning, watch)) if is_probed else engine


def _proven_width(engine: TransformersEngine, path: Path | None, watch: Watch | None) -> int:
    """Return the width kept at `path` if it was found in this arithmetic, else that of a new probe."""
    numerics, machine = engine.numerics, host.machine_name()
    if path is not None and path.exists():
        with suppress(msgspec.DecodeError):  # it can be measured again
            kept = msgspec.json.decode(path.read_bytes(), type=RowTuning)
            if kept.numerics == numerics and kept.machine == machine:
                return kept.width
    with torch.inference_mode(), phase(watch, "measuring widths"):
        width = WIDTH if prove(engine.model) else 1
    if path is not None:
        new = RowTuning(numerics, machine, width)
        write_atomic(path, msgspec.json.format(msgspec.json.encode(new)))
    return width


class TransformersEngine:
    """The engine of a model of transformers: it answers and scores."""

    def __init__(
        self,
        model: PreTrainedModel,
        codec: ChatCodec,
        folder: Path,
        width: int = 1,
        activation: Activation | None = None,
    ) -> None:
        """activation: what wakes an activated adapter of the model."""
        self._model: PreTrainedModel | None = model
        self._activation = activation
        self.codec, self.folder, self.width = codec, folder, width
        self._reader = AnswerReader(codec, codec.stops(folder))
        self.context_length = context_length(model.config)
        self._has_short_head = "logits_to_keep" in inspect.signature(model.forward).parameters
        dtype = str(model.dtype).removeprefix("torch.")
        versions = f"transformers {version()} torch {torch.__version__} {dtype}"
        with torch.inference_mode():
            n_tokens = int(self.model.get_input_embeddings().weight.shape[0])
            tokens = tuple(at * 7919 % n_tokens for at in range(1, _WITNESS + 1))
            logs = self._all_changed(tokens[:-8], tokens[-8:])
            fingerprint = hashlib.sha256(logs.numpy().tobytes()).hexdigest()[:16]
        where = Device.parse(str(model.device)).suffix
        self.numerics = f"{versions} width {width} {fingerprint}{where}"
        self.name = f"{versions} {model.config.model_type} width {width} arithmetic {fingerprint}{where}"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            streamer=self, is_base=self.codec.is_base, scorer=self, check_length=self.check_length
        )

    @property
    def model(self) -> PreTrainedModel:
        """The model. Raises EngineFailure after `close`."""
        if self._model is None:
            raise EngineFailure("this engine is closed")
        return self._model

    @property
    def boundary(self) -> str:
        """The token between texts, as text: an empty context consists of it."""
        return self.codec.boundary

    def render(self, request: Request) -> str:
        return self.codec.render(request)

    def check_length(self, request: Request) -> None:
        """Raise ContextOverflow for a prompt that surely has more tokens than the context."""
        self.codec.check_length(self.render(request), self.context_length)

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        return self._session(requests, None)

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        return self._session(requests, listener)

    def _session(self, requests: Iterable[Request | None], listener: Listener | None) -> Iterator[Reply]:
        awake = self._activation
        is_joint = self.width > 1
        batch = RowBatch(self.model, self.width, awake) if is_joint else SingleBatch(self.model, awake)
        with torch.inference_mode():
            session = GenerateSession(
                batch, self.codec, self._reader, self.context_length, requests, listener
            )
            yield from session.run()

    # --- scores ---------------------------------------------------------------------------------------

    def score(self, request: Request, continuations: Sequence[str]) -> list[TokenScores]:
        """Return the natural-log probability of every token of each continuation of the prompt.

        Raises ContextOverflow.
        """
        texts = [self.codec.continuation(text) for text in continuations]
        prompt = self.codec.encode(self.render(request))
        n_needed, context = len(prompt) + max(map(len, texts)), self.context_length
        if context is not None and n_needed > context:
            raise ContextOverflow(f"{n_needed} tokens needed, {context} there")
        with torch.inference_mode():
            if all(len(text) == 1 for text in texts):
                logs = self._log_probabilities(prompt, ())
                return [_scores(logs, text) for text in texts]
            return [_scores(self._log_probabilities(prompt, text[:-1]), text) for text in texts]

    def log_probabilities(self, request: Request, output: Sequence[int]) -> torch.Tensor:
        """Return the natural-log probability of every token after the prompt and each `output[:i]`.

        (1 + output, vocabulary), float32.
        """
        with torch.inference_mode():
            return self._log_probabilities(self.codec.encode(self.render(request)), tuple(output))

    def _log_probabilities(self, prompt: tuple[int, ...], output: tuple[int, ...]) -> torch.Tensor:
        """Return log-probabilities of the next token, at the end of the prompt and after each output token.

        (1 + output, vocabulary), float32.
        """
        with nullcontext() if self._activation is None else self._activation.over(prompt, len(output)):
            return self._all_changed(prompt, output)

    def _all_changed(self, prompt: tuple[int, ...], output: tuple[int, ...]) -> torch.Tensor:
        """Return the same. An activated adapter changes every token, except where its gate is set."""
        ids = torch.tensor([prompt + output], device=self.model.device)
        n_kept = 1 + len(output)
        short = {"logits_to_keep": n_kept} if self._has_short_head else {}
        logits = self.model(ids, attention_mask=torch.ones_like(ids), use_cache=False, **short).logits[0]
        return torch.log_softmax(logits[-n_kept:].float(), dim=-1).cpu()

    def batched(self, width: int) -> TransformersEngine:
        """Return this engine with another number of rows that are decoded together."""
        return TransformersEngine(self.model, self.codec, self.folder, width, self._activation)

    def close(self) -> None:
        self._model = None
        host.trim_memory()


def _scores(logs: torch.Tensor, text: tuple[int, ...]) -> TokenScores:
    tokens = torch.tensor(text)
    is_greedy = bool((logs.argmax(dim=1) == tokens).all())
    return TokenScores(logs.gather(1, tokens[:, None])[:, 0].tolist(), is_greedy)
