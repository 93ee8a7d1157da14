"""What prompts begin with, kept from one row for the next: a caller's system prompt, the turns before.

A prompt goes through in chunks of fixed size, and what a chunk leaves in a cache hangs on the tokens up to
its end alone. So whole chunks are kept, by those tokens, and copied where a prompt begins with the same.

Promises: what is copied are the bits that a prefill would write; no more than `budget` bytes are kept, those
longest unused let go first.
Leaves to others: the prefix that all rows attend over together (_decoder.py), which no row has a copy of.
"""

from __future__ import annotations

from collections import OrderedDict

import torch

from heredity.engines.torch.decoder import CHUNK, Prefix, Slots

_Key = tuple[tuple[int, ...], tuple[int, ...]]  # the prefix's tokens, and the row's own up to the chunk's end


class Chunks:
    """Keys and values of whole chunks, (kv heads, CHUNK, head_dim) a layer and side."""

    def __init__(self, budget: int) -> None:
        self._budget, self._size = budget, 0
        self._kept: OrderedDict[_Key, list[torch.Tensor]] = OrderedDict()

    def load(self, prefix: Prefix, own: tuple[int, ...], slots: Slots, slot: int) -> int:
        """Copy what is known of a row's beginning into its slot; returns of how many tokens."""
        known = 0
        while known + CHUNK <= len(own) and (kept := self._kept.get((prefix.tokens, own[: known + CHUNK]))):
            for cache, part in zip((*slots.keys, *slots.values), kept, strict=True):
                cache[slot, :, known : known + CHUNK] = part
            known += CHUNK
        return known

    def keep(self, prefix: Prefix, own: tuple[int, ...], slots: Slots, slot: int) -> None:
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
