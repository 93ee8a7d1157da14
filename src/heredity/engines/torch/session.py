"""A stream of requests on its way through the models that share a decoder: pulled, sorted, batched, answered.

Promises: a request that cannot be answered gets its reply at once, and stops no other. Rows of one prefix do
not wait until those of another have ended.
Leaves to others: the rows of a step (batch.py), prompts (prefill.py), and text (chat/codec.py).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from msgspec import UnsetType

from heredity.core import host
from heredity.core.errors import EngineFailure, HeredityError, OutOfMemory, first_line
from heredity.core.host import Device
from heredity.core.progress import Watch, phase
from heredity.core.records import Reply, Request
from heredity.engines import RequestStream, cache_budget, failed_reply
from heredity.engines.chat.codec import AnswerReader, ChatCodec, GrowingAnswer
from heredity.engines.chat.tool_calls import parse_tool_calls
from heredity.engines.protocols import AddressedRequest, Listener
from heredity.engines.torch.activated import placed
from heredity.engines.torch.batch import BatchRow, ContinuousBatch
from heredity.engines.torch.constrained import Constraints
from heredity.engines.torch.decoder import CHUNK, Decoder
from heredity.engines.torch.prefill import PrefixCache
from heredity.engines.torch.prefixes import SharedPrefix, number_of, plain
from heredity.engines.torch.sampling import Sampler

_CACHE_SHARE = 8  # the prefix cache has this part of the memory of the KV slots
_LOOKAHEAD = 4  # requests waiting to be sorted, as a multiple of the batch width
_Text = tuple[int, ...]  # the tokens of a shared prefix, without marks of adapters


class PrefixPool:
    """A decoder with its batch widths, and the prefixes that it has computed.

    Session and engine share it; neither needs the other. watch: gets the reading of shared prompts.
    """

    def __init__(
        self,
        decoder: Decoder,
        widths: tuple[int, ...],
        n_slots: tuple[int, ...] = (),
        max_draft: int = 0,
        pass_widths: tuple[int, ...] = (),
        watch: Watch | None = None,
    ) -> None:
        self._decoder: Decoder | None = decoder
        self._watch = watch
        self._max_draft = max_draft
        self.widths, self._n_slots, self.pass_widths = widths, n_slots, pass_widths
        self._prefixes: dict[tuple[int, ...], SharedPrefix] = {(): SharedPrefix((), [], [])}
        self._most_rows = widths[-1]
        self.budget = cache_budget(Device.parse(str(decoder.device)))  # bytes, for the KV slots
        self._cache = PrefixCache(self.budget // _CACHE_SHARE, is_fine=bool(pass_widths))

    @property
    def decoder(self) -> Decoder:
        """The decoder. Raises EngineFailure after `close`."""
        if self._decoder is None:
            raise EngineFailure("this engine is closed")
        return self._decoder

    @property
    def lookahead(self) -> int:
        """How many requests a session sorts at once."""
        return _LOOKAHEAD * self.widths[-1]

    def split(self, shared: tuple[int, ...], tokens: tuple[int, ...]) -> tuple[SharedPrefix, tuple[int, ...]]:
        """Return the computed prefix of a prompt, and the prompt's tokens after it (at least one).

        shared: tokens that all requests of the application begin with; computed once.
        """
        return self.split_placed(shared, placed(self.decoder, tokens))

    def split_placed(
        self, shared: tuple[int, ...], tokens: tuple[int, ...]
    ) -> tuple[SharedPrefix, tuple[int, ...]]:
        """Do the same for a prompt whose tokens are marked. A prefix is marked as a whole or not at all."""
        begun = tokens[: len(shared)]
        if len(tokens) <= len(shared) or (begun != shared and not _is_as_a_whole(begun, shared)):
            begun = ()
        if begun not in self._prefixes:
            with phase(self._watch, "reading the shared prompt"):
                self._prefixes[begun] = self.decoder.prefix(begun)
        return self._prefixes[begun], tokens[len(begun) :]

    def computed(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Return the longest computed prefix that these tokens begin with."""
        return max((each for each in self._prefixes if tokens[: len(each)] == each), key=len)

    def batch(
        self, prefix: SharedPrefix, is_over: Callable[[BatchRow], bool], portion: int = 0
    ) -> ContinuousBatch:
        """Return an empty batch over a prefix. portion: as of `ContinuousBatch`."""
        return ContinuousBatch(
            self.decoder,
            prefix,
            self.widths,
            is_over,
            self.budget,
            self._cache,
            self._n_slots,
            self._max_draft,
            self.pass_widths,
            self._most_rows,
            portion,
        )

    def retreat(self, failure: str) -> None:
        """Use less memory after a GPU ran out of it: drop cached chunks, and halve the rows in flight.

        Raises OutOfMemory if a step already has the fewest slots that are proven.
        """
        if self._most_rows <= min((*self._n_slots, *self.widths)):
            raise OutOfMemory(
                f"The GPU ran out of memory with {self._most_rows} requests in flight ({failure}). "
                "Close what else uses it, take --device cpu, or let vllm: answer (docs/how-to/models.md)."
            )
        self._most_rows //= 2
        self._cache = PrefixCache(self.budget // _CACHE_SHARE, is_fine=bool(self.pass_widths))

    def forget_adapter(self, number: int) -> None:
        """Drop all that was computed with an adapter."""
        for key in [key for key in self._prefixes if key and number_of(key[-1]) == number]:
            del self._prefixes[key]
        self._cache.drop(lambda tokens: number_of(tokens[-1]) == number)

    def drop_prefixes(self) -> None:
        """Forget the computed prefixes; the cached chunks stay."""
        self._prefixes = {(): SharedPrefix((), [], [])}

    def close(self) -> None:
        """Free the weights and the caches."""
        self._decoder = None
        self._prefixes, self._cache = {}, PrefixCache(0)


def _is_as_a_whole(begun: tuple[int, ...], shared: tuple[int, ...]) -> bool:
    """Return True if these are the shared tokens with the mark of one adapter on each."""
    return all(token < 0 for token in begun) and plain(begun) == shared


class PromptSplitter(Protocol):
    """Splits a model's prompts: a PrefixPool, or a view of one."""

    def split(self, shared: tuple[int, ...], tokens: tuple[int, ...]) -> tuple[SharedPrefix, tuple[int, ...]]:
        """Return the computed prefix of a prompt, and the prompt's tokens after it."""

    def computed(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Return the longest computed prefix that these tokens begin with."""


@dataclass(frozen=True, slots=True)
class Member:
    """A model whose requests a session answers: how its prompts and answers are read."""

    pool: PromptSplitter
    codec: ChatCodec
    reader: AnswerReader
    constraints: Constraints


class Session:
    """One stream of requests on its way through the models that share a pool.

    A request that cannot be answered gets its reply at once. Requests are pulled at every step with room.
    member_of: the model of a request. It may raise a HeredityError, which is that request's reply.
    """

    def __init__(
        self,
        pool: PrefixPool,
        member_of: Callable[[Request], Member],
        requests: Iterable[Request | None],
        listener: Listener | None = None,
    ) -> None:
        self._pool, self._member_of = pool, member_of
        self._requests, self._listener = RequestStream(requests), listener
        self._members: dict[int, Member] = {}  # of the requests that wait or are in flight
        self._streams: dict[int, GrowingAnswer] = {}
        self._waiting: dict[_Text, list[tuple[int, int, BatchRow]]] = {}  # by prefix: a heap, longest first
        self._prompts: dict[int, tuple[str, int]] = {}
        self._n_pulled = 0

    def run(self) -> Iterator[Reply]:
        """Yield the replies, in the order in which they are finished."""
        batch: ContinuousBatch | None = None
        current: _Text = ()
        while True:
            yield from self._pull()
            if batch is None or not batch.rows:
                ready = [key for key, heap in self._waiting.items() if heap]
                if not ready:
                    return self._requests.refuse_idle()
                oldest = min(ready, key=self._oldest)
                if batch is None or oldest != current:
                    current = oldest
                    batch = self._batch(self._waiting[current][0][2])
            failure = ""
            try:
                yield from self._fill(batch, current)
                finished = batch.step() if batch.rows else []
            except torch.OutOfMemoryError as error:  # of a GPU; it holds tensors until this block ends
                failure = first_line(error)
            if failure:
                self._pool.retreat(failure)
                for row in batch.rows:
                    self._wait(current, row.restarted())
                batch = None
                host.trim_memory()
                continue
            self._report(batch.rows)
            for row in finished:
                yield self._reply(row)

    def _batch(self, first: BatchRow) -> ContinuousBatch:
        """Return an empty batch for rows with the prefix of this one.

        Where answers are heard as they grow, a long prompt stops no other answer: it is read in portions.
        """
        assert first.prefix is not None
        portion = 0 if self._listener is None else CHUNK
        return self._pool.batch(first.prefix, lambda row: self._reader(row).is_over(row.output), portion)

    def _fill(self, batch: ContinuousBatch, prefix: _Text) -> Iterator[Reply]:
        """Move waiting rows into the batch; one that nobody wants gets its reply.

        A row of another prefix waits for no more than a lookahead of rows that came after it.
        """
        heap = self._waiting.get(prefix, [])
        others = (self._oldest(key) for key, rows in self._waiting.items() if rows and key != prefix)
        last = min(others, default=self._n_pulled) + self._pool.lookahead
        while heap and (not self._is_wanted(heap[0][2]) or batch.has_room(heap[0][2])):
            if batch.rows and heap[0][1] > last:
                return
            row, is_wanted = heap[0][2], self._is_wanted(heap[0][2])
            if is_wanted:
                batch.admit(row)  # before it is popped: this allocates memory
            heapq.heappop(heap)
            if not is_wanted:
                self._members.pop(row.key)
                yield _cancelled(row, *self._prompts.pop(row.key))

    def _oldest(self, prefix: _Text) -> int:
        """Return the number of the row that waits longest for this prefix."""
        return min(number for _, number, _ in self._waiting[prefix])

    def _wait(self, prefix: _Text, row: BatchRow) -> None:
        """Let a row wait for a place."""
        heapq.heappush(self._waiting.setdefault(prefix, []), (-len(row.prompt), self._n_pulled, row))
        self._n_pulled += 1

    def _reader(self, row: BatchRow) -> AnswerReader:
        return self._members[row.key].reader

    def _is_wanted(self, row: BatchRow) -> bool:
        return self._listener is None or self._listener.is_wanted(row.key)

    def _report(self, rows: Sequence[BatchRow]) -> None:
        """Report the new text of rows to the listener. A cancelled row ends with its next token."""
        if (listener := self._listener) is None:
            return
        for row in rows:
            if listener.is_heard(row.key):
                stream = self._streams.setdefault(row.key, self._reader(row).stream())
                if more := stream.grow(row.output):
                    listener.hear(row.key, more)
            if not listener.is_wanted(row.key):
                row.stop = "length"

    def _pull(self) -> Iterator[Reply]:
        """Take requests until none is ready or enough can be sorted; answer those that do not fit."""
        while sum(map(len, self._waiting.values())) < self._pool.lookahead:
            if (request := self._requests.next()) is None:
                return
            failed = self._accept(request)
            if failed is not None:
                yield failed

    def _accept(self, request: Request) -> Reply | None:
        try:
            member = self._member_of(request)
        except HeredityError as error:
            return failed_reply(request, "", error)
        found = member.codec.prompt(request, self._pool.decoder.shape.context_length)
        if isinstance(found, Reply):
            return found
        prompt, tokens = found
        prefix, rest = member.pool.split(member.codec.shared(request), tokens)
        sampler = _sampler(request, member.constraints)
        caller = request.caller if isinstance(request, AddressedRequest) else ""
        row = BatchRow(request.key, rest, request.decoding.max_tokens, sampler, prefix, caller=caller)
        self._wait(prefix.text, row)
        self._prompts[request.key], self._members[request.key] = (prompt, len(tokens)), member
        return None

    def _reply(self, row: BatchRow) -> Reply:
        prompt, n_tokens = self._prompts.pop(row.key)
        reader = self._members.pop(row.key).reader
        text = reader.text(row.output)
        if self._listener is not None and self._listener.is_heard(row.key):
            stream = self._streams.pop(row.key, None) or reader.stream()
            self._listener.hear(row.key, stream.finish(text))
        return Reply(
            key=row.key,
            prompt=prompt,
            text=text,
            tokens=tuple(row.output),
            tool_calls=parse_tool_calls(text),
            stop="end" if row.stop == "end" else "length",
            n_prompt_tokens=n_tokens,
        )


def _sampler(request: Request, constraints: Constraints) -> Sampler:
    schema = request.decoding.json_schema
    constraint = None if isinstance(schema, UnsetType) else constraints.of(schema)
    return Sampler(request.decoding, request.seed, constraint)


def _cancelled(row: BatchRow, prompt: str, n_tokens: int) -> Reply:
    return Reply(row.key, prompt, "", stop="length", n_prompt_tokens=n_tokens)
