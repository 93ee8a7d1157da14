"""Which dtype and batch widths are fast on this machine, and which give the same bits: measured, and kept.

A short probe (seconds, once a model and machine) times decode steps of several widths at the model's own
shapes and compares a witness row's logits bit by bit: in the first, the middle and the last slot, among
different company, with caches of several lengths. Only widths that agree are used, so an answer does not
depend on the batch. `fingerprint` is a hash of the witness's logits: equal means equal arithmetic.

Nothing is proven of prefills in company, for a row goes through alone: whether two rows keep one's bits
turned out to follow the prefix's length and, since bfloat16 hides most differences, the rows themselves.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from pathlib import Path

import msgspec
import torch

from heredity.engines._decoder import CELL, Decoder, Prefix, Slots, round_up
from heredity.records import Record

SCHEMA = 2  # 1 proved rows that were prefilled together, over one prefix only
WIDTHS = (4, 8, 16, 32, 64, 96, 128)
_N_PREFIX, _N_OWN = 448, 2 * CELL - 9  # the witness lies over a study-shaped prefix


class Tuning(Record, frozen=True):
    """What the probe chose. `tokens_per_second` is by width, at the time of the probe."""

    schema: int
    dtype: str
    widths: tuple[int, ...]
    tokens_per_second: dict[str, float]
    fingerprint: str
    machine: str
    is_proven: bool  # False: the bits moved even within one width, so answers may depend on company


def machine() -> str:
    """This machine and torch, as far as they can change a result or its speed."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {capability} x{torch.get_num_threads()} torch {torch.__version__}"


def choose_dtype(hidden: int, wide: int, n_rows: int = 32) -> str:
    """ "bfloat16" where its matrix product is clearly faster at the model's shape, else "float32".

    Interleaved and best of several, so that a busy moment does not decide; `tuned` keeps what came out.
    """
    seconds = dict.fromkeys(("float32", "bfloat16"), float("inf"))
    for _ in range(8):
        for name in seconds:
            dtype = getattr(torch, name)
            x, w = torch.ones(n_rows, hidden, dtype=dtype), torch.ones(wide, hidden, dtype=dtype)
            began = time.perf_counter()
            torch.nn.functional.linear(x, w)
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    return "bfloat16" if seconds["bfloat16"] < 0.9 * seconds["float32"] else "float32"


def tuned(decoder: Decoder, path: Path | None, widths: tuple[int, ...] = WIDTHS) -> Tuning:
    """The tuning kept at `path` where it still holds for this machine's arithmetic, else a new probe's."""
    kept = read(path)
    dtype = str(decoder.dtype).removeprefix("torch.")
    if (
        kept is not None
        and kept.dtype == dtype
        and _fingerprint(decoder, kept.widths[-1]) == kept.fingerprint
    ):
        return kept
    new = probe(decoder, widths)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(new)))
        temporary.replace(path)
    return new


def probe(decoder: Decoder, widths: tuple[int, ...] = WIDTHS) -> Tuning:
    """Time and compare every width until wider is no longer faster."""
    speed: dict[int, float] = {}
    bits: dict[int, set[str]] = {}
    for width in widths:
        seconds, bits[width] = _try(decoder, width)
        speed[width] = width / seconds
        if speed[width] < 0.8 * max(speed.values()):
            break
    best = max(speed, key=lambda width: speed[width])
    agreeing = tuple(w for w in speed if bits[w] == bits[best] and w <= best)
    is_proven = len(bits[best]) == 1
    return Tuning(
        schema=SCHEMA,
        dtype=str(decoder.dtype).removeprefix("torch."),
        widths=agreeing if is_proven else (best,),
        tokens_per_second={str(w): round(s, 1) for w, s in speed.items()},
        fingerprint=_fingerprint(decoder, best),
        machine=machine(),
        is_proven=is_proven,
    )


def _try(decoder: Decoder, width: int) -> tuple[float, set[str]]:
    """Seconds of a step at this width, and the distinct logits that the witness got."""
    prefix, lone = _witness(decoder)
    seen, seconds = set(), float("inf")
    for slot, n_cells in ((0, 2 * CELL), (width - 1, 3 * CELL), (width // 2, 4 * CELL)):
        slots = _company(decoder, width, n_cells)
        for at, one in zip((*slots.keys, *slots.values), (*lone.keys, *lone.values), strict=True):
            at[slot, :, : one.shape[2]] = one[0]
        lengths = torch.full((width,), _N_OWN)
        lengths[torch.arange(width) != slot] -= torch.arange(width - 1) % 50
        began = time.perf_counter()
        logits = decoder.step(prefix, slots, torch.full((width,), 7), lengths)[slot]
        seconds = min(seconds, time.perf_counter() - began)
        seen.add(_hash(logits))
    return seconds, seen


def _fingerprint(decoder: Decoder, width: int) -> str:
    prefix, lone = _witness(decoder)
    slots = decoder.slots(width, 2 * CELL)
    for at, one in zip((*slots.keys, *slots.values), (*lone.keys, *lone.values), strict=True):
        at[0] = one[0]
    lengths = torch.zeros(width, dtype=torch.long)
    lengths[0] = _N_OWN
    return _hash(decoder.step(prefix, slots, torch.full((width,), 7), lengths)[0])


def _witness(decoder: Decoder) -> tuple[Prefix, Slots]:
    """A prefix and one row's cache with fixed contents of plausible size."""
    shape, stream = decoder.shape, torch.Generator().manual_seed(1)

    def make(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=stream).to(decoder.dtype)

    layers = range(shape.n_layers)
    shared = [[make(shape.n_kv_heads, round_up(_N_PREFIX, CELL), shape.head_dim) for _ in layers] for _ in range(2)]
    own = [[make(1, shape.n_kv_heads, 2 * CELL, shape.head_dim) for _ in layers] for _ in range(2)]
    return Prefix((0,) * _N_PREFIX, shared[0], shared[1]), Slots(own[0], own[1])


def _company(decoder: Decoder, width: int, n_cells: int) -> Slots:
    slots, stream = decoder.slots(width, n_cells), torch.Generator().manual_seed(width)
    filler = torch.randn(slots.keys[0].shape, generator=stream).to(decoder.dtype)
    for cache in (*slots.keys, *slots.values):
        cache.copy_(filler)
    return slots


def _hash(logits: torch.Tensor) -> str:
    return hashlib.sha256(logits.float().numpy().tobytes()).hexdigest()[:16]


def read(path: Path | None) -> Tuning | None:
    """What is kept at `path`, where it was measured by these rules, on this machine and torch."""
    if path is None or not path.exists():
        return None
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Tuning)
        return kept if kept.schema == SCHEMA and kept.machine == machine() else None
    except msgspec.DecodeError:  # a note that can be measured again
        return None
