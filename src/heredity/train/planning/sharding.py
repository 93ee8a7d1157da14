"""How weights can be sharded over devices, and the time of communication per step.

none   every device has all weights, and gradients are all-reduced
fsdp   one shard per device (ZeRO-3, 1910.02054; FSDP, 2304.11277)
hsdp   shards within a group of devices; gradients are all-reduced over groups, once per step

Tensor parallelism (1909.08053) splits the matrices of a layer over devices of a node, and its activations
along the sequence (2205.05198). Pipeline parallelism (2104.04473) splits the layers into stages; its schedule
is interleaved 1F1B with one layer per virtual stage. heredity plans both and trains with neither.

The time of a collective is that of NCCL's tuning model (src/graph/tuning.cc). It is bytes over the slowest
link of a ring, plus a latency per step of a ring or a tree, whichever is less.

Promises: a pure function of numbers.
Leaves to others: whether a layout fits (memory.py), and which one is best (forecast.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from heredity.core.records import Record
from heredity.train.planning import cost_models
from heredity.train.planning.gpus import Gpu
from heredity.train.planning.workload import Workload
from heredity.train.resources import FP32_BYTES

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


def waiting(work: Workload, layout: Layout, microbatch: int, recompute: int, gpu: Gpu) -> CommunicationCost:
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
