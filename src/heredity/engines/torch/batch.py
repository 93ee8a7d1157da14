"""Continuous batching: requests are pulled, sorted and batched; a waiting one replaces a finished one.

Idle rows of a step verify drafts (drafts.py).

Promises: a step has one of the proven widths, numbers of slots and cache lengths. An answer does not depend
on its slot; a token is drawn from the row's own logits, decoding, seed and step.
Leaves to others: the arithmetic (decoder.py), prompts (prefill.py), and text (chat/codec.py).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from msgspec import UnsetType

from heredity.core import host
from heredity.core.errors import EngineFailure, OutOfMemory, first_line
from heredity.core.host import Device
from heredity.core.records import Reply, Request
from heredity.engines import RequestStream, cache_budget
from heredity.engines.chat.codec import AnswerReader, ChatCodec, GrowingAnswer
from heredity.engines.chat.tool_calls import parse_tool_calls
from heredity.engines.protocols import Listener
from heredity.engines.torch.activated import continued, placed, plain
from heredity.engines.torch.constrained import Constraints
from heredity.engines.torch.decoder import (
    BLOCK,
    Decoder,
    KvSlots,
    KvWrites,
    SharedPrefix,
    padded,
    round_up,
)
from heredity.engines.torch.drafts import Drafter, TextIndex, share_out
from heredity.engines.torch.prefill import Prefiller, PrefixCache
from heredity.engines.torch.sampling import Sampler

_CACHE_SHARE = 8  # the prefix cache has this part of the memory of the KV slots
_LOOKAHEAD = 4  # requests waiting to be sorted, as a multiple of the batch width


@dataclass(slots=True)
class BatchRow:
    """A request in flight. `prompt` follows the prefix, as `placed`; `output` grows by a token a step."""

    key: int
    prompt: tuple[int, ...]
    max_tokens: int
    sampler: Sampler
    output: list[int] = field(default_factory=list)
    stop: str = ""
    drafter: Drafter | None = None

    def restarted(self) -> BatchRow:
        """Return the same row before its first token; it will have the same answer."""
        return BatchRow(self.key, self.prompt, self.max_tokens, self.sampler.restarted())

    @property
    def n_known(self) -> int:
        """Own tokens whose keys and values are in its slot: all but the last one."""
        return len(self.prompt) - 1 + len(self.output)

    @property
    def n_positions(self) -> int:
        """Cache positions that it may fill, in whole blocks."""
        return round_up(len(self.prompt) + self.max_tokens, BLOCK)


class ContinuousBatch:
    """Rows over one shared prefix.

    widths: the proven batch widths, ascending. is_over: whether the last token of a row ended its answer.
    budget: bytes for the KV slots. n_slots: the proven numbers of slots of a step, next to the widths.
    max_draft: the most tokens that a row guesses for idle rows to verify; 0 for a width that is not proven.
    pass_widths: the proven widths of a packed prefill; none if each row is prefilled by itself.
    most_rows: a bound on the slots, for a GPU that ran out of memory with more; 0: none.
    """

    def __init__(
        self,
        decoder: Decoder,
        prefix: SharedPrefix,
        widths: tuple[int, ...],
        is_over: Callable[[BatchRow], bool],
        budget: int,
        chunks: PrefixCache | None = None,
        n_slots: tuple[int, ...] = (),
        max_draft: int = 0,
        pass_widths: tuple[int, ...] = (),
        most_rows: int = 0,
    ) -> None:
        self._most_rows = most_rows or max(widths)
        self._decoder, self._prefix, self._widths, self._is_over = decoder, prefix, widths, is_over
        self._max_draft = max_draft if decoder.can_draft else 0
        self._copies: dict[int, BatchRow] = {}  # slots after those of the rows, with copies of a row's cache
        self._prefix_text: TextIndex | None = None
        self._budget, self._n_slots = budget, tuple(sorted({*n_slots, *widths}))
        self._prefiller = Prefiller(decoder, prefix, chunks or PrefixCache(0), pass_widths)
        self._n_prefilled = 0  # rows; those after them wait for the next step
        self._slots: KvSlots | None = None
        self.rows: list[BatchRow] = []

    def has_room(self, new: BatchRow) -> bool:
        """Return True if this row fits next to those in flight; a single row always fits."""
        n_positions = max(row.n_positions for row in (new, *self.rows))
        return not self.rows or len(self.rows) + 1 <= self._width_for(n_positions)

    def admit(self, row: BatchRow) -> None:
        """Give a row the next slot. The next step prefills its prompt but for the last token."""
        held = self._slots.capacity if self._slots is not None else 0
        self._fit(len(self.rows) + 1, max(held, round_up(padded(row.prompt[:-1]), BLOCK)))
        self._copies.pop(len(self.rows), None)
        self.rows.append(row)

    def step(self) -> list[BatchRow]:
        """Draw one token for every row, and more where drafts are right. Remove and return finished rows."""
        self._prefill_new()
        width = round_width(len(self.rows), self._widths)
        room = self._room_for_drafts(width)
        drafts = self._propose(room - len(self.rows))
        places = self._place(drafts)
        tokens, lengths = torch.zeros(width, dtype=torch.long), torch.zeros(width, dtype=torch.long)
        for row, draft, at in zip(self.rows, drafts, places, strict=True):
            last = continued(row.prompt, row.output[-1:]) or row.prompt[-1:]
            tokens[at] = torch.tensor([*last, *continued(row.prompt, draft)])
            lengths[at] = row.n_known + torch.arange(len(at))
        n_used = 1 + max(map(max, places))
        slots = self._fit(n_used, round_up(int(lengths.max()) + 1, BLOCK))
        n_slots = round_width(n_used, self._n_slots)
        if self._copies or any(drafts):
            writes = self._writes(places, slots)
            logits = self._decoder.step(self._prefix, slots, tokens, lengths, n_slots, writes)
        else:
            logits = self._decoder.step(self._prefix, slots, tokens, lengths, n_slots)
        self._draw(logits, drafts, places)
        return self._take_finished(slots)

    def _prefill_new(self) -> None:
        if self._slots is not None:
            new = range(self._n_prefilled, len(self.rows))
            self._prefiller.fill(self._slots, {at: self.rows[at].prompt[:-1] for at in new})
        self._n_prefilled = len(self.rows)

    def _draw(self, logits: torch.Tensor, drafts: list[list[int]], places: list[list[int]]) -> None:
        """Append to each row its next token, and further ones while the drafts are right."""
        n_used = 1 + max(map(max, places))
        likeliest: list[int] = logits[:n_used].argmax(-1).tolist()
        if not all(row.sampler.is_greedy for row in self.rows):
            logits = logits[:n_used].cpu()  # once for all rows; a GPU would sum in no fixed order
        for row, draft, at in zip(self.rows, drafts, places, strict=True):
            for n_right, place in enumerate(at):
                token = likeliest[place] if row.sampler.is_greedy else row.sampler.draw(logits[place])
                row.output.append(token)
                if row.sampler.is_lost:  # first: then only the end of the answer may come next
                    row.stop = "length"
                elif self._is_over(row):
                    row.stop = "end"
                elif len(row.output) == row.max_tokens:
                    row.stop = "length"
                if row.stop or draft[n_right : n_right + 1] != [token]:
                    break
            if draft and row.drafter is not None:
                row.drafter.note(n_right)

    def _room_for_drafts(self, width: int) -> int:
        """Return how many slots a step of this width may use, those of the rows included."""
        room = len(self.rows)
        if self._max_draft:
            room = max(room, min(width, self._width_for(max(row.n_positions for row in self.rows))))
        self._copies = {slot: row for slot, row in self._copies.items() if slot < room}
        return room

    def _propose(self, n_idle: int) -> list[list[int]]:
        """Return each row's draft, together at most n_idle tokens. None makes the caches longer.

        In float32 the bits of a row of some 600 tokens were found to depend on the length of its cache.
        """
        if not n_idle:
            return [[] for _ in self.rows]
        if self._prefix_text is None:
            self._prefix_text = TextIndex(self._prefix.tokens)
        found, capacity = [], round_up(max(row.n_known for row in self.rows) + 1, BLOCK)
        for row in self.rows:
            row.drafter = row.drafter or Drafter(plain(row.prompt), self._prefix_text)
            n_left = min(row.max_tokens - len(row.output), capacity - row.n_known) - 1
            found.append(row.drafter.propose(row.output, min(n_left, self._max_draft)))
        given = share_out([len(draft) for draft in found], n_idle)
        return [draft[:n] for draft, n in zip(found, given, strict=True)]

    def _place(self, drafts: list[list[int]]) -> list[list[int]]:
        """Return each row's slots in this step: its own, then one per draft, preferably a copy of its own.

        A copy far behind, from when there were more rows, is not used: a step reads all slots up to its last.
        """
        places = [[at] for at in range(len(self.rows))]
        if not any(drafts):
            return places
        within = round_width(len(self.rows) + sum(map(len, drafts)), self._n_slots)
        taken = set(range(len(self.rows)))
        for at, row, draft in zip(places, self.rows, drafts, strict=True):
            at.extend([slot for slot in self._copies_of(row) if slot < within][: len(draft)])
            taken.update(at)
        free = sorted(set(range(within)) - taken, key=lambda slot: (slot in self._copies, slot), reverse=True)
        for at, draft in zip(places, drafts, strict=True):
            at.extend(free.pop() for _ in range(len(draft) + 1 - len(at)))
        return places

    def _copies_of(self, row: BatchRow) -> list[int]:
        return [slot for slot, owner in self._copies.items() if owner is row]

    def _writes(self, places: list[list[int]], slots: KvSlots) -> KvWrites:
        """Copy a row's cache to its new places. Return the writes that keep all its copies equal."""
        for at, row in zip(places, self.rows, strict=True):
            for slot in at[1:]:
                if self._copies.get(slot) is not row:
                    slots.move(at[0], slot, row.n_known)
                    self._copies[slot] = row
        found = [
            (source, slot, row.n_known + n)
            for at, row in zip(places, self.rows, strict=True)
            for slot in (at[0], *self._copies_of(row))
            for n, source in enumerate(at)
        ]
        return KvWrites(*torch.tensor(found).unbind(1))

    def _take_finished(self, slots: KvSlots) -> list[BatchRow]:
        finished = [row for row in self.rows if row.stop]
        for at in reversed(range(len(self.rows))):
            if self.rows[at].stop:
                last = self.rows.pop()
                if at < len(self.rows):  # the last row fills the gap
                    slots.move(len(self.rows), at, len(last.prompt) + len(last.output))
                    self.rows[at] = last
        self._copies = {at: row for at, row in self._copies.items() if not row.stop}
        self._n_prefilled = len(self.rows)
        return finished

    def _width_for(self, n_positions: int) -> int:
        shape = self._decoder.shape
        a_position = 2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * self._decoder.dtype.itemsize
        most = min(self._most_rows, self._budget // (n_positions * a_position))
        fits = [n for n in self._n_slots if n <= most]
        return fits[-1] if fits else self._n_slots[0]

    def _fit(self, n_rows: int, n_positions: int) -> KvSlots:
        """Return slots with exactly this capacity: reading a part of a cache is several times slower.

        The slots become fewer when more than half are empty, or when longer rows would exceed the budget.
        """
        slots, width = self._slots, round_width(n_rows, self._n_slots)
        if slots is None:
            self._slots = slots = self._decoder.slots(width, n_positions)
        elif slots.capacity != n_positions or slots.width < n_rows:
            if 2 * n_rows > slots.width:
                width = max(width, min(slots.width, self._width_for(n_positions)))
            slots.resize(width, n_positions, min(width, slots.width) if self._copies else len(self.rows))
            self._copies = {slot: row for slot, row in self._copies.items() if slot < width}
        return slots


def round_width(n: int, widths: tuple[int, ...]) -> int:
    """Return the smallest proven width that holds n rows."""
    return next(w for w in widths if w >= n)


class PrefixPool:
    """A decoder with its batch widths, and the prefixes that it has computed.

    Session and engine share it; neither needs the other.
    """

    def __init__(
        self,
        decoder: Decoder,
        widths: tuple[int, ...],
        n_slots: tuple[int, ...] = (),
        max_draft: int = 0,
        pass_widths: tuple[int, ...] = (),
    ) -> None:
        self._decoder: Decoder | None = decoder
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
        tokens = placed(self.decoder, tokens)
        if len(tokens) <= len(shared) or tokens[: len(shared)] != shared:
            shared = ()
        if shared not in self._prefixes:
            self._prefixes[shared] = self.decoder.prefix(shared)
        return self._prefixes[shared], tokens[len(shared) :]

    def computed(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Return the longest computed prefix that these tokens begin with."""
        return max((each for each in self._prefixes if tokens[: len(each)] == each), key=len)

    def batch(self, prefix: SharedPrefix, is_over: Callable[[BatchRow], bool]) -> ContinuousBatch:
        """Return an empty batch over a prefix."""
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
        )

    def retreat(self, failure: str) -> None:
        """Use less memory after a GPU ran out of it: drop cached chunks, and halve the rows in flight.

        Raises OutOfMemory if a step already has the fewest slots that are proven.
        """
        if self._most_rows <= min((*self._n_slots, *self.widths)):
            raise OutOfMemory(
                f"The GPU ran out of memory with {self._most_rows} requests in flight ({failure}). "
                "Close what else uses it, take --device cpu, or let vllm: answer (docs/how-to/targets.md)."
            )
        self._most_rows //= 2
        self._cache = PrefixCache(self.budget // _CACHE_SHARE, is_fine=bool(self.pass_widths))

    def drop_prefixes(self) -> None:
        """Forget the computed prefixes; the cached chunks stay."""
        self._prefixes = {(): SharedPrefix((), [], [])}

    def close(self) -> None:
        """Free the weights and the caches."""
        self._decoder = None
        self._prefixes, self._cache = {}, PrefixCache(0)


class Session:
    """One stream of requests on its way through a model.

    A request that cannot be answered gets its reply at once. Requests are pulled at every step with room.
    """

    def __init__(
        self,
        pool: PrefixPool,
        codec: ChatCodec,
        reader: AnswerReader,
        constraints: Constraints,
        requests: Iterable[Request | None],
        listener: Listener | None = None,
    ) -> None:
        self._pool, self._codec, self._reader, self._constraints = pool, codec, reader, constraints
        self._requests, self._listener = RequestStream(requests), listener
        self._streams: dict[int, GrowingAnswer] = {}
        self._waiting: dict[int, list[tuple[int, int, BatchRow]]] = {}  # by prefix: a heap, longest first
        self._prompts: dict[int, tuple[str, int]] = {}
        self._prefixes: dict[int, SharedPrefix] = {}
        self._n_pulled = 0

    def run(self) -> Iterator[Reply]:
        """Yield the replies, in the order in which they are finished."""
        batch: ContinuousBatch | None = None
        current = 0
        while True:
            yield from self._pull()
            if batch is None or not batch.rows:
                ready = [key for key, heap in self._waiting.items() if heap]
                if not ready:
                    return self._requests.refuse_idle()
                oldest = min(ready, key=self._oldest)
                if batch is None or oldest != current:
                    current = oldest
                    batch = self._pool.batch(
                        self._prefixes[current], lambda row: self._reader.is_over(row.output)
                    )
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

    def _fill(self, batch: ContinuousBatch, prefix: int) -> Iterator[Reply]:
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
                yield _cancelled(row, *self._prompts.pop(row.key))

    def _oldest(self, prefix: int) -> int:
        """Return the number of the row that waits longest for this prefix."""
        return min(number for _, number, _ in self._waiting[prefix])

    def _wait(self, prefix: int, row: BatchRow) -> None:
        """Let a row wait for a place."""
        heapq.heappush(self._waiting.setdefault(prefix, []), (-len(row.prompt), self._n_pulled, row))
        self._n_pulled += 1

    def _is_wanted(self, row: BatchRow) -> bool:
        return self._listener is None or self._listener.is_wanted(row.key)

    def _report(self, rows: Sequence[BatchRow]) -> None:
        """Report the new text of rows to the listener. A cancelled row ends with its next token."""
        if (listener := self._listener) is None:
            return
        for row in rows:
            if listener.is_heard(row.key):
                stream = self._streams.setdefault(row.key, self._reader.stream())
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
        found = self._codec.prompt(request, self._pool.decoder.shape.context_length)
        if isinstance(found, Reply):
            return found
        prompt, tokens = found
        prefix, rest = self._pool.split(self._codec.shared(request), tokens)
        row = BatchRow(request.key, rest, request.decoding.max_tokens, self._sampler(request))
        self._prefixes[id(prefix)] = prefix
        self._wait(id(prefix), row)
        self._prompts[request.key] = (prompt, len(tokens))
        return None

    def _sampler(self, request: Request) -> Sampler:
        schema = request.decoding.json_schema
        constraint = None if isinstance(schema, UnsetType) else self._constraints.of(schema)
        return Sampler(request.decoding, request.seed, constraint)

    def _reply(self, row: BatchRow) -> Reply:
        prompt, n_tokens = self._prompts.pop(row.key)
        text = self._reader.text(row.output)
        if self._listener is not None and self._listener.is_heard(row.key):
            stream = self._streams.pop(row.key, None) or self._reader.stream()
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


def _cancelled(row: BatchRow, prompt: str, n_tokens: int) -> Reply:
    return Reply(row.key, prompt, "", stop="length", n_prompt_tokens=n_tokens)
