"""A forecast of a pre-training on given devices: the best layout, steps and time.

The best layout fits and has the shortest step; among equals, the least communication. The communication of
sharding overlaps with matmuls, so a step takes the longer of both. Matmuls wait for that of tensor and
pipeline parallelism. The stated utilization (MFU) is of the matmuls; recomputed layers, waiting and a
pipeline's bubble come on top. A plan is of one clean run: LEFT_OUT names what it does not count.

On this machine's CPU, matmuls run at the measured limit of their shapes. Norms, gates, rotations, softmax and
sums are bound by memory: they pass a number of times over activations and logits. Muon adds matmuls per step.

Promises: a pure function of its arguments; what does not fit is refused, with what would fit.
Leaves to others: measuring (core/host.py), and the arithmetic (cost_models.py).
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from heredity.core.errors import OutOfMemory, Unavailable, UnknownName, UsageError, how_to_install
from heredity.core.records import Record
from heredity.train.planning import cost_models
from heredity.train.planning.cost_models import Workload
from heredity.train.resources import FP32_BYTES, PRETRAIN_MICROBATCH_TOKENS

_TABLE = Path(__file__).with_name("gpus.toml")
CPU = "cpu"


class Gpu(Record, frozen=True):
    """A device. gpus.toml documents each field."""

    title: str
    flops: float
    memory: float
    node: int
    link: float
    network: float
    hops: tuple[float, float]
    source: str
    rate: float | None = None  # bytes/s of a pass over memory, if measured


@cache
def gpu_table() -> dict[str, Gpu]:
    """The devices of gpus.toml, by name."""
    return msgspec.convert(tomllib.loads(_TABLE.read_text("utf-8")), dict[str, Gpu])


def find_gpu(name: str, work: Workload) -> Gpu:
    """A device of the table, or "cpu": this machine, measured with torch. Raises UnknownName."""
    if name == CPU:
        return _measure_processor(work)
    if name not in gpu_table():
        raise UnknownName("gpu", name, [*gpu_table(), CPU], "heredity plan --help")
    return gpu_table()[name]


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
    return Gpu("this machine's processor", flops, room, 1, 1e9, 1e9, (1e-5, 1e-5), source, rate)


_BASE = 8.4e-6  # seconds per collective (tuning.cc: baseLat of Ring, Simple)


class Layout(Record, frozen=True):
    """`shards` devices share one copy of masters, gradients and moments; there are `replicas` copies."""

    kind: Literal["none", "fsdp", "hsdp"]
    shards: int
    replicas: int
    tensor: int = 1  # devices that split each matrix
    pipeline: int = 1  # stages

    @property
    def n_devices(self) -> int:
        """All devices of the layout."""
        return self.shards * self.replicas * self.tensor * self.pipeline


class CommunicationCost(NamedTuple):
    """Per device and step: bytes sent, and seconds."""

    bytes: float
    seconds: float


def layouts(n: int, tensor: int = 1, pipeline: int = 1) -> Iterator[Layout]:
    """All layouts of `n` groups of `tensor` x `pipeline` devices."""
    beside = tensor, pipeline
    yield Layout("none", 1, n, *beside)
    for shards in range(2, n):
        if n % shards == 0:
            yield Layout("hsdp", shards, n // shards, *beside)
    if n > 1:
        yield Layout("fsdp", n, 1, *beside)


def communication(work: Workload, layout: Layout, n_microbatches: int, gpu: Gpu) -> CommunicationCost:
    """The communication of a step of `n_microbatches` that sharding adds, for one stage's part of `work`."""
    made = cost_models.cost_model_of(work)
    n, calls = made.n_parameters / layout.tensor, made.n_layers + 1
    in_node = max(1, gpu.node // layout.tensor)  # of the devices with equal parts of the matrices
    embeddings = _embeddings_cost(work, layout, gpu)
    if layout.kind == "none":
        alike = _all_reduce_cost(FP32_BYTES * n, calls, layout.replicas, min(in_node, layout.replicas), gpu)
        return _total(alike, embeddings)
    spread = layout.shards, min(in_node, layout.shards), gpu
    there = _ring_cost(
        work.bytes * (made.root + 2 * made.in_layers) / layout.tensor, 2 * calls - 1, *spread
    )  # the root stays gathered
    back = _ring_cost(FP32_BYTES * n, calls, *spread)
    within = CommunicationCost(
        n_microbatches * (there.bytes + back.bytes), n_microbatches * (there.seconds + back.seconds)
    )
    apart = max(1, in_node // layout.shards)  # devices of a node with the same shard
    over = _all_reduce_cost(
        FP32_BYTES * n / layout.shards, calls, layout.replicas, min(apart, layout.replicas), gpu
    )
    muon = made.matrices / layout.tensor if work.optimizer == "muon" else 0  # Muon needs whole matrices
    stepped = _ring_cost(FP32_BYTES * muon, made.n_layers, *spread)
    return _total(within, over, stepped, embeddings)


def waiting_cost(
    work: Workload, layout: Layout, microbatch: int, recompute: int, gpu: Gpu
) -> CommunicationCost:
    """The communication of a microbatch of one stage for which matmuls wait: bytes and seconds per device.

    Tensor parallel: two all-gathers and two reduce-scatters of a layer's activations forward, as many
    backward, and the forward ones once more where layers are recomputed. Pipeline: after each layer,
    activations to the next stage, and their gradients back.
    """
    made = cost_models.cost_model_of(work)
    size = work.bytes * microbatch * work.shape.width
    passes = 2 + (made.n_layers // recompute / made.n_layers if recompute else 0)
    calls = round(4 * passes * made.n_layers)
    within = _ring_cost(float(calls * size), calls, layout.tensor, min(gpu.node, layout.tensor), gpu)
    if layout.pipeline == 1:
        return within
    handed = 2 * made.n_layers * size / layout.tensor
    link = gpu.link if layout.tensor * layout.pipeline <= gpu.node else gpu.network
    return _total(within, CommunicationCost(handed, handed / link + 2 * made.n_layers * _BASE))


def _total(*costs: CommunicationCost) -> CommunicationCost:
    return CommunicationCost(sum(each.bytes for each in costs), sum(each.seconds for each in costs))


def _embeddings_cost(work: Workload, layout: Layout, gpu: Gpu) -> CommunicationCost:
    """The all-gather of image and caption embeddings in fp32, forward and backward."""
    if work.unit == "token":
        return CommunicationCost(0.0, 0.0)
    n = layout.shards * layout.replicas
    return _ring_cost(2 * 2 * FP32_BYTES * work.batch * work.shape.width, 4, n, min(gpu.node, n), gpu)


def _ring_cost(size: float, calls: int, ranks: int, in_node: int, gpu: Gpu) -> CommunicationCost:
    """All-gathers or reduce-scatters of `size` bytes in total. in_node: ranks per node."""
    if ranks == 1 or not size:
        return CommunicationCost(0.0, 0.0)
    nodes = math.ceil(ranks / in_node)
    n_bytes = size * (ranks - 1) / ranks
    wait = _BASE + (ranks - nodes) * gpu.hops[0] + (nodes - 1) * gpu.hops[1]
    return CommunicationCost(n_bytes, n_bytes / _bandwidth(in_node, nodes, gpu) + calls * wait)


def _all_reduce_cost(size: float, calls: int, ranks: int, in_node: int, gpu: Gpu) -> CommunicationCost:
    """All-reduces: two rings, or a tree of nodes."""
    if ranks == 1:
        return CommunicationCost(0.0, 0.0)
    nodes = math.ceil(ranks / in_node)
    ring = (ranks - nodes) * gpu.hops[0] + (nodes - 1) * gpu.hops[1]
    tree = (in_node - 1) * gpu.hops[0] + math.log2(nodes) * gpu.hops[1]
    n_bytes = 2 * size * (ranks - 1) / ranks
    return CommunicationCost(
        n_bytes, n_bytes / _bandwidth(in_node, nodes, gpu) + calls * (_BASE + 2 * min(ring, tree))
    )


def _bandwidth(in_node: int, nodes: int, gpu: Gpu) -> float:
    """Every device of a node has its own network link, and a ring uses all of them."""
    return gpu.link if nodes == 1 else min(gpu.link, in_node * gpu.network)


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
    tensor: int = 1  # devices that split each matrix
    pipeline: int = 1  # stages

    def __post_init__(self) -> None:
        mfu = MFU if self.mfu is None else self.mfu
        if not 0 < mfu <= 1 or not 0 <= self.reserve < 1:
            raise UsageError(
                f"mfu must be above 0 and at most 1 ({mfu:g}), and reserve at least 0 and below 1 "
                f"({self.reserve:g}).",
                code="bad-setting",
            )
        if self.tensor < 1 or self.pipeline < 1:
            raise UsageError(
                f"Tensor and pipeline parallelism take at least 1 device each, not {self.tensor} and "
                f"{self.pipeline}.",
                code="bad-setting",
            )


class LayoutForecast(Record, frozen=True):
    """One layout. Seconds are per step, bytes per device."""

    layout: Layout
    recompute: int  # activation checkpointing: every n-th layer is recomputed in the backward pass; 0: none
    microbatch: int  # tokens or pairs of a microbatch
    n_microbatches: int  # microbatches per device and step
    memory: dict[str, int]
    matmul_seconds: float
    communication_seconds: float
    communication_bytes: float
    waiting_seconds: float = 0.0  # matmuls wait for tensor and pipeline parallelism
    bubble: float = 0.0  # idle time of a pipeline, over the busy time

    @property
    def needed(self) -> int:
        return sum(self.memory.values())

    @property
    def seconds(self) -> float:
        busy = self.matmul_seconds + self.waiting_seconds
        return max(busy * (1 + self.bubble), self.communication_seconds)


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
    reached_mfu: float  # after recomputation, evaluations, and communication that matmuls do not hide
    gpu_hours: float


def forecast(work: Workload, gpu: Gpu, n_gpus: int, terms: Assumptions | None = None) -> Forecast:
    """Forecast a run on `n_gpus` devices. Raises UsageError, OutOfMemory."""
    terms = terms or Assumptions()
    found = list(fitting_layouts(work, gpu, n_gpus, terms))
    if not found:
        raise OutOfMemory(_out_of_memory_message(work, gpu, n_gpus, terms))
    ways = [min(some, key=_preference) for some in _by_kind(found).values()]
    best = min(ways, key=_preference)
    made = cost_models.cost_model_of(work)
    seconds = best.seconds * (work.n_steps + work.n_evaluated / STEP_TO_FORWARD / work.batch)
    flops = sum(made.flops.values()) * work.tokens
    return Forecast(
        work=work,
        unit=work.unit,
        gpu=gpu,
        n_gpus=n_gpus,
        mfu=_expected_mfu(work, gpu, terms),
        is_measured=_is_measured(gpu, terms),
        reserve=terms.reserve,
        parameters=made.parameters,
        flops_a_token=made.flops,
        flops=flops,
        best=best,
        ways=ways,
        n_steps=work.n_steps,
        seconds=seconds,
        tokens_a_second=work.tokens / seconds,
        reached_mfu=flops / (seconds * n_gpus * gpu.flops),
        gpu_hours=n_gpus * seconds / 3600,
    )


def fitting_layouts(work: Workload, gpu: Gpu, n_gpus: int, terms: Assumptions) -> Iterator[LayoutForecast]:
    """All layouts that fit. Raises UsageError if a step has fewer chunks than there are devices."""
    room = (1 - terms.reserve) * gpu.memory
    return (way for way in _layout_forecasts(work, gpu, n_gpus, terms) if way.needed <= room)


def _layout_forecasts(work: Workload, gpu: Gpu, n_gpus: int, terms: Assumptions) -> Iterator[LayoutForecast]:
    stage = _stage(work, terms)
    n_groups = _groups(n_gpus, terms)
    each, made = chunks_per_device(work, n_groups, terms), cost_models.cost_model_of(stage)
    flops = sum(made.flops.values()) / terms.tensor
    once = each * work.chunk * flops / (_expected_mfu(work, gpu, terms) * gpu.flops)
    at_once = each if work.is_whole else min(each, max(1, PRETRAIN_MICROBATCH_TOKENS // work.chunk))
    n_microbatches, microbatch = -(-each // at_once), at_once * work.chunk
    for layout in layouts(n_groups, terms.tensor, terms.pipeline):
        cost = communication(stage, layout, n_microbatches, gpu)
        for recompute in RECOMPUTE:
            waiting = waiting_cost(stage, layout, microbatch, recompute, gpu)
            yield LayoutForecast(
                layout,
                recompute,
                microbatch,
                n_microbatches,
                _needed(stage, layout, microbatch, recompute, n_microbatches),
                once * (1 + made.again(recompute)),
                cost.seconds,
                cost.bytes + n_microbatches * waiting.bytes,
                n_microbatches * waiting.seconds,
                (terms.pipeline - 1) / (n_microbatches * stage.shape.layers),
            )


def _needed(
    stage: Workload, layout: Layout, microbatch: int, recompute: int, n_microbatches: int
) -> dict[str, int]:
    """Bytes by part on a device of the first stage, which holds the activations of the most microbatches.

    Embedding and head are counted on it, although a stage in the middle of a pipeline has neither. An
    interleaved schedule holds somewhat more than one microbatch per stage (2104.04473, section 2.2).
    """
    parts = cost_models.training_memory(stage, microbatch, layout.shards, recompute, n_microbatches)
    n_stages = layout.pipeline
    held = min(n_stages, n_microbatches) * (1 + (n_stages - 1) / (n_stages * stage.shape.layers)) - 1
    parts["activations"] += round(held * microbatch * cost_models.activation_memory(stage, recompute))
    return {name: -(-size // layout.tensor) for name, size in parts.items()}


def _stage(work: Workload, terms: Assumptions) -> Workload:
    """The work of the largest stage of a pipeline. Raises UsageError if layers or heads cannot be split."""
    if terms.tensor * terms.pipeline == 1:
        return work
    if work.unit == "pair":
        raise UsageError(
            "Tensor and pipeline parallelism are planned for text models only.", code="bad-setting"
        )
    if terms.pipeline > work.shape.layers or work.shape.kv_heads % terms.tensor:
        raise UsageError(
            f"{work.shape.layers} layers and {work.shape.kv_heads} key and value heads cannot be split into "
            f"{terms.pipeline} stages of {terms.tensor} devices. Take at most {work.shape.layers} stages, and"
            " a divisor of the heads.",
            code="bad-setting",
        )
    shape = msgspec.structs.replace(work.shape, layers=-(-work.shape.layers // terms.pipeline))
    return msgspec.structs.replace(work, shape=shape)


def _groups(n_gpus: int, terms: Assumptions) -> int:
    """Groups of devices that each hold one split copy. Raises UsageError if the devices do not divide."""
    n_groups, rest = divmod(n_gpus, terms.tensor * terms.pipeline)
    if rest or n_gpus < 1:
        each = f"{terms.tensor} x {terms.pipeline}"
        whole = "at least one device" if n_gpus < 1 else f"a multiple of {each} devices"
        raise UsageError(f"A plan needs {whole}, not {n_gpus}.", code="bad-setting")
    return n_groups


def _expected_mfu(work: Workload, gpu: Gpu, terms: Assumptions) -> float:
    """The stated utilization, or the one of a machine whose memory bandwidth was measured."""
    if not _is_measured(gpu, terms):
        return terms.mfu or MFU
    assert gpu.rate is not None
    flops = sum(cost_models.cost_model_of(work).flops.values())
    return flops / (gpu.flops * cpu_seconds(work, flops, gpu.flops, gpu.rate))


def _is_measured(gpu: Gpu, terms: Assumptions) -> bool:
    return gpu.rate is not None and terms.mfu is None


def chunks_per_device(work: Workload, n_groups: int, terms: Assumptions | None = None) -> int:
    """Contexts or pairs per group of devices and step; a group is one device without tensor or pipeline
    parallelism. Raises UsageError if there are too few."""
    size = 1 if terms is None else terms.tensor * terms.pipeline
    chunks, n_gpus = max(1, work.batch // work.chunk), n_groups * size
    if chunks < n_groups:
        has = (
            f"has {chunks:,} contexts of {work.chunk:,}, too few" if work.unit == "token" else "is too small"
        )
        raise UsageError(
            f"A step of {work.batch:,} {work.unit}s {has} for {n_gpus:,} devices. "
            f"Take at most --gpus {chunks * size}, or a batch of {n_groups * work.chunk:,}."
        )
    return math.ceil(chunks / n_groups)


def _preference(way: LayoutForecast) -> tuple[float, float, int]:
    return way.seconds, way.communication_seconds, way.needed


def _by_kind(ways: list[LayoutForecast]) -> Mapping[str, list[LayoutForecast]]:
    found: dict[str, list[LayoutForecast]] = {}
    for way in ways:
        found.setdefault(way.layout.kind, []).append(way)
    return found


def _out_of_memory_message(work: Workload, gpu: Gpu, n_gpus: int, terms: Assumptions) -> str:
    least = min(_layout_forecasts(work, gpu, n_gpus, terms), key=lambda way: way.needed)
    parts = ", ".join(f"{name} {size / GB:.1f}" for name, size in least.memory.items())
    room = (1 - terms.reserve) * gpu.memory / GB
    return (
        f"The run needs at least {least.needed / GB:.1f} GB on each device ({parts}), and "
        f"{room:.1f} GB of {gpu.title} may be used. {_what_would_fit(work, gpu, n_gpus, terms)}"
    )


def _what_would_fit(work: Workload, gpu: Gpu, n_gpus: int, terms: Assumptions) -> str:

    parts = []
    if (n := _enough_devices(work, gpu, n_gpus, terms)) is not None:
        parts.append(f"{n:,} of these")
    larger = (other for other in gpu_table().values() if other.memory > gpu.memory)
    parts += [
        f"{n_gpus:,} of {each.title}" for each in larger if any(fitting_layouts(work, each, n_gpus, terms))
    ]
    advice = "Lower size, context or batch" if work.unit == "token" else "Lower size, batch or picture"
    return f"It would fit on {', or '.join(parts)}. Or: {advice.lower()}." if parts else f"{advice}."


def _enough_devices(work: Workload, gpu: Gpu, n_gpus: int, terms: Assumptions) -> int | None:
    """The smallest doubling of devices on which the run fits, with a chunk for each, or None."""
    most = work.batch // work.chunk * terms.tensor * terms.pipeline
    while gpu.node > 1 and (n_gpus := 2 * n_gpus) <= most:
        if any(fitting_layouts(work, gpu, n_gpus, terms)):
            return n_gpus
    return None
