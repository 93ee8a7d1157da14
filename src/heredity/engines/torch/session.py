"""A stream of requests on its way through the models that share a decoder: pulled, sorted, batched, answered.

Batching is continuous: a step draws a token for every row, and a finished row makes room for another. Idle
rows of a step verify drafts.

Promises: a request that cannot be answered gets its reply at once, and stops no other. Rows of one prefix do
not wait until those of another have ended. A step has one of the proven widths, numbers of slots and cache
lengths. An answer does not depend on its slot; a token is drawn from the row's own logits, decoding, seed and
step.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import torch
from msgspec import UnsetType

from heredity.core import host
from heredity.core.errors import EngineFailure, HeredityError, OutOfMemory, first_line
from heredity.core.host import Device
from heredity.core.progress import Watch, phase
from heredity.core.records import Reply, Request
from heredity.engines import AddressedRequest, Listener, RequestStream, cache_budget, failed_reply
from heredity.engines.chat import AnswerReader, ChatCodec, GrowingAnswer, parse_tool_calls
from heredity.engines.torch.decoder import (
    CHUNK,
    PAD,
    Decoder,
    KvSlots,
    KvWrites,
    Pass,
    ResidualHook,
    Segment,
    SharedPrefix,
    VariedPrefix,
    continued,
    key_length,
    marked,
    number_of,
    padded,
    plain,
)
from heredity.engines.torch.sampling import Constraints, Sampler
from heredity.formats.weights import Weights, find_last


class ActivatedDecoder(Decoder):
    """A decoder whose adapter changes the marked tokens of a pass."""

    def _forward(self, new: Pass) -> torch.Tensor:
        is_marked = new.tokens < 0
        assert self.weights.gate is not None
        with self.weights.gate.only(is_marked):
            return super()._forward(new._replace(tokens=torch.where(is_marked, ~new.tokens, new.tokens)))

    def _like(self, weights: Weights, hook: ResidualHook | None) -> Decoder:
        return ActivatedDecoder(weights, self.dtype, hook)


def activated(decoder: Decoder) -> Decoder:
    """Return a decoder that heeds the invocation of its adapter, if it has an activated one.

    Before, it changes every row, which is how it is probed.
    """
    weights = decoder.weights
    return decoder if weights.gate is None else ActivatedDecoder(weights, decoder.dtype)


def placed(decoder: Decoder, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """Return a whole prompt with the tokens marked on which an activated adapter of the decoder acts."""
    invocation = decoder.weights.invocation
    return marked_from(prompt, invocation, 1) if invocation else prompt


def marked_from(prompt: tuple[int, ...], invocation: tuple[int, ...], number: int) -> tuple[int, ...]:
    """Return a prompt with its tokens marked from the last occurrence of an adapter's invocation on."""
    start = find_last(prompt, invocation)
    return prompt if start is None else (*prompt[:start], *marked(prompt[start:], number))


MAX_DRAFT = 7  # tokens per row and step; more were hardly ever all right
_FIRST = 3  # tokens guessed before a row has shown how predictable it is


class TextIndex:
    """A growing text, with the place after the latest occurrence of each pair of tokens."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        self._after: dict[tuple[int, int], int] = {}
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        text = self.tokens
        for token in tokens:
            if len(text) >= 2:
                self._after[text[-2], text[-1]] = len(text)
            text.append(token)

    def continuation(self, pair: tuple[int, int], n: int) -> list[int]:
        """Return up to n tokens that followed the latest occurrence of a pair; [] if it has none.

        At the end of the text they go on with themselves, as in a loop.
        """
        if (start := self._after.get(pair)) is None:
            return []
        following = self.tokens[start : start + n]
        while len(following) < n:
            following.append(following[len(following) - (len(self.tokens) - start)])
        return following


class Drafter:
    """Guesses the next tokens of one row: from its prompt and output, else from the shared prefix."""

    def __init__(self, prompt: Sequence[int], shared: TextIndex) -> None:
        self._own, self._shared, self._n_prompt = TextIndex(prompt), shared, len(prompt)
        self._n_trusted = _FIRST

    def propose(self, output: Sequence[int], n: int) -> list[int]:
        """Return at most n tokens that may follow the output."""
        text = self._own
        text.extend(output[len(text.tokens) - self._n_prompt :])
        n = min(n, self._n_trusted)
        if n <= 0 or len(text.tokens) < 2:
            return []
        pair = text.tokens[-2], text.tokens[-1]
        return text.continuation(pair, n) or self._shared.continuation(pair, n)

    def note(self, n_right: int) -> None:
        """Learn how many guesses of the last proposal were right."""
        self._n_trusted = min(MAX_DRAFT, 2 * n_right + 1)


def share_out(wanted: Sequence[int], n_idle: int) -> list[int]:
    """Return how many idle rows each row gets: one more each, round by round, until none is left."""
    given = [0] * len(wanted)
    open_rows = [at for at, n in enumerate(wanted) if n > 0]
    while n_idle > 0 and open_rows:
        for at in open_rows[:n_idle]:
            given[at] += 1
        n_idle -= len(open_rows)
        open_rows = [at for at in open_rows if given[at] < wanted[at]]
    return given


_Group = tuple[str, tuple[int, ...]]  # who sends the prompts, and the tokens of the shared prefix
_Key = tuple[_Group, tuple[int, ...]]  # with the tokens of the prompt up to the end of the part


class PrefixCache:
    """Keys and values of parts of prompts: (kv heads, tokens, head_dim) per layer and side.

    A part ends at a whole chunk or, if `is_fine`, also at the last multiple of PAD in a prompt. If `is_fine`,
    another prompt that begins with some of a part copies that, up to a multiple of PAD.
    caller: prompts of one caller share nothing with those of another. The shared prefix belongs to all.
    budget: bytes; the parts that were unused for longest are dropped first.
    """

    def __init__(self, budget: int, is_fine: bool = False) -> None:
        self._budget, self._size = budget, 0
        self._grain = PAD if is_fine else CHUNK
        self._kept: OrderedDict[_Key, list[torch.Tensor]] = OrderedDict()
        self._ordered: dict[_Group, list[tuple[int, ...]]] = {}  # the prompts of the keys

    def n_cached(self, prefix: SharedPrefix, prompt: tuple[int, ...], caller: str = "") -> int:
        """Return how many tokens of a prompt, from its beginning, are cached."""
        return max((end for _, end in self._chain((caller, prefix.tokens), prompt)), default=0)

    def load(
        self, prefix: SharedPrefix, prompt: tuple[int, ...], slots: KvSlots, slot: int, caller: str = ""
    ) -> int:
        """Copy the cached beginning of a prompt into a slot; return its number of tokens."""
        start = 0
        for key, end in self._chain((caller, prefix.tokens), prompt):
            for cache, part in zip((*slots.keys, *slots.values), self._kept[key], strict=True):
                cache[slot, :, start:end] = part[:, : end - start]
            start = end
        return start

    def keep(
        self, prefix: SharedPrefix, prompt: tuple[int, ...], slots: KvSlots, slot: int, caller: str = ""
    ) -> None:
        """Cache the parts that a prefill has written into a slot."""
        group = caller, prefix.tokens
        chain = self._chain(group, prompt)
        whole = [key for key, end in chain if end == len(key[1])]
        for key, _ in chain[len(whole) :]:  # some of its tokens were copied
            self._kept.move_to_end(key)
        start = len(whole[-1][1]) if whole else 0
        n = len(prompt)
        chunks = list(range(CHUNK, n + 1, CHUNK))
        last = n // self._grain * self._grain
        ends = [end for end in ([*chunks, last] if last % CHUNK else chunks) if end > start]
        # The last part first, so that it is dropped before the parts that it depends on.
        for first, end in reversed(list(itertools.pairwise([start, *ends]))):
            self._put((group, prompt[:end]), first, slots, slot)
        for key in reversed(whole):
            self._kept.move_to_end(key)
        while self._size > self._budget:
            self._remove(next(iter(self._kept)))

    def drop(self, is_gone: Callable[[tuple[int, ...]], bool]) -> None:
        """Drop the parts of prompts of which `is_gone` holds. It gets a prompt up to the end of its part."""
        for key in [key for key in self._kept if is_gone(key[1])]:
            self._remove(key)

    def n_shared(self, a: tuple[int, ...], b: tuple[int, ...]) -> int:
        """Return how many tokens a prompt can copy from another one that is cached."""
        grain = self._grain
        n = min(len(a), len(b)) // grain
        return grain * bisect_left(range(1, n + 1), True, key=lambda i: a[: i * grain] != b[: i * grain])

    def _put(self, key: _Key, start: int, slots: KvSlots, slot: int) -> None:
        group, prompt = key
        held = self._kept.get(key)
        if held is None or held[0].shape[1] != len(prompt) - start:
            # first, since memory may run out
            parts = [cache[slot, :, start : len(prompt)].clone() for cache in (*slots.keys, *slots.values)]
            if held is None:
                insort(self._ordered.setdefault(group, []), prompt)
            self._kept[key] = parts
            self._size += _size(parts) - _size(held or [])
        self._kept.move_to_end(key)

    def _remove(self, key: _Key) -> None:
        group, prompt = key
        self._size -= _size(self._kept.pop(key))
        ordered = self._ordered[group]
        del ordered[bisect_left(ordered, prompt)]
        if not ordered:
            del self._ordered[group]

    def _chain(self, group: _Group, prompt: tuple[int, ...]) -> list[tuple[_Key, int]]:
        """Return the parts that hold a prompt's longest cached beginning, each with its end there.

        The prompt that shares most with it is next to it in the order of their tokens.
        """
        while ordered := self._ordered.get(group):
            at = bisect_right(ordered, prompt)
            near = ordered[max(at - 1, 0) : at + 1]
            n_shared, nearest = max((self.n_shared(kept, prompt), kept) for kept in near)
            if not n_shared:
                break
            key, start = (group, nearest), len(nearest)
            chain: list[tuple[_Key, int]] = []
            while start and (held := self._kept.get((group, nearest[:start]))):
                end, start = start, start - held[0].shape[1]
                if start < n_shared:
                    chain.insert(0, ((group, nearest[:end]), min(end, n_shared)))
            if not start:
                return chain
            self._remove(key)  # what it follows was dropped
        return []


def _size(parts: list[torch.Tensor]) -> int:
    return sum(part.nbytes for part in parts)


class Prefiller:
    """Writes the keys and values of prompts over one shared prefix.

    pass_widths: the proven widths of a packed pass, ascending; none if each row is prefilled by itself.
    """

    def __init__(
        self, decoder: Decoder, prefix: SharedPrefix, cache: PrefixCache, pass_widths: tuple[int, ...]
    ) -> None:
        self._decoder, self._prefix, self._cache = decoder, prefix, cache
        self._widths = pass_widths if decoder.can_pack else ()
        self._callers: Mapping[int, str] = {}

    def n_cached(self, prefix: SharedPrefix, prompt: tuple[int, ...], caller: str = "") -> int:
        """Return how many tokens of a prompt, from its beginning, need not be computed."""
        return self._cache.n_cached(prefix, prompt, caller)

    def fill(
        self,
        slots: KvSlots,
        prompts: Mapping[int, tuple[int, ...]],
        prefix: SharedPrefix | None = None,
        n_read: Mapping[int, int] = MappingProxyType({}),
        callers: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """Write the prompt of each slot. prefix: of these rows, which may differ by slot.

        n_read: the tokens of a prompt that are in its slot already: whole chunks, but not all; 0 for none.
        callers: of the prompts, as of PrefixCache; "" for none.
        """
        self._callers = callers
        self._prefix = prefix or self._prefix
        waiting = {slot: prompt for slot, prompt in prompts.items() if prompt}
        while waiting:
            now = self._apart(waiting) if self._widths else dict([next(iter(waiting.items()))])
            n_cached = {
                slot: n_read.get(slot)
                or self._cache.load(self._at(slot), now[slot], slots, slot, self._caller(slot))
                for slot in now
            }
            new = {slot: prompt for slot, prompt in now.items() if n_cached[slot] < len(prompt)}
            self._compute(slots, new, n_cached)
            for slot, prompt in now.items():
                self._cache.keep(self._at(slot), prompt, slots, slot, self._caller(slot))
                del waiting[slot]

    def _at(self, slot: int) -> SharedPrefix:
        return self._prefix.at(slot)

    def _caller(self, slot: int) -> str:
        return self._callers.get(slot, "")

    def _compute(
        self, slots: KvSlots, prompts: Mapping[int, tuple[int, ...]], n_cached: Mapping[int, int]
    ) -> None:
        """Compute what is not cached of the prompts."""
        if not self._widths:
            for slot, prompt in prompts.items():
                self._decoder.prefill(self._at(slot), slots, slot, prompt, n_cached[slot], is_read=False)
            return
        segments = []
        for slot, prompt in prompts.items():
            filled = prompt + (0,) * (padded(prompt) - len(prompt))
            segments.append(Segment(slot, n_cached[slot], filled[n_cached[slot] :]))
        for together in packed(segments, self._widths[-1]):
            n = sum(len(segment.tokens) for segment in together)
            width = next(width for width in self._widths if width >= n)
            self._decoder.prefill_packed(self._prefix, slots, together, width)

    def _apart(self, waiting: Mapping[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
        """Return the prompts but those that can copy more from one before them, once it is cached."""
        all_begun: dict[str, list[tuple[int, ...]]] = {}  # by caller, in the order of their tokens
        apart = {}
        for slot, prompt in waiting.items():
            begun = all_begun.setdefault(self._caller(slot), [])
            at = bisect_right(begun, prompt)
            near = (self._cache.n_shared(other, prompt) for other in begun[max(at - 1, 0) : at + 1])
            if max(near, default=0) <= self._cache.n_cached(self._at(slot), prompt, self._caller(slot)):
                apart[slot] = prompt
                begun.insert(at, prompt)
        return apart


def packed(segments: Iterable[Segment], width: int) -> list[list[Segment]]:
    """Return passes of at most `width` tokens: full ones of long segments, then the rest together."""
    passes: list[list[Segment]] = []
    rest: list[Segment] = []
    for slot, start, tokens in segments:
        while len(tokens) > width:
            passes.append([Segment(slot, start, tokens[:width])])
            start, tokens = start + width, tokens[width:]
        rest.append(Segment(slot, start, tokens))
    room: list[int] = []  # in each pass of the rest, which come after all whole parts
    together: list[list[Segment]] = []
    for segment in sorted(rest, key=lambda segment: -len(segment.tokens)):
        n = len(segment.tokens)
        at = next((at for at, left in enumerate(room) if left >= n), len(room))
        if at == len(room):
            room.append(width)
            together.append([])
        room[at] -= n
        together[at].append(segment)
    return passes + together


_WIDTH_OF_DRAFTS = 4  # a narrower step takes hardly less time per row of a draft that is right


@dataclass(slots=True)
class BatchRow:
    """A request in flight. `prompt` follows the prefix, with its marks; `output` grows by a token a step.

    prefix: that of its adapter, with the text of the batch's; None: the batch's.
    n_read: tokens of the prompt whose keys and values are in its slot.
    caller: as of PrefixCache.
    """

    key: int
    prompt: tuple[int, ...]
    max_tokens: int
    sampler: Sampler
    prefix: SharedPrefix | None = None
    output: list[int] = field(default_factory=list)
    stop: str = ""
    drafter: Drafter | None = None
    n_read: int = 0
    caller: str = ""

    def restarted(self) -> BatchRow:
        """Return the same row before its first token; it will have the same answer."""
        sampler = self.sampler.restarted()
        return BatchRow(self.key, self.prompt, self.max_tokens, sampler, self.prefix, caller=self.caller)

    @property
    def n_cached(self) -> int:
        """Own tokens whose keys and values are in its slot: all but the last one."""
        return len(self.prompt) - 1 + len(self.output)

    @property
    def n_positions(self) -> int:
        """Cache positions that it may fill, as many as a cache may have."""
        return key_length(len(self.prompt) + self.max_tokens)


class ContinuousBatch:
    """Rows over one shared prefix, which may differ by the adapters of the rows.

    widths: the proven batch widths, ascending. is_over: whether the last token of a row ended its answer.
    budget: bytes for the KV slots. n_slots: the proven numbers of slots of a step, next to the widths.
    max_draft: the most tokens that a row guesses for idle rows to verify; 0 for a width that is not proven.
    pass_widths: the proven widths of a packed prefill; none if each row is prefilled by itself.
    most_rows: a bound on the slots, for a GPU that ran out of memory with more; 0: none.
    portion: the most tokens of a long prompt that are read between two steps, at least CHUNK; 0: all.
    Rows that wait for their prompts come last. Only the first of them is begun.
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
        portion: int = 0,
    ) -> None:
        self._most_rows = most_rows or max(widths)
        self._decoder, self._prefix, self._widths, self._is_over = decoder, prefix, widths, is_over
        self._max_draft = max_draft if decoder.can_draft else 0
        self._copies: dict[int, BatchRow] = {}  # slots after those of the rows, with copies of a row's cache
        self._prefix_text: TextIndex | None = None
        self._budget, self._n_slots = budget, tuple(sorted({*n_slots, *widths}))
        self._prefiller = Prefiller(decoder, prefix, chunks or PrefixCache(0), pass_widths)
        self._portion = portion
        self._n_prefilled = 0  # rows; those after them wait
        self._slots: KvSlots | None = None
        self.rows: list[BatchRow] = []

    def has_room(self, new: BatchRow) -> bool:
        """Return True if this row fits next to those in flight; a single row always fits."""
        n_positions = max(row.n_positions for row in (new, *self.rows))
        return not self.rows or len(self.rows) + 1 <= self._width_for(n_positions)

    def admit(self, row: BatchRow) -> None:
        """Give a row the next slot. The next step prefills its prompt but for the last token."""
        held = self._slots.capacity if self._slots is not None else 0
        self._fit(len(self.rows) + 1, max(held, key_length(padded(row.prompt[:-1]))))
        self._copies.pop(len(self.rows), None)
        self.rows.append(row)

    def step(self) -> list[BatchRow]:
        """Draw one token for every row, and more where drafts are right. Remove and return finished rows.

        A row whose prompt is not read as a whole waits.
        """
        self._prefill_new()
        rows = self.rows[: self._n_prefilled]
        drafts = self._propose(rows)
        places = self._place(rows, drafts)
        n_used = 1 + max(map(max, places))
        width = round_width(n_used, self._widths)
        tokens, lengths = torch.zeros(width, dtype=torch.long), torch.zeros(width, dtype=torch.long)
        for row, draft, at in zip(rows, drafts, places, strict=True):
            last = continued(row.prompt, row.output[-1:]) or row.prompt[-1:]
            tokens[at] = torch.tensor([*last, *continued(row.prompt, draft)])
            lengths[at] = row.n_cached + torch.arange(len(at))
        n_positions = max(
            [int(lengths.max()) + 1, *(padded(row.prompt[:-1]) for row in self.rows[len(rows) :])]
        )
        slots = self._fit(max(n_used, len(self.rows)), key_length(n_positions))
        n_slots = round_width(n_used, self._n_slots)
        prefix = self._prefix_of(rows, places)
        waits = len(rows) < len(self.rows)  # its slot may be read in the step, but not written
        if self._copies or any(drafts) or waits:
            writes = self._writes(rows, places, slots)
            logits = self._decoder.step(prefix, slots, tokens, lengths, n_slots, writes)
        else:
            logits = self._decoder.step(prefix, slots, tokens, lengths, n_slots)
        self._draw(rows, logits, drafts, places)
        return self._take_finished(slots)

    def _prefill_new(self) -> None:
        """Read the prompts of new rows, at least that of one row if none is in flight."""
        assert self._slots is not None
        prefix = self._prefix_of(self.rows, [[at] for at in range(len(self.rows))])
        while self._n_prefilled < len(self.rows):
            n_read = {at: self.rows[at].n_read for at in range(self._n_prefilled, len(self.rows))}
            now = self._portion_of(prefix)
            callers = {at: self.rows[at].caller for at in now}
            self._prefiller.fill(self._slots, now, prefix, n_read, callers)
            for at, part in now.items():
                self.rows[at].n_read = len(part)
                self._n_prefilled += len(part) == len(self.rows[at].prompt) - 1
            if self._portion and self._n_prefilled:
                return

    def _portion_of(self, prefix: SharedPrefix) -> dict[int, tuple[int, ...]]:
        """Return the prompts to read now, without last tokens: those before a long one, or a part of it."""
        prompts = dict[int, tuple[int, ...]]()
        for at, row in enumerate(self.rows[self._n_prefilled :], self._n_prefilled):
            prompt = row.prompt[:-1]
            if self._portion:
                n_cached = row.n_read or self._prefiller.n_cached(prefix.at(at), prompt, row.caller)
                if len(prompt) - n_cached > self._portion:
                    return prompts or {at: prompt[: (n_cached + self._portion) // CHUNK * CHUNK]}
            prompts[at] = prompt
        return prompts

    def _prefix_of(self, rows: list[BatchRow], places: list[list[int]]) -> SharedPrefix:
        """Return the prefix of the rows at these slots: one of all, or that of each slot."""
        first = rows[0].prefix
        if all(row.prefix is first for row in rows):
            return first or self._prefix
        by_slot = {
            slot: row.prefix or self._prefix for row, at in zip(rows, places, strict=True) for slot in at
        }
        return VariedPrefix(by_slot, self._widths, self._decoder.device)

    def _draw(
        self, rows: list[BatchRow], logits: torch.Tensor, drafts: list[list[int]], places: list[list[int]]
    ) -> None:
        """Append to each row its next token, and further ones while the drafts are right."""
        n_used = 1 + max(map(max, places))
        likeliest: list[int] = logits[:n_used].argmax(-1).tolist()
        if not all(row.sampler.is_greedy for row in rows):
            logits = logits[:n_used].cpu()  # once for all rows; a GPU would sum in no fixed order
        for row, draft, at in zip(rows, drafts, places, strict=True):
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

    def _propose(self, rows: list[BatchRow]) -> list[list[int]]:
        """Return each row's draft, together as many tokens as there is room. None makes the caches longer.

        In float32 the bits of a row of some 600 tokens were found to depend on the length of its cache.
        """
        room = self._n_prefilled
        if self._max_draft and room == len(self.rows):
            width = round_width(min(max(room, _WIDTH_OF_DRAFTS), self._widths[-1]), self._widths)
            room = max(room, min(width, self._width_for(max(row.n_positions for row in self.rows))))
        self._copies = {slot: row for slot, row in self._copies.items() if slot < room}
        n_idle = room - len(rows)
        if not n_idle:
            return [[] for _ in rows]
        if self._prefix_text is None:
            self._prefix_text = TextIndex(self._prefix.text)
        drafts, capacity = [], key_length(max(row.n_cached for row in rows) + 1)
        for row in rows:
            row.drafter = row.drafter or Drafter(plain(row.prompt), self._prefix_text)
            n_left = min(row.max_tokens - len(row.output), capacity - row.n_cached) - 1
            drafts.append(row.drafter.propose(row.output, min(n_left, self._max_draft)))
        given = share_out([len(draft) for draft in drafts], n_idle)
        return [draft[:n] for draft, n in zip(drafts, given, strict=True)]

    def _place(self, rows: list[BatchRow], drafts: list[list[int]]) -> list[list[int]]:
        """Return each row's slots in this step: its own, then one per draft, preferably a copy of its own.

        A copy far behind, from when there were more rows, is not used: a step reads all slots up to its last.
        """
        places = [[at] for at in range(len(rows))]
        if not any(drafts):
            return places
        within = round_width(len(rows) + sum(map(len, drafts)), self._n_slots)
        taken = set(range(len(rows)))
        for at, row, draft in zip(places, rows, drafts, strict=True):
            at.extend([slot for slot in self._copies_of(row) if slot < within][: len(draft)])
            taken.update(at)
        free = sorted(set(range(within)) - taken, key=lambda slot: (slot in self._copies, slot), reverse=True)
        for at, draft in zip(places, drafts, strict=True):
            at.extend(free.pop() for _ in range(len(draft) + 1 - len(at)))
        return places

    def _copies_of(self, row: BatchRow) -> list[int]:
        return [slot for slot, owner in self._copies.items() if owner is row]

    def _writes(self, rows: list[BatchRow], places: list[list[int]], slots: KvSlots) -> KvWrites:
        """Copy a row's cache to its new places. Return the writes that keep all its copies equal."""
        for at, row in zip(places, rows, strict=True):
            for slot in at[1:]:
                if self._copies.get(slot) is not row:
                    slots.move(at[0], slot, row.n_cached)
                    self._copies[slot] = row
        writes = [
            (source, slot, row.n_cached + n)
            for at, row in zip(places, rows, strict=True)
            for slot in (at[0], *self._copies_of(row))
            for n, source in enumerate(at)
        ]
        return KvWrites(*torch.tensor(writes).unbind(1))

    def _take_finished(self, slots: KvSlots) -> list[BatchRow]:
        finished = [row for row in self.rows if row.stop]
        rows = self.rows[: self._n_prefilled]
        waiting = [row for row in self.rows[self._n_prefilled :] if not row.stop]
        for at in reversed(range(len(rows))):
            if rows[at].stop:
                last = rows.pop()
                if at < len(rows):  # the last row fills the gap
                    slots.move(len(rows), at, len(last.prompt) + len(last.output))
                    rows[at] = last
        if waiting and waiting[0].n_read and len(rows) < self._n_prefilled:
            slots.move(self._n_prefilled, len(rows), waiting[0].n_read)
        self._copies = {at: row for at, row in self._copies.items() if not row.stop}
        self.rows, self._n_prefilled = rows + waiting, len(rows)
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
        if len(tokens) <= len(shared) or (
            begun != shared and not (all(token < 0 for token in begun) and plain(begun) == shared)
        ):
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
                prompt, n_tokens = self._prompts.pop(row.key)
                yield Reply(row.key, prompt, "", stop="length", n_prompt_tokens=n_tokens)

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
        prompt_or_reply = member.codec.prompt(request, self._pool.decoder.shape.context_length)
        if isinstance(prompt_or_reply, Reply):
            return prompt_or_reply
        prompt, tokens = prompt_or_reply
        prefix, rest = member.pool.split(member.codec.shared(request), tokens)
        schema = request.decoding.json_schema
        constraint = None if isinstance(schema, UnsetType) else member.constraints.of(schema)
        sampler = Sampler(request.decoding, request.seed, constraint)
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
