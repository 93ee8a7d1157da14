"""A forecast of a pre-training on given devices: the best layout, steps and time.

The best layout fits and has the shortest step; among equals, the fewest shards, which send the least. The
stated utilization (MFU) is of the matmuls, with the time that they wait for communication. Recomputed layers
come on top. A plan is of one clean run: LEFT_OUT names what it does not count.

On this machine's CPU, matmuls run at the measured limit of their shapes. Norms, gates, rotations, softmax and
sums are bound by memory: they pass a number of times over activations and logits. Muon adds matmuls per step.

Promises: a pure function of its arguments; what does not fit is refused, with what would fit.
Leaves to others: measuring (core/host.py), FLOPs (rehearsal.py), parameters and bytes (cost_models.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from heredity.core.errors import OutOfMemory, Unavailable, UnknownName, UsageError, how_to_install
from heredity.core.records import Record
from heredity.train.planning import cost_models
from heredity.train.planning.cost_models import Workload
from heredity.train.resources import PRETRAIN_MICROBATCH_TOKENS

CPU = "cpu"


class Gpu(Record, frozen=True):
    """A device. flops: FLOP/s of dense bfloat16 matmuls with fp32 sums; memory: bytes."""

    title: str
    flops: float
    memory: float
    source: str
    rate: float | None = None  # bytes/s of a pass over memory, if measured


GPUS = {
    "h100": Gpu("NVIDIA H100 SXM", 989.4e12, 80e9, "data sheet, half of the 1,979 TFLOPS with sparsity"),
    "h200": Gpu("NVIDIA H200 SXM", 989.4e12, 141e9, "data sheet, half of the 1,979 TFLOPS with sparsity"),
    "b200": Gpu("NVIDIA B200", 2250e12, 180e9, "HGX and DGX B200 data sheets, per device, half of sparse"),
    "a100-80": Gpu("NVIDIA A100 SXM 80 GB", 312e12, 80e9, "data sheet"),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", 165.2e12, 24e9, "Ada GPU architecture whitepaper, appendix A"),
}


def find_gpu(name: str, work: Workload) -> Gpu:
    """A device of GPUS, or "cpu": this machine, measured with torch. Raises UnknownName."""
    if name == CPU:
        return _measure_processor(work)
    if name not in GPUS:
        raise UnknownName("gpu", name, [*GPUS, CPU], "heredity plan --help")
    return GPUS[name]


def _measure_processor(work: Workload) -> Gpu:
    from heredity.core import host

    try:
        import torch

        from heredity.train.resources import matmul_limit, memory_bandwidth
    except ImportError:
        raise Unavailable(f"Measuring this machine needs torch. {how_to_install('torch')}") from None
    dtype = torch.bfloat16 if work.bytes == 2 else torch.float32
    rate = memory_bandwidth(work.shape.width, dtype)
    return this_processor(matmul_limit(work.shape, dtype), host.available_memory(), rate)


def this_processor(flops: float, memory: int | None, rate: float | None = None) -> Gpu:
    """This machine's processor."""
    source = "matrix products of the model's own shapes, measured now; free memory as the system tells it"
    room = float("inf") if memory is None else float(memory)
    return Gpu("this machine's processor", flops, room, source, rate)


class Layout(Record, frozen=True):
    """`shards` devices share one copy of masters, gradients and moments; there are `replicas` copies."""

    kind: Literal["none", "fsdp", "hsdp"]
    shards: int
    replicas: int


def layouts(n: int) -> Iterator[Layout]:
    """All layouts of `n` devices."""
    yield Layout("none", 1, n)
    for shards in range(2, n):
        if n % shards == 0:
            yield Layout("hsdp", shards, n // shards)
    if n > 1:
        yield Layout("fsdp", n, 1)


MEMORY_PASSES = 22.0  # over the activations, fitted to runs of 3M to 150M parameters (docs/results/plans.md)
STEP_TO_FORWARD = 3  # a training step costs three forward passes, an evaluation one
_MUON_FLOPS = 25.0  # FLOPs of a Muon step per parameter and width: five rounds of three matmuls


def cpu_seconds(work: Workload, flops: float, limit: float, rate: float) -> float:
    """Seconds of one unit, forward and backward.

    flops: of the unit. limit: FLOP/s of matmuls. rate: bytes/s of a pass over memory (train/resources.py).
    """
    logits = work.bytes * work.shape.vocabulary * work.head_share if work.picture is None else 0.0
    if work.optimizer == "muon":
        flops += _MUON_FLOPS * work.shape.width * cost_models.cost_model_of(work).matrices / work.batch
    return flops / limit + MEMORY_PASSES * (cost_models.activation_memory(work) + logits) / rate


RECOMPUTE = (0, 2, 1)  # every n-th layer: none, every second one (selective), all
GB = 1e9  # as devices are sold
LEFT_OUT = "failures, restarts, checkpoints, loading, start-up and trial runs"
MFU = 0.4  # Llama 3 (2407.21783, table 4): 0.38 to 0.43 on 8,192 to 16,384 H100


@dataclass(frozen=True)
class Assumptions:
    """The assumptions of a forecast. Raises UsageError for impossible values."""

    mfu: float | None = None  # share of the peak that matmuls reach; None: MFU, or as measured
    reserve: float = 0.1  # of a device's memory, for libraries and fragmentation

    def __post_init__(self) -> None:
        mfu = MFU if self.mfu is None else self.mfu
        if not 0 < mfu <= 1 or not 0 <= self.reserve < 1:
            raise UsageError(
                f"mfu must be above 0 and at most 1 ({mfu:g}), and reserve at least 0 and below 1 "
                f"({self.reserve:g}).",
                code="bad-setting",
            )


class LayoutForecast(Record, frozen=True):
    """One layout. Seconds are per step, bytes per device."""

    layout: Layout
    recompute: int  # activation checkpointing: every n-th layer is recomputed in the backward pass; 0: none
    microbatch: int  # tokens or pairs of a microbatch
    n_microbatches: int  # microbatches per device and step
    memory: dict[str, int]
    seconds: float

    @property
    def needed(self) -> int:
        return sum(self.memory.values())


class Forecast(Record, frozen=True):
    """A forecast. `ways` has the best layout of each kind that fits, and `best` is one of them.

    If `unit` is "pair", fields that name tokens count pairs.
    """

    work: Workload
    unit: Literal["token", "pair"]
    gpu: Gpu
    n_gpus: int
    mfu: float
    is_measured: bool  # whether mfu was measured on this machine, not stated
    reserve: float
    parameters: dict[str, int]
    flops_a_token: dict[str, float]
    flops: float
    best: LayoutForecast
    ways: list[LayoutForecast]
    n_steps: int
    seconds: float
    tokens_a_second: float
    reached_mfu: float  # after recomputation and evaluations
    gpu_hours: float


LAYERS, SCORES, AROUND = "layers", "attention scores", "embedding and head"  # parts of the FLOPs


def forecast(
    work: Workload, flops: Mapping[str, float], gpu: Gpu, n_gpus: int, terms: Assumptions | None = None
) -> Forecast:
    """Forecast a run on `n_gpus` devices. flops: of a unit, by part. Raises UsageError, OutOfMemory."""
    terms = terms or Assumptions()
    fitting = list(fitting_layouts(work, flops, gpu, n_gpus, terms))
    if not fitting:
        raise OutOfMemory(_out_of_memory_message(work, flops, gpu, n_gpus, terms))
    by_kind: dict[str, LayoutForecast] = {}
    for way in sorted(fitting, key=_preference):
        by_kind.setdefault(way.layout.kind, way)
    ways = list(by_kind.values())
    best = ways[0]
    seconds = best.seconds * (work.n_steps + work.n_evaluated / STEP_TO_FORWARD / work.batch)
    total = sum(flops.values()) * work.tokens
    return Forecast(
        work=work,
        unit=work.unit,
        gpu=gpu,
        n_gpus=n_gpus,
        mfu=_expected_mfu(work, flops, gpu, terms),
        is_measured=_is_measured(gpu, terms),
        reserve=terms.reserve,
        parameters=cost_models.cost_model_of(work).parameters,
        flops_a_token=dict(flops),
        flops=total,
        best=best,
        ways=ways,
        n_steps=work.n_steps,
        seconds=seconds,
        tokens_a_second=work.tokens / seconds,
        reached_mfu=total / (seconds * n_gpus * gpu.flops),
        gpu_hours=n_gpus * seconds / 3600,
    )


def fitting_layouts(
    work: Workload, flops: Mapping[str, float], gpu: Gpu, n_gpus: int, terms: Assumptions
) -> Iterator[LayoutForecast]:
    """All layouts that fit. Raises UsageError if a step has fewer chunks than there are devices."""
    room = (1 - terms.reserve) * gpu.memory
    return (way for way in _layout_forecasts(work, flops, gpu, n_gpus, terms) if way.needed <= room)


def _layout_forecasts(
    work: Workload, flops: Mapping[str, float], gpu: Gpu, n_gpus: int, terms: Assumptions
) -> Iterator[LayoutForecast]:
    each = chunks_per_device(work, n_gpus)
    once = each * work.chunk / (_expected_mfu(work, flops, gpu, terms) * gpu.flops)
    at_once = each if work.is_whole else min(each, max(1, PRETRAIN_MICROBATCH_TOKENS // work.chunk))
    n_microbatches, microbatch = -(-each // at_once), at_once * work.chunk
    for layout in layouts(n_gpus):
        for recompute in RECOMPUTE:
            again = recomputed_flops(work, flops, recompute)
            memory = cost_models.training_memory(work, microbatch, layout.shards, recompute, n_microbatches)
            yield LayoutForecast(
                layout, recompute, microbatch, n_microbatches, memory, once * (sum(flops.values()) + again)
            )


def recomputed_flops(work: Workload, flops: Mapping[str, float], recompute: int) -> float:
    """Additional FLOPs of a unit if every `recompute`-th layer runs forward once more; 0: none."""
    if not recompute:
        return 0.0
    towers = cost_models.cost_model_of(work).towers
    share = sum(tower.layers // recompute for tower in towers) / sum(tower.layers for tower in towers)
    return share * (flops[LAYERS] + flops[SCORES]) / STEP_TO_FORWARD


def _expected_mfu(work: Workload, flops: Mapping[str, float], gpu: Gpu, terms: Assumptions) -> float:
    """The stated utilization, or the one of a machine whose memory bandwidth was measured."""
    if not _is_measured(gpu, terms):
        return terms.mfu or MFU
    assert gpu.rate is not None
    total = sum(flops.values())
    return total / (gpu.flops * cpu_seconds(work, total, gpu.flops, gpu.rate))


def _is_measured(gpu: Gpu, terms: Assumptions) -> bool:
    return gpu.rate is not None and terms.mfu is None


def chunks_per_device(work: Workload, n_gpus: int) -> int:
    """Contexts or pairs per device and step. Raises UsageError if there are too few."""
    if n_gpus < 1:
        raise UsageError(f"A plan needs at least one device, not {n_gpus}.", code="bad-setting")
    chunks = max(1, work.batch // work.chunk)
    if chunks < n_gpus:
        has = (
            f"has {chunks:,} contexts of {work.chunk:,}, too few" if work.unit == "token" else "is too small"
        )
        raise UsageError(
            f"A step of {work.batch:,} {work.unit}s {has} for {n_gpus:,} devices. "
            f"Take at most --gpus {chunks}, or a batch of {n_gpus * work.chunk:,}."
        )
    return math.ceil(chunks / n_gpus)


def _preference(way: LayoutForecast) -> tuple[float, int, int]:
    return way.seconds, way.layout.shards, way.needed


def _out_of_memory_message(
    work: Workload, flops: Mapping[str, float], gpu: Gpu, n_gpus: int, terms: Assumptions
) -> str:
    def fits(other: Gpu, n: int) -> bool:
        return any(fitting_layouts(work, flops, other, n, terms))

    least = min(_layout_forecasts(work, flops, gpu, n_gpus, terms), key=lambda way: way.needed)
    parts = ", ".join(f"{name} {size / GB:.1f}" for name, size in least.memory.items())
    room = (1 - terms.reserve) * gpu.memory / GB
    alternatives, n = [], 2 * n_gpus
    while gpu in GPUS.values() and n <= work.batch // work.chunk:
        if fits(gpu, n):
            alternatives.append(f"{n:,} of these")
            break
        n *= 2
    larger = (other for other in GPUS.values() if other.memory > gpu.memory)
    alternatives += [f"{n_gpus:,} of {each.title}" for each in larger if fits(each, n_gpus)]
    advice = "Lower size, context or batch" if work.unit == "token" else "Lower size, batch or picture"
    if alternatives:
        advice = f"It would fit on {', or '.join(alternatives)}. Or: {advice.lower()}"
    return (
        f"The run needs at least {least.needed / GB:.1f} GB on each device ({parts}), and "
        f"{room:.1f} GB of {gpu.title} may be used. {advice}."
    )
