"""Which dtype and batch widths are fast on this machine, and which give the same bits: measured, and kept.

A short probe (seconds, once a model and machine) times decode steps of several widths at the model's own
shapes and compares a witness row's logits bit by bit: in the first, the middle and the last slot, among
different company, with caches of several lengths, over two prefixes. Only widths that agree are used, so an
answer does not depend on the batch. `fingerprint` is a hash of the witness's logits: equal means equal
arithmetic. What is kept stays, so a busy moment must not decide: times are the best of tries made in turn.

Nothing is proven of prefills in company, for a row goes through alone: whether two rows keep one's bits
turned out to follow the prefix's length and, since bfloat16 hides most differences, the rows themselves.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from heredity.core.files import write_atomic
from heredity.core.host import Clock, machine_name
from heredity.core.records import Record
from heredity.engines.torch.decoder import BLOCK, Decoder, KvSlots, SharedPrefix, round_up

SCHEMA = 2  # 1 proved rows that were prefilled together, over one prefix only
WIDTHS = (4, 8, 16, 32, 64, 96, 128)
_N_OWN = 2 * BLOCK - 9
_N_PREFIX = (448, 603)  # study-shaped: one of whole tiles of a matrix kernel, one that leaves a rest of each


class WitnessPlace(NamedTuple):
    """Where the witness sits in a step: over what prefix, which share of the slots in, cells a cache."""

    n_prefix: int
    share: float
    n_cells: int


_PLACES = tuple(WitnessPlace(n, share, c) for share, c in ((0, 2), (1, 3), (0.5, 4)) for n in _N_PREFIX)


class Tuning(Record, frozen=True):
    """What the probe chose. `tokens_per_second` is by width, at the time of the probe."""

    schema: int
    dtype: str
    widths: tuple[int, ...]
    tokens_per_second: dict[str, float]
    fingerprint: str
    machine: str
    is_proven: bool  # False: the bits moved even within one width, so answers may depend on company


def unproven(decoder: Decoder) -> Tuning:
    """The narrowest width without a probe, for who only reads prompts: they go through alone."""
    dtype = str(decoder.dtype).removeprefix("torch.")
    return Tuning(SCHEMA, dtype, WIDTHS[:1], {}, "unproven", machine_name(), is_proven=False)


def tune(decoder: Decoder, path: Path | None, widths: tuple[int, ...] = WIDTHS) -> Tuning:
    """The tuning kept at `path` where it still holds for this machine's arithmetic, else a new probe's."""
    kept = read_tuning(path)
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

    Each place of the witness is a sweep of its own, so that a width which was measured in a busy moment is
    measured again later, and one that a sweep did not come to may be reached by the next.
    """
    witnesses = {n: _witness(decoder, n) for n in _N_PREFIX}
    seconds: dict[int, float] = {}
    seen: dict[int, dict[WitnessPlace, str]] = {}

    def measure(width: int, place: WitnessPlace) -> None:
        taken, bits = _try(decoder, witnesses[place.n_prefix], width, place, clock)
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
    )


def _upwards(widths: tuple[int, ...], seconds: Mapping[int, float]) -> Iterator[int]:
    """Widths to measure into `seconds`, until two in a row are clearly slower than a narrower one."""
    fastest, n_slower = 0.0, 0
    for width in widths:
        yield width
        speed = width / seconds[width]
        fastest = max(fastest, speed)
        n_slower = n_slower + 1 if speed < 0.8 * fastest else 0
        if n_slower == 2:
            return


def _try(
    decoder: Decoder, witness: tuple[SharedPrefix, KvSlots], width: int, place: WitnessPlace, clock: Clock
) -> tuple[float, str]:
    """Seconds of a step at this width, and the logits that the witness got."""
    (prefix, lone), slot = witness, int((width - 1) * place.share)
    slots = _company(decoder, width, place.n_cells * BLOCK)
    for at, one in zip((*slots.keys, *slots.values), (*lone.keys, *lone.values), strict=True):
        at[slot, :, : one.shape[2]] = one[0]
    lengths = torch.full((width,), _N_OWN)
    lengths[torch.arange(width) != slot] -= torch.arange(width - 1) % 50
    began = clock()
    logits = decoder.step(prefix, slots, torch.full((width,), 7), lengths)[slot]
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
    """A prefix and one row's cache with fixed contents of plausible size."""
    shape, stream = decoder.shape, torch.Generator().manual_seed(1)

    def make(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=stream).to(decoder.dtype)

    layers = range(shape.n_layers)
    shared = [
        [make(shape.n_kv_heads, round_up(n_prefix, BLOCK), shape.head_dim) for _ in layers] for _ in range(2)
    ]
    own = [[make(1, shape.n_kv_heads, 2 * BLOCK, shape.head_dim) for _ in layers] for _ in range(2)]
    return SharedPrefix((0,) * n_prefix, shared[0], shared[1]), KvSlots(own[0], own[1])


def _company(decoder: Decoder, width: int, n_cells: int) -> KvSlots:
    slots, stream = decoder.slots(width, n_cells), torch.Generator().manual_seed(width)
    filler = torch.randn(slots.keys[0].shape, generator=stream).to(decoder.dtype)
    for cache in (*slots.keys, *slots.values):
        cache.copy_(filler)
    return slots


def _hash(logits: torch.Tensor) -> str:
    return hashlib.sha256(logits.float().numpy().tobytes()).hexdigest()[:16]


def read_tuning(path: Path | None) -> Tuning | None:
    """What is kept at `path`, where it was measured by these rules, on this machine and torch."""
    if path is None or not path.exists():
        return None
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Tuning)
        return kept if kept.schema == SCHEMA and kept.machine == machine_name() else None
    except msgspec.DecodeError:  # a note that can be measured again
        return None
