"""Continuous batching: a step draws a token for every row, and a finished row makes room for another.

Idle rows of a step verify drafts (drafts.py).

Promises: a step has one of the proven widths, numbers of slots and cache lengths. An answer does not depend
on its slot; a token is drawn from the row's own logits, decoding, seed and step.
Leaves to others: which rows (session.py), the arithmetic (decoder.py), and prompts (prefill.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from heredity.engines.torch.decoder import CHUNK, Decoder, KvSlots, KvWrites, padded
from heredity.engines.torch.drafts import Drafter, TextIndex, share_out
from heredity.engines.torch.prefill import Prefiller, PrefixCache
from heredity.engines.torch.prefixes import SharedPrefix, VariedPrefix, continued, key_length, plain
from heredity.engines.torch.sampling import Sampler

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
    def n_known(self) -> int:
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
            lengths[at] = row.n_known + torch.arange(len(at))
        n_positions = max([int(lengths.max()) + 1, *map(_n_to_read, self.rows[len(rows) :])])
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
        found = dict[int, tuple[int, ...]]()
        for at, row in enumerate(self.rows[self._n_prefilled :], self._n_prefilled):
            prompt = row.prompt[:-1]
            if self._portion:
                known = row.n_read or self._prefiller.known(prefix.at(at), prompt, row.caller)
                if len(prompt) - known > self._portion:
                    return found or {at: prompt[: (known + self._portion) // CHUNK * CHUNK]}
            found[at] = prompt
        return found

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

    def _room_for_drafts(self) -> int:
        """Return how many slots a step may use for rows and drafts: as many as its rows need, but four.

        While a row waits, there is no room for drafts: its slot comes after those of the others.
        """
        room = self._n_prefilled
        if self._max_draft and room == len(self.rows):
            width = round_width(min(max(room, _WIDTH_OF_DRAFTS), self._widths[-1]), self._widths)
            room = max(room, min(width, self._width_for(max(row.n_positions for row in self.rows))))
        self._copies = {slot: row for slot, row in self._copies.items() if slot < room}
        return room

    def _propose(self, rows: list[BatchRow]) -> list[list[int]]:
        """Return each row's draft, together as many tokens as there is room. None makes the caches longer.

        In float32 the bits of a row of some 600 tokens were found to depend on the length of its cache.
        """
        n_idle = self._room_for_drafts() - len(rows)
        if not n_idle:
            return [[] for _ in rows]
        if self._prefix_text is None:
            self._prefix_text = TextIndex(self._prefix.text)
        found, capacity = [], key_length(max(row.n_known for row in rows) + 1)
        for row in rows:
            row.drafter = row.drafter or Drafter(plain(row.prompt), self._prefix_text)
            n_left = min(row.max_tokens - len(row.output), capacity - row.n_known) - 1
            found.append(row.drafter.propose(row.output, min(n_left, self._max_draft)))
        given = share_out([len(draft) for draft in found], n_idle)
        return [draft[:n] for draft, n in zip(found, given, strict=True)]

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
                    slots.move(at[0], slot, row.n_known)
                    self._copies[slot] = row
        found = [
            (source, slot, row.n_known + n)
            for at, row in zip(places, rows, strict=True)
            for slot in (at[0], *self._copies_of(row))
            for n, source in enumerate(at)
        ]
        return KvWrites(*torch.tensor(found).unbind(1))

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


def _n_to_read(row: BatchRow) -> int:
    """Return the positions that the prefill of a row fills."""
    return padded(row.prompt[:-1])


def round_width(n: int, widths: tuple[int, ...]) -> int:
    """Return the smallest proven width that holds n rows."""
    return next(w for w in widths if w >= n)
