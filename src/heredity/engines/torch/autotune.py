"""The batch widths that are fast on this machine and give the same bits: measured once and kept.

A short probe, once per shape and machine, times decode steps of several widths at the model's own shapes. It
compares the logits of a witness row bit by bit: in three slots, in different batches, with caches of several
lengths, over two prefixes. Only widths that agree are used, so an answer does not depend on the batch. The
last rows of a batch read only their own caches: the numbers of slots that keep the bits are probed likewise.
`fingerprint` is a hash of the witness's logits: an equal one means equal arithmetic. The result is kept, so a
busy moment must not decide: each time is the best of several tries. A result of a busy machine is replaced
once the machine is at rest.

Packed prefills are probed by the keys and values of a witness text, cut in many places, in every layer.
Bfloat16 hides most differences in the order of a sum. So attention is also probed with terms that cancel: the
result is then only rounding errors. The linear layers of a block are also probed with many rows. Where a
probe fails, each row is prefilled by itself.

Which widths agree depends on shapes and kernels, not on the numbers in the weights. So a model of a shape
that was probed before takes that result, after a short check with its own weights. So does an adapter of such
a model: the check includes its layers, whose rank counts too.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from heredity.core import host
from heredity.core.files import write_atomic
from heredity.core.host import CPU, Clock, Device
from heredity.core.progress import Meter, Watch, phase
from heredity.core.records import Record
from heredity.engines.torch.decoder import (
    BLOCK,
    FEWEST_QUERIES,
    PAD,
    Decoder,
    KvSlots,
    Segment,
    SharedPrefix,
    key_length,
    round_up,
)
from heredity.formats.int8 import Linear

# 6: no width below 4; 5: sums of few keys unprobed; 4: layers unprobed; 3: no packed prefills; 2: a step
# reads as many slots as its width; 1: over one prefix
SCHEMA = 7
WIDTHS = (1, 2, 4, 8, 16, 32, 64, 96, 128)
UNPROBED = 4  # the width of an engine that measures nothing
PASS_WIDTHS = (32, 48, 64, 96, 128, 192)  # tokens of a packed prefill
_USUAL_PASS = PASS_WIDTHS[-2]
_N_TEXT = 10 * PAD  # tokens of the witness text
_N_OUTPUTS = 1 << 19  # numbers of each linear layer that are compared
_N_KEYS = (2 * BLOCK, 3 * BLOCK, 6 * BLOCK, 11 * BLOCK, 64 * BLOCK)
_N_OWN = 3 * BLOCK - 9
_BUSY, _AT_REST = 2.0, 0.75  # load per core
_N_PREFIX = (448, 603)  # as in studies: one fills the tiles of a matmul kernel, one does not


class WitnessPlace(NamedTuple):
    """The place of the witness: the length of the prefix, the share of slots before it, blocks per cache."""

    n_prefix: int
    share: float
    n_blocks: int


_PLACES = tuple(WitnessPlace(n, share, c) for share, c in ((0, 3), (1, 6), (0.5, 6)) for n in _N_PREFIX)
_CHECKED = WitnessPlace(_N_PREFIX[1], 0.5, 3)  # the one place at which a tuning of another model is checked


class Tuning(Record, frozen=True):
    """The result of the probe. `tokens_per_second` is by width, at the time of the probe.

    n_slots: the numbers of slots, other than the widths, that a step may read with the same bits.
    pass_widths: the numbers of tokens of a packed prefill with the same bits; () if rows stay apart.
    load: of the machine before the probe, per core.
    """

    schema: int
    dtype: str
    widths: tuple[int, ...]
    tokens_per_second: dict[str, float]
    fingerprint: str
    machine: str
    is_proven: bool  # False: the bits changed within one width, so answers may depend on the batch
    n_slots: tuple[int, ...] = ()
    pass_widths: tuple[int, ...] = ()
    load: float = 0.0


def tune(
    decoder: Decoder, path: Path | None, widths: tuple[int, ...] = WIDTHS, watch: Watch | None = None
) -> Tuning:
    """Return the tuning kept at `path` if it matches this machine's arithmetic, else a new one.

    The folder of `path` also keeps the tuning of each shape. It is taken if a check shows that it holds for
    this model. Otherwise the model is probed. watch: gets the phases of both.
    """
    if path is None:
        return probe(decoder, widths, watch=watch)
    kept, dtype = read_tuning(path, _device(decoder)), str(decoder.dtype).removeprefix("torch.")
    if kept is not None and kept.dtype == dtype and fingerprint(decoder, kept.widths[-1]) == kept.fingerprint:
        return kept
    weights = decoder.weights.base or decoder.weights
    parts = decoder.shape, decoder.dtype, weights.how, decoder.cache_form, _device(decoder)
    shared = path.parent / f"shape-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"
    # where this model's own result no longer matches, the arithmetic changed, and that of others is old too
    of_shape = None if kept is not None else read_tuning(shared, _device(decoder))
    if of_shape is not None and _holds(decoder, of_shape, watch):
        new = msgspec.structs.replace(of_shape, fingerprint=fingerprint(decoder, of_shape.widths[-1]))
    else:
        new = probe(decoder, widths, watch=watch)
        if decoder.weights.base is None:  # the rank of an adapter counts: its result is its own
            _keep(new, shared)
    _keep(new, path)
    return new


def _keep(tuning: Tuning, path: Path) -> None:
    write_atomic(path, msgspec.json.format(msgspec.json.encode(tuning)))


def _holds(decoder: Decoder, tuning: Tuning, watch: Watch | None = None) -> bool:
    """Return True if this model's witness has equal bits at all widths of the tuning, at one place each.

    With an adapter, its layers also have to give each row of a packed prefill the same bits.
    """
    if not tuning.is_proven:
        return False
    witness, caches = _witness(decoder, _CHECKED.n_prefix), _Caches(decoder, tuning.widths[-1], (_CHECKED,))
    wider = {
        n: next(width for width in tuning.widths if width >= n) for n in (*tuning.widths, *tuning.n_slots)
    }
    ends = {*tuning.pass_widths[:1], *tuning.pass_widths[-1:]}
    with phase(watch, "checking widths", n_total=len(wider)) as meter:
        steps = meter.each(
            wider, lambda n: _try(caches, witness, wider[n], _CHECKED, time.perf_counter, n)[1]
        )
        is_same = len(set(steps)) == 1 and set(_keeping_text(decoder, witness[0], ends)) == ends
    is_own = decoder.weights.base is not None  # layers of other shapes than those of the probe
    return is_same and (not is_own or all(_keeps_layers(decoder, width) for width in ends))


def probe(
    decoder: Decoder,
    widths: tuple[int, ...] = WIDTHS,
    clock: Clock = time.perf_counter,
    watch: Watch | None = None,
) -> Tuning:
    """Time and compare widths, from narrow to wide, until wider is no longer faster.

    Each place of the witness is a sweep of its own. A width that was measured in a busy moment is measured
    again in the next sweep. A sweep may also reach widths that an earlier one did not.
    """
    load = _load()
    witnesses, caches = {n: _witness(decoder, n) for n in _N_PREFIX}, _Caches(decoder, max(widths))
    with phase(watch, "measuring widths", n_total=len(_PLACES) * len(widths)) as meter:
        seconds, seen = _measure(caches, witnesses, widths, clock, meter)
    best = max(seconds, key=lambda width: width / seconds[width])
    bits = {width: {(place.n_prefix, logits) for place, logits in seen[width].items()} for width in seen}
    is_proven = len(bits[best]) == len(_N_PREFIX)
    agreeing = tuple(width for width in sorted(bits) if bits[width] == bits[best] and width <= best)
    with phase(watch, "checking widths"):
        n_slots = _fewer_slots(caches, witnesses, agreeing, seen, clock) if is_proven else ()
        pass_widths = _pass_widths(decoder, witnesses[_N_PREFIX[1]][0]) if is_proven else ()
    return Tuning(
        schema=SCHEMA,
        dtype=str(decoder.dtype).removeprefix("torch."),
        widths=agreeing if is_proven else (best,),
        tokens_per_second={str(w): round(w / seconds[w], 1) for w in sorted(seconds)},
        fingerprint=fingerprint(decoder, best),
        machine=host.machine_name(_device(decoder)),
        is_proven=is_proven,
        n_slots=n_slots,
        pass_widths=pass_widths,
        load=load,
    )


def _measure(
    caches: _Caches,
    witnesses: Mapping[int, tuple[SharedPrefix, KvSlots]],
    widths: tuple[int, ...],
    clock: Clock,
    meter: Meter,
) -> tuple[dict[int, float], dict[int, dict[WitnessPlace, str]]]:
    """Return the seconds of each width, and the bits of the witness by width and place. Counts the tries."""
    seconds: dict[int, float] = {}
    seen: dict[int, dict[WitnessPlace, str]] = {}

    def measure(width: int, place: WitnessPlace) -> None:
        taken, bits = _try(caches, witnesses[place.n_prefix], width, place, clock)
        seconds[width] = min(seconds.get(width, taken), taken)
        seen.setdefault(width, {})[place] = bits
        meter.tick()

    for place in _PLACES:
        for width in _upwards(widths, seconds):
            measure(width, place)
    meter.spare(len(_PLACES) * (len(widths) - len(seen)))
    for width, places in seen.items():
        for place in (place for place in _PLACES if place not in places):
            measure(width, place)
    return seconds, seen


def _fewer_slots(
    caches: _Caches,
    witnesses: Mapping[int, tuple[SharedPrefix, KvSlots]],
    agreeing: tuple[int, ...],
    seen: Mapping[int, Mapping[WitnessPlace, str]],
    clock: Clock,
) -> tuple[int, ...]:
    """Return the measured widths below the best that serve as numbers of slots at the next agreeing width."""
    fewer = []
    for n in (n for n in sorted(seen) if n < agreeing[-1] and n not in agreeing):
        width = next(width for width in agreeing if width > n)
        if all(
            _try(caches, witnesses[place.n_prefix], width, place, clock, n)[1] == seen[width][place]
            for place in _PLACES
        ):
            fewer.append(n)
    return tuple(fewer)


class _Caches:
    """The slots of all tries, over one memory: making them again takes a third of the time of a probe."""

    def __init__(self, decoder: Decoder, max_slots: int, places: Sequence[WitnessPlace] = _PLACES) -> None:
        self.decoder, shape = decoder, decoder.shape
        self._n_filled, self._stream = 0, torch.Generator().manual_seed(2)
        n_blocks = max(place.n_blocks for place in places)
        size = max_slots * shape.n_kv_heads * n_blocks * BLOCK * shape.head_dim
        self._sides = [
            [torch.empty(size, dtype=decoder.dtype, device=decoder.device) for _ in range(shape.n_layers)]
            for _ in range(2)
        ]

    def slots(self, n_slots: int, capacity: int) -> KvSlots:
        """Return slots filled with what earlier tries left there, or with numbers of plausible size."""
        shape = self.decoder.shape
        size = n_slots, shape.n_kv_heads, capacity, shape.head_dim
        n = math.prod(size)
        if n > self._n_filled:
            filler = _drawn(self.decoder, (n - self._n_filled,), self._stream)
            for cache in chain(*self._sides):
                cache[self._n_filled : n] = filler
            self._n_filled = n
        keys, values = ([cache[:n].view(size) for cache in side] for side in self._sides)
        return KvSlots(keys, values)


def _pass_widths(decoder: Decoder, prefix: SharedPrefix) -> tuple[int, ...]:
    """Return the widths of a packed prefill that give a text the same keys and values wherever it is cut."""
    if not decoder.can_pack or not has_steady_sums(decoder):
        return ()
    same = _keeping_text(decoder, prefix, PASS_WIDTHS)
    widths = tuple(width for width in same if _keeps_layers(decoder, width))
    return widths if _USUAL_PASS in widths else ()


def _keeping_text(decoder: Decoder, prefix: SharedPrefix, widths: Collection[int]) -> list[int]:
    """Return the widths that give a text the bits of the usual one, cut elsewhere and after another row."""
    if not widths:
        return []
    expected = _text_bits(decoder, prefix, _USUAL_PASS, _USUAL_PASS)
    return [
        width
        for width in widths
        if _text_bits(decoder, prefix, width, width - PAD, is_alone=False) == expected
    ]


def _keeps_layers(decoder: Decoder, width: int) -> bool:
    """Return True if the linear layers of a block give each row the bits that it has at the usual width."""
    usual = _USUAL_PASS
    if width == usual:
        return True
    stream = torch.Generator().manual_seed(1)
    for layer, n_in in _layers(decoder):
        n_out = _n_out(decoder, layer, n_in)
        n_rows = round_up(max(1, _N_OUTPUTS // n_out), math.lcm(width, usual))
        rows = _drawn(decoder, (n_rows, n_in), stream)
        one, other = (torch.cat([layer(some) for some in rows.split(n)]) for n in (width, usual))
        if not torch.equal(one, other):
            return False
    return True


def _layers(decoder: Decoder) -> Iterator[tuple[Linear, int]]:
    """Yield the linear layers of a block whose rows are those of the batch, with their numbers of inputs.

    The tiles of experts have one size at all widths.
    """
    s, block = decoder.shape, next(iter(decoder.weights.blocks))
    yield block.qkv, s.hidden_size
    yield block.out, s.n_heads * s.head_dim
    if block.gate_up is not None and block.down is not None:
        yield block.gate_up, s.hidden_size
        yield block.down, _n_out(decoder, block.gate_up, s.hidden_size) // 2
    experts = next((block.experts for block in decoder.weights.blocks if block.experts is not None), None)
    if experts is not None:
        yield experts.router, s.hidden_size


def _n_out(decoder: Decoder, layer: Linear, n_in: int) -> int:
    return layer(torch.zeros((1, n_in), dtype=decoder.dtype, device=decoder.device)).shape[-1]


def _text_bits(
    decoder: Decoder, prefix: SharedPrefix, width: int, n_at_once: int, is_alone: bool = True
) -> str:
    """Return a hash of the witness text's keys and values, prefilled in passes of this width."""
    slots, slot = decoder.slots(2, round_up(_N_TEXT, BLOCK)), 0 if is_alone else 1
    stream = torch.Generator().manual_seed(1)
    text = torch.randint(decoder.shape.vocab_size, (_N_TEXT,), generator=stream).tolist()
    others = [] if is_alone else [Segment(0, 0, tuple(text[-PAD:]))]
    for start in range(0, _N_TEXT, n_at_once):
        segment = Segment(slot, start, tuple(text[start : start + n_at_once]))
        decoder.prefill_packed(prefix, slots, [*others, segment], width)
    bits = hashlib.sha256()
    for cache in (*slots.keys, *slots.values):
        bits.update(cache[slot, :, :_N_TEXT].float().cpu().numpy().tobytes())
    return bits.hexdigest()


def has_steady_sums(decoder: Decoder) -> bool:
    """Return True if attention sums a query's terms in one order, among any queries and before any keys."""
    stream = torch.Generator().manual_seed(1)
    return all(
        _is_steady(decoder, n_keys, is_cancelling, stream)
        for n_keys in _N_KEYS
        for is_cancelling in (False, True)
    )


def _is_steady(decoder: Decoder, n_keys: int, is_cancelling: bool, stream: torch.Generator) -> bool:
    """Return True if fewer queries, fewer keys, and keys of no weight leave attention's sums as they are."""
    n_queries, head_dim = 8 * FEWEST_QUERIES, decoder.shape.head_dim
    p, values = _factors(decoder, (n_queries, n_keys, head_dim), is_cancelling, stream)
    q, keys = _factors(decoder, (n_queries, head_dim, n_keys), is_cancelling, stream)
    keys = keys.mT.contiguous().mT  # as a cache has them
    n_beyond = key_length(n_keys + 1) - n_keys
    sums, scores, beyond = torch.bmm(p, values), torch.bmm(q, keys), p.new_zeros(len(p), n_queries, n_beyond)
    longer = torch.bmm(torch.cat([p, beyond], -1), torch.cat([values, values[:, :n_beyond]], 1))
    masked = torch.softmax(torch.cat([p, beyond - torch.inf], -1), -1)[..., :n_keys]
    pairs = [
        (longer, sums),
        (torch.bmm(q, keys[..., :BLOCK].mT.contiguous().mT), scores[..., :BLOCK]),
        (masked, torch.softmax(p, -1)),
    ]
    for some in (slice(0, FEWEST_QUERIES), slice(PAD, PAD + 3 * BLOCK)):
        pairs.append((torch.bmm(p[:, some].contiguous(), values), sums[:, some]))
        pairs.append((torch.bmm(q[:, some].contiguous(), keys), scores[:, some]))
    return all(torch.equal(one, other) for one, other in pairs)


def _factors(
    decoder: Decoder, size: tuple[int, int, int], is_cancelling: bool, stream: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return matrices (kv heads, rows, terms) and (kv heads, terms, columns) of random numbers.

    is_cancelling: each term occurs with both signs. The product is then the rounding errors of its order.
    """
    (n_rows, n_terms, n_columns), kv = size, decoder.shape.n_kv_heads
    left = _drawn(decoder, (kv, n_rows, n_terms // 2), stream)
    right = _drawn(decoder, (kv, n_terms // 2, n_columns), stream)
    order = torch.randperm(n_terms, generator=stream).to(decoder.device)
    return torch.cat([left, left], 2)[..., order], torch.cat([right, -right if is_cancelling else right], 1)[
        :, order
    ]


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
    host.synchronize(caches.decoder.device)
    began = clock()
    logits = caches.decoder.step(prefix, slots, torch.full((width,), 7), lengths, n_slots)[slot]
    host.synchronize(caches.decoder.device)
    return clock() - began, _hash(logits)


def fingerprint(decoder: Decoder, width: int) -> str:
    """Return a hash of a witness's logits, which names the arithmetic."""
    prefix, lone = _witness(decoder, _N_PREFIX[0])
    slots = decoder.slots(width, 3 * BLOCK)
    for at, one in zip((*slots.keys, *slots.values), (*lone.keys, *lone.values), strict=True):
        at[0] = one[0]
    lengths = torch.zeros(width, dtype=torch.long)
    lengths[0] = _N_OWN
    return _hash(decoder.step(prefix, slots, torch.full((width,), 7), lengths)[0])


def _witness(decoder: Decoder, n_prefix: int) -> tuple[SharedPrefix, KvSlots]:
    """Return a prefix and the cache of one row, with fixed contents of plausible size."""
    shape, stream = decoder.shape, torch.Generator().manual_seed(1)

    def make(*size: int) -> torch.Tensor:
        return _drawn(decoder, size, stream)

    layers = range(shape.n_layers)
    shared = [
        [make(shape.n_kv_heads, round_up(n_prefix, BLOCK), shape.head_dim) for _ in layers] for _ in range(2)
    ]
    own = [[make(1, shape.n_kv_heads, 3 * BLOCK, shape.head_dim) for _ in layers] for _ in range(2)]
    return SharedPrefix((0,) * n_prefix, shared[0], shared[1]), KvSlots(own[0], own[1])


def _drawn(decoder: Decoder, size: tuple[int, ...], stream: torch.Generator) -> torch.Tensor:
    """Return normal numbers that are the same on every device."""
    return torch.randn(size, generator=stream).to(decoder.device, decoder.dtype)


def _hash(logits: torch.Tensor) -> str:
    return hashlib.sha256(logits.float().cpu().numpy().tobytes()).hexdigest()[:16]


def _device(decoder: Decoder) -> Device:
    return Device.parse(str(decoder.device))


def read_tuning(path: Path, device: Device = CPU) -> Tuning | None:
    """Return the tuning kept at `path` if it has this schema, machine and torch; else None.

    None also for one of a busy machine, if the machine is at rest now.
    """
    if not path.exists():
        return None
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Tuning)
    except msgspec.DecodeError:  # it can be measured again
        return None
    if kept.load > _BUSY and _load() < _AT_REST:
        return None
    return kept if kept.schema == SCHEMA and kept.machine == host.machine_name(device) else None


def _load() -> float:
    """Return the load of the last minute, per core. 0: the system does not report it."""
    try:
        return os.getloadavg()[0] / host.n_cores()
    except (AttributeError, OSError):
        return 0.0
