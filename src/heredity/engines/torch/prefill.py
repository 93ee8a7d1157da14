"""Prefilling of new rows: a cached beginning is copied, and the rest goes through the model.

A prompt often begins as an earlier one did: a turn follows those before it, and callers of a server
send one system message. Where autotune.py proves that a prompt may be cut anywhere, the segments of several
rows share a pass, and the cache keeps whole prompts. Elsewhere a row goes through the model by itself, in
chunks of fixed size. The keys and values of a chunk then depend only on the tokens up to its end, so whole
chunks are cached.

Promises: cached keys and values have the bits of a prefill.
Leaves to others: the arithmetic (decoder.py), and which rows are prefilled at once (session.py).
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch

from heredity.engines.torch.decoder import CHUNK, PAD, Decoder, KvSlots, Segment, padded
from heredity.engines.torch.prefixes import SharedPrefix

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

    def known(self, prefix: SharedPrefix, prompt: tuple[int, ...], caller: str = "") -> int:
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
        ends = [end for end in self._ends(len(prompt)) if end > start]
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

    def _ends(self, n: int) -> list[int]:
        """Return where the parts of a prompt of n tokens end."""
        chunks = list(range(CHUNK, n + 1, CHUNK))
        last = n // self._grain * self._grain
        return [*chunks, last] if last % CHUNK else chunks

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
            found: list[tuple[_Key, int]] = []
            while start and (held := self._kept.get((group, nearest[:start]))):
                end, start = start, start - held[0].shape[1]
                if start < n_shared:
                    found.insert(0, ((group, nearest[:end]), min(end, n_shared)))
            if not start:
                return found
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

    def known(self, prefix: SharedPrefix, prompt: tuple[int, ...], caller: str = "") -> int:
        """Return how many tokens of a prompt, from its beginning, need not be computed."""
        return self._cache.known(prefix, prompt, caller)

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
            known = {
                slot: n_read.get(slot)
                or self._cache.load(self._at(slot), now[slot], slots, slot, self._caller(slot))
                for slot in now
            }
            new = {slot: prompt for slot, prompt in now.items() if known[slot] < len(prompt)}
            self._compute(slots, new, known)
            for slot, prompt in now.items():
                self._cache.keep(self._at(slot), prompt, slots, slot, self._caller(slot))
                del waiting[slot]

    def _at(self, slot: int) -> SharedPrefix:
        return self._prefix.at(slot)

    def _caller(self, slot: int) -> str:
        return self._callers.get(slot, "")

    def _compute(
        self, slots: KvSlots, prompts: Mapping[int, tuple[int, ...]], known: Mapping[int, int]
    ) -> None:
        """Compute what is not known of the prompts."""
        if not self._widths:
            for slot, prompt in prompts.items():
                self._decoder.prefill(self._at(slot), slots, slot, prompt, known[slot], is_read=False)
            return
        segments = []
        for slot, prompt in prompts.items():
            filled = prompt + (0,) * (padded(prompt) - len(prompt))
            segments.append(Segment(slot, known[slot], filled[known[slot] :]))
        for together in packed(segments, self._widths[-1]):
            n = sum(len(segment.tokens) for segment in together)
            width = next(width for width in self._widths if width >= n)
            self._decoder.prefill_packed(self._prefix, slots, together, width)

    def _apart(self, waiting: Mapping[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
        """Return the prompts but those that can copy more from one before them, once it is cached."""
        all_begun: dict[str, list[tuple[int, ...]]] = {}  # by caller, in the order of their tokens
        found = {}
        for slot, prompt in waiting.items():
            begun = all_begun.setdefault(self._caller(slot), [])
            at = bisect_right(begun, prompt)
            near = (self._cache.n_shared(other, prompt) for other in begun[max(at - 1, 0) : at + 1])
            if max(near, default=0) <= self._cache.known(self._at(slot), prompt, self._caller(slot)):
                found[slot] = prompt
                begun.insert(at, prompt)
        return found


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
