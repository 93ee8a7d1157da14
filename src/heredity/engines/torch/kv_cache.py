"""A decoder whose keys and values are rounded to 8 or 4 bits, as a server with a quantized KV cache does.

Keys are rounded by channel over 32 positions, values by position over 32 channels, each group with its own
minimum and scale (KIVI). Positions are rounded in blocks of 64: a query attends to the rounded blocks before
its own, and to its own block in full precision. So a row's newest 1 to 64 positions are not rounded. The
shared prefix is rounded whole; its last block may be shorter.

The rounding is simulated: rounded numbers are kept in the dtype of the decoder, and no memory is saved.

Promises: a block is rounded from its own positions only, once its last token is known. So the numbers of a
row still depend only on that row. A prefill, a cached chunk and decode steps attend to the same numbers.
Leaves to others: the arithmetic of attention (decoder.py).

Source: Liu et al. 2024 (KIVI, 2402.02750): keys have outliers in fixed channels, values have none.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from heredity.engines.torch.decoder import Decoder, KvSlots, KvWrites, ResidualHook
from heredity.engines.torch.prefixes import BLOCK, SharedPrefix, round_up
from heredity.formats.weights import Weights

GROUP = 32  # numbers that share a minimum and a scale
KvBits = Literal[4, 8]


def round_keys(keys: torch.Tensor, bits: KvBits) -> torch.Tensor:
    """Round keys (kv heads, positions, head_dim): groups of up to GROUP positions of one channel."""
    return torch.cat([_nearest(group, 1, bits) for group in keys.split(GROUP, dim=1)], dim=1)


def round_values(values: torch.Tensor, bits: KvBits) -> torch.Tensor:
    """Round values (kv heads, positions, head_dim): groups of up to GROUP channels of one position."""
    size = math.gcd(GROUP, values.shape[-1])
    return _nearest(values.unflatten(-1, (-1, size)), -1, bits).flatten(-2)


def _nearest(x: torch.Tensor, dim: int, bits: KvBits) -> torch.Tensor:
    """Round to 2^bits numbers between the minimum and the maximum along `dim`, which are kept as stored."""
    largest = 2**bits - 1
    low, high = x.amin(dim, keepdim=True).float(), x.amax(dim, keepdim=True).float()
    scale = ((high - low) / largest).to(x.dtype).float()  # a cache would keep it in this dtype
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    whole = torch.round((x.float() - low) / scale).clamp_(0, largest)
    return (whole * scale + low).to(x.dtype)


class KvQuantizedDecoder(Decoder):
    """A decoder that rounds its keys and values to `bits` bits."""

    can_pack = False  # tokens attend to blocks that were rounded before them, so a block is a pass
    can_draft = False  # a block with a wrong token in it would be rounded with it

    def __init__(
        self, weights: Weights, dtype: torch.dtype, bits: KvBits, hook: ResidualHook | None = None
    ) -> None:
        super().__init__(weights, dtype, hook)
        self.bits: KvBits = bits
        self.cache_form = f"kv int{bits} groups {GROUP}"

    def prefix(self, tokens: tuple[int, ...]) -> SharedPrefix:
        """Compute a prefix once, and round the rest of it that fills no block."""
        found = super().prefix(tokens)
        start = found.length // BLOCK * BLOCK
        if start < found.length:
            for keys, values in zip(found.keys, found.values, strict=True):
                rest = slice(start, found.length)
                keys[:, rest] = round_keys(keys[:, rest], self.bits)
                values[:, rest] = round_values(values[:, rest], self.bits)
        return found

    def prefill(
        self,
        prefix: SharedPrefix,
        slots: KvSlots,
        slot: int,
        own: tuple[int, ...],
        known: int = 0,
        is_read: bool = True,
    ) -> torch.Tensor:
        """Do the same as `Decoder.prefill`, block by block, so that each block attends to rounded ones."""
        hidden = []
        for start in range(known, max(round_up(len(own), BLOCK), BLOCK), BLOCK):
            end = start + BLOCK
            hidden.append(super().prefill(prefix, slots, slot, own[:end], start, is_read))
            if end <= len(own):
                self._round(slots, slot, end)
        return torch.cat(hidden)

    def step(
        self,
        prefix: SharedPrefix,
        slots: KvSlots,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        n_slots: int | None = None,
        writes: KvWrites | None = None,
    ) -> torch.Tensor:
        """Do the same as `Decoder.step`, and round each block that this token fills."""
        logits = super().step(prefix, slots, tokens, lengths, n_slots, writes)
        ends = lengths[:n_slots] + 1
        for slot in (ends % BLOCK == 0).nonzero()[:, 0].tolist():
            self._round(slots, slot, int(ends[slot]))
        return logits

    def _round(self, slots: KvSlots, slot: int, end: int) -> None:
        """Round the block of a row that ends before position `end`, in every layer."""
        block = slice(end - BLOCK, end)
        for keys, values in zip(slots.keys, slots.values, strict=True):
            keys[slot, :, block] = round_keys(keys[slot, :, block], self.bits)
            values[slot, :, block] = round_values(values[slot, :, block], self.bits)

    def _like(self, weights: Weights, hook: ResidualHook | None) -> Decoder:
        return KvQuantizedDecoder(weights, self.dtype, self.bits, hook)
