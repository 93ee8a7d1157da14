"""A stream of requests on its way through an engine: pulled, sorted, batched, answered.

Promises: requests are pulled at every step that has room; a request that cannot be put is answered at once.
Leaves to others: the arithmetic of a step (_batch.py), and text (torch.py).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from heredity.core.errors import ContextOverflow, EngineFailure
from heredity.core.records import Reply, Request
from heredity.engines import RequestStream, failed_reply
from heredity.engines.chat import tool_calls
from heredity.engines.chat.streaming import Spoken
from heredity.engines.protocols import Listener
from heredity.engines.torch.batch import Batch, Row
from heredity.engines.torch.decoder import Prefix
from heredity.engines.torch.sampling import Sampler

if TYPE_CHECKING:
    from heredity.engines.torch.engine import Torch


class Session:
    """One stream of requests on its way through an engine."""

    def __init__(
        self, engine: Torch, requests: Iterable[Request | None], listener: Listener | None = None
    ) -> None:
        self._engine, self._source, self._listener = engine, RequestStream(requests), listener
        self._spoken: dict[int, Spoken] = {}
        self._waiting: dict[int, list[tuple[int, int, Row]]] = {}  # by prefix: a heap, longest first
        self._prompts: dict[int, tuple[str, int]] = {}
        self._prefixes: dict[int, Prefix] = {}
        self._n_pulled = 0

    def run(self) -> Iterator[Reply]:
        batch: Batch | None = None
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

    def _is_wanted(self, row: Row) -> bool:
        return self._listener is None or self._listener.is_wanted(row.key)

    def _tell(self, rows: Sequence[Row]) -> None:
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
        row = Row(request.key, own, request.decoding.max_tokens, Sampler(request.decoding, request.seed))
        self._prefixes[id(prefix)] = prefix
        heap = self._waiting.setdefault(id(prefix), [])
        heapq.heappush(heap, (-len(own), self._n_pulled, row))
        self._n_pulled += 1
        self._prompts[request.key] = (prompt, len(tokens))
        return None

    def _reply(self, row: Row) -> Reply:
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
            tool_calls=tool_calls.parse(text),
            stop="end" if row.stop == "end" else "length",
            n_prompt_tokens=n_tokens,
        )


def _unwanted(row: Row, prompt: str, n_tokens: int) -> Reply:
    return Reply(row.key, prompt, "", stop="length", n_prompt_tokens=n_tokens)
