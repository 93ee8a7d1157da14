"""Rows that decode together: the linear layers see all rows, attention sees each row with its own cache.

A step always has `width` rows, idle ones included, so that every product has one shape. A prompt is prefilled
by itself, behind the prefix that all requests of the application begin with.

Promises: `prove` compares each row's logits bit by bit, in several slots and company, and with the model's
own way to decode. A model that fails is answered one request at a time (single.py). So is one whose layers
mix rows, by experts or by rotary embeddings that depend on the longest row.
"""

from __future__ import annotations

import copy
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from heredity.core.host import Device
from heredity.engines import cache_budget
from heredity.engines.transformers.loading import settings_of
from heredity.engines.transformers.session import Row, TokenTaker

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from heredity.engines.transformers.activated import Activation

WIDTH = 8
_NAME = "heredity_rows"  # of the attention below, in transformers' registry
_STEADY = ("default", "linear", "llama3", "yarn")  # rotary embeddings that do not depend on the longest row
_ATTENDED = ("full_attention", "sliding_attention")
_MOST_PREFIXES = 4
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
        window, found = settings.get("sliding_window"), list[torch.Tensor | None]()
        for at, kept in enumerate(self.caches.last):
            if kept is None:
                found.append(None)
                continue
            keys, values = kept
            if isinstance(window, int) and keys.shape[2] > window:
                keys, values = keys[:, :, -window:], values[:, :, -window:]
            found.append(attend(module, query[at : at + 1], keys, values, None, **settings)[0])
        shape = next(each for each in found if each is not None)
        return torch.cat([torch.zeros_like(shape) if each is None else each for each in found]), None


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
        with self._awake([row.tokens for row in self.rows]):
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

    def _awake(self, prompts: Sequence[tuple[int, ...]]) -> AbstractContextManager[None]:
        """Run a step of the rows with these prompts."""
        return nullcontext() if self._activation is None else self._activation.rows(prompts, self.width)

    def _prefix(self, tokens: tuple[int, ...]) -> DynamicCache:
        if tokens not in self._prefixes:
            if len(self._prefixes) == _MOST_PREFIXES:
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
        found = [batch.decode(own, [0 if at is None else step[at] for at in slots]) for step in nexts]
        logits = torch.stack(found, 1)  # (width, steps, vocabulary)
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


def _is_close(batch: RowBatch, cache: DynamicCache, tokens: Sequence[int], found: torch.Tensor) -> bool:
    """Return True if decoding this row by itself gives the same logits, up to rounding."""
    own = torch.stack([batch.run((token,), cache) for token in tokens])
    return bool(((own - found).norm(dim=1) <= _CLOSE * own.norm(dim=1)).all())
