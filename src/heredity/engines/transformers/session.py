"""One stream of requests on its way through a model of transformers.

Promises: a request that cannot be answered gets its reply at once. A token is drawn from the row's own
logits, decoding, seed and step.
Leaves to others: the logits (engine.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch

from heredity.core.records import Reply, Request
from heredity.engines import RequestStream
from heredity.engines.chat.codec import AnswerReader, ChatCodec, GrowingAnswer
from heredity.engines.chat.tool_calls import parse_tool_calls
from heredity.engines.protocols import Listener
from heredity.engines.torch.sampling import Sampler


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
                yield self._reply(row)

    def _admit(self) -> Iterator[Reply]:
        """Pull requests while there is room; answer those that cannot be asked."""
        batch = self._batch
        while len(batch.rows) < batch.width:
            if self._waiting is None:
                if (request := self._requests.next()) is None:
                    return
                found = self._accept(request)
                if isinstance(found, Reply):
                    yield found
                    continue
                self._waiting = found
            if not batch.has_room(self._waiting):
                return
            batch.rows.append(self._waiting)
            self._waiting = None

    def _accept(self, request: Request) -> Row | Reply:
        found = self._codec.prompt(request, self._context)
        if isinstance(found, Reply):
            return found
        prompt, tokens = found
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

    def _reply(self, row: Row) -> Reply:
        text = self._reader.text(row.output)
        if self._listener is not None and self._listener.is_heard(row.key):
            growing = row.growing or self._reader.stream()
            self._listener.hear(row.key, growing.finish(text))
        return Reply(
            key=row.key,
            prompt=row.prompt,
            text=text,
            tokens=tuple(row.output),
            tool_calls=parse_tool_calls(text),
            stop="end" if row.stop == "end" else "length",
            n_prompt_tokens=len(row.tokens),
        )
