"""Continuous batching: finished rows leave, waiting ones enter at once, the others stay packed in front.

Promises: the width of a step is one of the proven widths, and so is the cache length it reads; a row is never
told apart by its slot.
Leaves to others: the arithmetic (_decoder.py), text (torch.py).
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from heredity.core.errors import ContextOverflow, EngineFailure
from heredity.core.records import Decoding, Reply, Request
from heredity.engines import RequestStream, failed_reply
from heredity.engines.chat.codec import AnswerStream, parse_tool_calls
from heredity.engines.protocols import Listener
from heredity.engines.torch.decoder import BLOCK, CHUNK, Decoder, KvSlots, SharedPrefix, padded, round_up

if TYPE_CHECKING:
    from heredity.engines.torch.engine import TorchEngine


class Sampler:
    """Draws one row's tokens: greedy at temperature 0, else by inverse CDF from the row's own stream."""

    def __init__(self, decoding: Decoding, seed: int) -> None:
        self._decoding = decoding
        self._stream = np.random.Generator(np.random.PCG64(seed)) if decoding.temperature > 0 else None

    @property
    def is_greedy(self) -> bool:
        return self._stream is None

    def draw(self, logits: torch.Tensor) -> int:
        """One token from logits (vocabulary,)."""
        if self._stream is None:
            return int(logits.argmax())
        scaled = (wide := logits.to(torch.float64)) / self._decoding.temperature
        if not torch.isfinite(scaled).all():  # at a temperature next to nothing
            scaled = (wide - wide.max()) / self._decoding.temperature
        p = torch.softmax(scaled, dim=-1)
        order = None
        if self._decoding.top_p < 1:
            p, order = p.sort(descending=True, stable=True)
            before = p.cumsum(0) - p
            p = p[: max(1, int((before < self._decoding.top_p).sum()))]
        total = p.cumsum(0)
        u = self._stream.random() * float(total[-1])
        at = min(int(torch.searchsorted(total, torch.tensor(u, dtype=torch.float64), right=True)), len(p) - 1)
        return at if order is None else int(order[at])


def draw_all(logits: torch.Tensor, samplers: list[Sampler]) -> list[int]:
    """One token a row, for the first len(samplers) rows of logits (rows, vocabulary)."""
    greedy: list[int] = logits[: len(samplers)].argmax(-1).tolist()
    return [
        token if sampler.is_greedy else sampler.draw(logits[row])
        for row, (token, sampler) in enumerate(zip(greedy, samplers, strict=True))
    ]


_Key = tuple[tuple[int, ...], tuple[int, ...]]  # the prefix's tokens, and the row's own up to the chunk's end


class PrefixCache:
    """Keys and values of whole chunks, (kv heads, CHUNK, head_dim) a layer and side."""

    def __init__(self, budget: int) -> None:
        self._budget, self._size = budget, 0
        self._kept: OrderedDict[_Key, list[torch.Tensor]] = OrderedDict()

    def load(self, prefix: SharedPrefix, own: tuple[int, ...], slots: KvSlots, slot: int) -> int:
        """Copy what is known of a row's beginning into its slot; returns of how many tokens."""
        known = 0
        while known + CHUNK <= len(own) and (kept := self._kept.get((prefix.tokens, own[: known + CHUNK]))):
            for cache, part in zip((*slots.keys, *slots.values), kept, strict=True):
                cache[slot, :, known : known + CHUNK] = part
            known += CHUNK
        return known

    def keep(self, prefix: SharedPrefix, own: tuple[int, ...], slots: KvSlots, slot: int) -> None:
        """Keep what a row's prefill has made, once it is in its slot."""
        caches = (*slots.keys, *slots.values)
        # The last first, so that of a beginning its end is let go before what it stands on.
        for start in range((len(own) // CHUNK - 1) * CHUNK, -1, -CHUNK):
            key = prefix.tokens, own[: start + CHUNK]
            if key not in self._kept:
                self._kept[key] = [cache[slot, :, start : start + CHUNK].clone() for cache in caches]
                self._size += _size(self._kept[key])
            self._kept.move_to_end(key)
        while self._size > self._budget:
            self._size -= _size(self._kept.popitem(last=False)[1])


def _size(parts: list[torch.Tensor]) -> int:
    return sum(part.nbytes for part in parts)


@dataclass(slots=True)
class BatchRow:
    """One request under way. `own` is its prompt behind the prefix; `said` grows by a token a step."""

    key: int
    own: tuple[int, ...]
    max_tokens: int
    sampler: Sampler
    said: list[int] = field(default_factory=list)
    stop: str = ""

    @property
    def n_cells(self) -> int:
        """Cache positions it may come to fill, rounded up to a cell."""
        return round_up(len(self.own) + self.max_tokens, BLOCK)


class ContinuousBatch:
    """Rows over one prefix. `widths` ascending; `is_over`: whether a row's last token ended its answer."""

    def __init__(
        self,
        decoder: Decoder,
        prefix: SharedPrefix,
        widths: tuple[int, ...],
        is_over: Callable[[BatchRow], bool],
        budget: int,
        chunks: PrefixCache | None = None,
    ) -> None:
        self._decoder, self._prefix, self._widths, self._is_over = decoder, prefix, widths, is_over
        self._budget = budget  # bytes that the slots may take
        self._chunks = chunks or PrefixCache(0)
        self._slots: KvSlots | None = None
        self.rows: list[BatchRow] = []

    def has_room(self, new: BatchRow) -> bool:
        """Whether this row fits in beside those under way; a lone row always does."""
        n_cells = max(row.n_cells for row in (new, *self.rows))
        return not self.rows or len(self.rows) + 1 <= self._width_for(n_cells)

    def admit(self, row: BatchRow) -> None:
        """Prefill a row into the next slot; its last prompt token goes with a step."""
        held = self._slots.capacity if self._slots is not None else 0
        slots = self._fit(len(self.rows) + 1, max(held, round_up(padded(row.own[:-1]), BLOCK)))
        own, slot = row.own[:-1], len(self.rows)
        known = self._chunks.load(self._prefix, own, slots, slot)
        if known < len(own):
            self._decoder.prefill(self._prefix, slots, slot, own, known)
        if len(own) >= CHUNK:
            self._chunks.keep(self._prefix, own, slots, slot)
        self.rows.append(row)

    def step(self) -> list[BatchRow]:
        """One token for every row; returns those that are finished, already taken out."""
        n = len(self.rows)
        width = round_width(n, self._widths)
        tokens, lengths = torch.zeros(width, dtype=torch.long), torch.zeros(width, dtype=torch.long)
        tokens[:n] = torch.tensor([row.said[-1] if row.said else row.own[-1] for row in self.rows])
        lengths[:n] = torch.tensor([len(row.own) - 1 + len(row.said) for row in self.rows])
        slots = self._fit(n, round_up(int(lengths.max()) + 1, BLOCK))
        logits = self._decoder.step(self._prefix, slots, tokens, lengths)
        for row, token in zip(self.rows, draw_all(logits, [row.sampler for row in self.rows]), strict=True):
            row.said.append(token)
            if self._is_over(row):
                row.stop = "end"
            elif len(row.said) == row.max_tokens:
                row.stop = "length"
        return self._take_finished(slots)

    def _take_finished(self, slots: KvSlots) -> list[BatchRow]:
        finished = [row for row in self.rows if row.stop]
        for at in reversed(range(len(self.rows))):
            if self.rows[at].stop:
                last = self.rows.pop()
                if at < len(self.rows):  # the last row moves into the hole
                    slots.move(len(self.rows), at, len(last.own) + len(last.said))
                    self.rows[at] = last
        return finished

    def _width_for(self, n_cells: int) -> int:
        shape = self._decoder.shape
        a_row = (
            2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * n_cells * self._decoder.dtype.itemsize
        )
        fits = [w for w in self._widths if w * a_row <= self._budget]
        return fits[-1] if fits else self._widths[0]

    def _fit(self, n_rows: int, n_cells: int) -> KvSlots:
        """Slots for so many rows with exactly this capacity: a cache read in part is several times slower."""
        old = self._slots
        if old is not None and old.capacity == n_cells and old.width >= n_rows:
            return old
        width = max(round_width(n_rows, self._widths), old.width if old is not None else 0)
        self._slots = new = self._decoder.slots(width, n_cells)
        if old is not None:
            n_kept = min(old.capacity, n_cells)
            for was, now in zip((*old.keys, *old.values), (*new.keys, *new.values), strict=True):
                now[: len(self.rows), :, :n_kept] = was[: len(self.rows), :, :n_kept]
        return new


def round_width(n: int, widths: tuple[int, ...]) -> int:
    """The least proven width that holds n rows."""
    return next(w for w in widths if w >= n)


class Session:
    """One stream of requests on its way through an engine."""

    def __init__(
        self, engine: TorchEngine, requests: Iterable[Request | None], listener: Listener | None = None
    ) -> None:
        self._engine, self._source, self._listener = engine, RequestStream(requests), listener
        self._spoken: dict[int, AnswerStream] = {}
        self._waiting: dict[int, list[tuple[int, int, BatchRow]]] = {}  # by prefix: a heap, longest first
        self._prompts: dict[int, tuple[str, int]] = {}
        self._prefixes: dict[int, SharedPrefix] = {}
        self._n_pulled = 0

    def run(self) -> Iterator[Reply]:
        batch: ContinuousBatch | None = None
        current = 0
        while True:
            yield from self._pull()
            if batch is None or not (batch.rows or self._waiting.get(current)):
                ready = [key for key, heap in self._waiting.items() if heap]
                if not ready:
                    return self._source.refuse_idle()
                current = ready[0]
                batch = self._engine.batch(self._prefixes[current])
            heap = self._waiting.get(current, [])
            while heap and (not self._is_wanted(heap[0][2]) or batch.has_room(heap[0][2])):
                row = heapq.heappop(heap)[2]
                if self._is_wanted(row):
                    batch.admit(row)
                else:
                    yield _unwanted(row, *self._prompts.pop(row.key))
            if not batch.rows:
                continue
            finished = batch.step()
            self._tell(batch.rows)
            for row in finished:
                yield self._reply(row)

    def _is_wanted(self, row: BatchRow) -> bool:
        return self._listener is None or self._listener.is_wanted(row.key)

    def _tell(self, rows: Sequence[BatchRow]) -> None:
        """What rows have grown by, to who hears them. One that is wanted no more ends with its next token."""
        if (listener := self._listener) is None:
            return
        for row in rows:
            if listener.is_heard(row.key):
                spoken = self._spoken.setdefault(row.key, self._engine.spoken())
                if more := spoken.grow(row.said):
                    listener.hear(row.key, more)
            if not listener.is_wanted(row.key):
                row.stop = "length"

    def _pull(self) -> Iterator[Reply]:
        """Take requests until none is ready or enough are there to sort; answer those that cannot be put."""
        while sum(map(len, self._waiting.values())) < self._engine.lookahead:
            if (request := self._source.next()) is None:
                return
            failed = self._accept(request)
            if failed is not None:
                yield failed

    def _accept(self, request: Request) -> Reply | None:
        engine, prompt = self._engine, ""
        try:
            prompt = engine.render(request)
            tokens = engine.encode(prompt)
            n_needed = len(tokens) + request.decoding.max_tokens
            context = engine.decoder.shape.context
            if n_needed > context:
                raise ContextOverflow(f"context overflow: {n_needed} tokens needed, {context} there")
            if not tokens:
                raise EngineFailure("there is nothing to go on from")
        except EngineFailure as error:
            return failed_reply(request, prompt, error)
        prefix, own = engine.split(request, tokens)
        row = BatchRow(request.key, own, request.decoding.max_tokens, Sampler(request.decoding, request.seed))
        self._prefixes[id(prefix)] = prefix
        heap = self._waiting.setdefault(id(prefix), [])
        heapq.heappush(heap, (-len(own), self._n_pulled, row))
        self._n_pulled += 1
        self._prompts[request.key] = (prompt, len(tokens))
        return None

    def _reply(self, row: BatchRow) -> Reply:
        prompt, n_tokens = self._prompts.pop(row.key)
        text = self._engine.text(row)
        if self._listener is not None and self._listener.is_heard(row.key):
            spoken = self._spoken.pop(row.key, None) or self._engine.spoken()
            self._listener.hear(row.key, spoken.finish(text))
        return Reply(
            key=row.key,
            prompt=prompt,
            text=text,
            tokens=tuple(row.said),
            tool_calls=parse_tool_calls(text),
            stop="end" if row.stop == "end" else "length",
            n_prompt_tokens=n_tokens,
        )


def _unwanted(row: BatchRow, prompt: str, n_tokens: int) -> Reply:
    return Reply(row.key, prompt, "", stop="length", n_prompt_tokens=n_tokens)
