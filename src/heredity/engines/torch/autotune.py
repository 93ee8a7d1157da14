"""The batch widths that are fast on this machine and give the same bits: measured once and kept.

A short probe, once per model and machine, times decode steps of several widths at the model's own shapes. It
compares the logits of a witness row bit by bit: in three slots, in different batches, with caches of several
lengths, over two prefixes. Only widths that agree are used, so an answer does not depend on the batch. The
last rows of a batch read only their own caches: the numbers of slots that keep the bits are probed likewise.
`fingerprint` is a hash of the witness's logits: an equal one means equal arithmetic. The result is kept, so a
busy moment must not decide: each time is the best of several tries.

Prefills are not probed: each row is prefilled by itself. Whether prefilling two rows together keeps their
bits was found to depend on the length of the prefix. Bfloat16 hides most differences, so it depends on the
rows too.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from heredity.core.files import write_atomic
from heredity.core.host import Clock, machine_name
from heredity.core.records import Record
from heredity.engines.torch.decoder import BLOCK, Decoder, KvSlots, SharedPrefix, round_up

SCHEMA = 3  # 2: a step reads as many slots as it is wide; 1: rows prefilled together, over one prefix
WIDTHS = (4, 8, 16, 32, 64, 96, 128)
_N_OWN = 2 * BLOCK - 9
_N_PREFIX = (448, 603)  # as in studies: one fills the tiles of a matmul kernel, one does not


class WitnessPlace(NamedTuple):
    """The place of the witness: the length of the prefix, the share of slots before it, blocks per cache."""

    n_prefix: int
    share: float
    n_blocks: int


_PLACES = tuple(WitnessPlace(n, share, c) for share, c in ((0, 2), (1, 3), (0.5, 4)) for n in _N_PREFIX)


class Tuning(Record, frozen=True):
    """The result of the probe. `tokens_per_second` is by width, at the time of the probe.

    n_slots: the numbers of slots, other than the widths, that a step may read with the same bits.
    """

    schema: int
    dtype: str
    widths: tuple[int, ...]
    tokens_per_second: dict[str, float]
    fingerprint: str
    machine: str
    is_proven: bool  # False: the bits changed within one width, so answers may depend on the batch
    n_slots: tuple[int, ...] = ()


def tune(decoder: Decoder, path: Path | None, widths: tuple[int, ...] = WIDTHS) -> Tuning:
    """Return the tuning kept at `path` if it matches this machine's arithmetic, else that of a new probe."""
    kept = None if path is None else read_tuning(path)
    dtype = str(decoder.dtype).removeprefix("torch.")
    if (
        kept is not None
        and kept.dtype == dtype
        and _fingerprint(decoder, kept.widths[-1]) == kept.fingerprint
    ):
        return kept
    new = probe(decoder, widths)
    if path is not None:
        write_atomic(path, msgspec.json.format(msgspec.json.encode(new)))
    return new


def probe(decoder: Decoder, widths: tuple[int, ...] = WIDTHS, clock: Clock = time.perf_counter) -> Tuning:
    """Time and compare widths, from narrow to wide, until wider is no longer faster.

    Each place of the witness is a sweep of its own. A width that was measured in a busy moment is measured
    again in the next sweep. A sweep may also reach widths that an earlier one did not.
    """
    witnesses, caches = {n: _witness(decoder, n) for n in _N_PREFIX}, _Caches(decoder, max(widths))
    seconds: dict[int, float] = {}
    seen: dict[int, dict[WitnessPlace, str]] = {}

    def measure(width: int, place: WitnessPlace) -> None:
        taken, bits = _try(caches, witnesses[place.n_prefix], width, place, clock)
        seconds[width] = min(seconds.get(width, taken), taken)
        seen.setdefault(width, {})[place] = bits

    for place in _PLACES:
        for width in _upwards(widths, seconds):
            measure(width, place)
    for width, places in seen.items():
        for place in (place for place in _PLACES if place not in places):
            measure(width, place)
    best = max(seconds, key=lambda width: width / seconds[width])
    bits = {width: {(place.n_prefix, found) for place, found in seen[width].items()} for width in seen}
    is_proven = len(bits[best]) == len(_N_PREFIX)
    agreeing = tuple(width for width in sorted(bits) if bits[width] == bits[best] and width <= best)
    return Tuning(
        schema=SCHEMA,
        dtype=str(decoder.dtype).removeprefix("torch."),
        widths=agreeing if is_proven else (best,),
        tokens_per_second={str(w): round(w / seconds[w], 1) for w in sorted(seconds)},
        fingerprint=_fingerprint(decoder, best),
        machine=machine_name(),
        is_proven=is_proven,
        n_slots=_fewer_slots(caches, witnesses, agreeing, seen, clock) if is_proven else (),
    )


def _fewer_slots(
    caches: _Caches,
    witnesses: Mapping[int, tuple[SharedPrefix, KvSlots]],
    agreeing: tuple[int, ...],
    seen: Mapping[int, Mapping[WitnessPlace, str]],
    clock: Clock,
) -> tuple[int, ...]:
    """Return the measured widths below the best that serve as numbers of slots at the next agreeing width."""
    found = []
    for n in (n for n in sorted(seen) if n < agreeing[-1] and n not in agreeing):
        width = next(width for width in agreeing if width > n)
        if all(
            _try(caches, witnesses[place.n_prefix], width, place, clock, n)[1] == seen[width][place]
            for place in _PLACES
        ):
            found.append(n)
    return tuple(found)


class _Caches:
    """The slots of all tries, over one memory: making them again takes a third of the time of a probe."""

    def __init__(self, decoder: Decoder, max_slots: int) -> None:
        self.decoder, shape = decoder, decoder.shape
        self._n_filled, self._stream = 0, torch.Generator().manual_seed(2)
        size = (
            max_slots * shape.n_kv_heads * max(place.n_blocks for place in _PLACES) * BLOCK * shape.head_dim
        )
        self._sides = [
            [torch.empty(size, dtype=decoder.dtype) for _ in range(shape.n_layers)] for _ in range(2)
        ]

    def slots(self, n_slots: int, capacity: int) -> KvSlots:
        """Return slots filled with what earlier tries left there, or with numbers of plausible size."""
        shape = self.decoder.shape
        size = n_slots, shape.n_kv_heads, capacity, shape.head_dim
        n = math.prod(size)
        if n > self._n_filled:
            filler = torch.randn(n - self._n_filled, generator=self._stream).to(self.decoder.dtype)
            for cache in chain(*self._sides):
                cache[self._n_filled : n] = filler
            self._n_filled = n
        keys, values = ([cache[:n].view(size) for cache in side] for side in self._sides)
        return KvSlots(keys, values)


def _upwards(widths: tuple[int, ...], seconds: Mapping[int, float]) -> Iterator[int]:
    """Yield the widths to measure, until two in a row are clearly slower than a narrower one."""
    fastest, n_slower = 0.0, 0
    for width in widths:
        yield width
        speed = width / seconds[width]
        fastest = max(fastest, speed)
        n_slower = n_slower + 1 if speed < 0.8 * fastest else 0
        if n_slower == 2:
            return


def _try(
    caches: _Caches,
    witness: tuple[SharedPrefix, KvSlots],
    width: int,
    place: WitnessPlace,
    clock: Clock,
    n_slots: int | None = None,
) -> tuple[float, str]:
    """Return the seconds of a step at this width, and a hash of the witness's logits."""
    n_slots = width if n_slots is None else n_slots
    (prefix, lone), slot = witness, int((n_slots - 1) * place.share)
    slots = caches.slots(n_slots, place.n_blocks * BLOCK)
    for at, one in zip((*slots.keys, *slots.values), (*lone.keys, *lone.values), strict=True):
        at[slot, :, : one.shape[2]] = one[0]
    lengths = torch.full((width,), _N_OWN)
    lengths[torch.arange(width) != slot] -= torch.arange(width - 1) % 50
    began = clock()
    logits = caches.decoder.step(prefix, slots, torch.full((width,), 7), lengths, n_slots)[slot]
    return clock() - began, _hash(logits)


def _fingerprint(decoder: Decoder, width: int) -> str:
    prefix, lone = _witness(decoder, _N_PREFIX[0])
    slots = decoder.slots(width, 2 * BLOCK)
    for at, one in zip((*slots.keys, *slots.values), (*lone.keys, *lone.values), strict=True):
        at[0] = one[0]
    lengths = torch.zeros(width, dtype=torch.long)
    lengths[0] = _N_OWN
    return _hash(decoder.step(prefix, slots, torch.full((width,), 7), lengths)[0])


def _witness(decoder: Decoder, n_prefix: int) -> tuple[SharedPrefix, KvSlots]:
    """Return a prefix and the cache of one row, with fixed contents of plausible size."""
    shape, stream = decoder.shape, torch.Generator().manual_seed(1)

    def make(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=stream).to(decoder.dtype)

    layers = range(shape.n_layers)
    shared = [
        [make(shape.n_kv_heads, round_up(n_prefix, BLOCK), shape.head_dim) for _ in layers] for _ in range(2)
    ]
    own = [[make(1, shape.n_kv_heads, 2 * BLOCK, shape.head_dim) for _ in layers] for _ in range(2)]
    return SharedPrefix((0,) * n_prefix, shared[0], shared[1]), KvSlots(own[0], own[1])


def _hash(logits: torch.Tensor) -> str:
    return hashlib.sha256(logits.float().numpy().tobytes()).hexdigest()[:16]


def read_tuning(path: Path) -> Tuning | None:
    """Return the tuning kept at `path` if it has this schema, machine and torch; else None."""
    if not path.exists():
        return None
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Tuning)
        return kept if kept.schema == SCHEMA and kept.machine == machine_name() else None
    except msgspec.DecodeError:  # it can be measured again
        return None
