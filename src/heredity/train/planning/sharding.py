"""How weights lie on many devices, and how long these talk a step.

none   every device has all of it, gradients are summed over all (all-reduce)
fsdp   a shard each over all devices (ZeRO-3, 1910.02054; FSDP, 2304.11277)
hsdp   shards within a group, groups alike; gradients are summed over groups, once a step

A collective's time is the model with which NCCL chooses (src/graph/tuning.cc): bytes over the slowest link of
a ring, and a latency a step of the ring or of a tree, whichever is less.

Promises: a pure function of numbers.
Leaves to others: whether it fits (memory.py) and which is best (forecast.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from heredity.core.records import Record
from heredity.train.memory import FP32_BYTES
from heredity.train.planning import cost_models
from heredity.train.planning.gpus import Gpu
from heredity.train.planning.workload import Workload

_BASE = 8.4e-6  # seconds of any collective (tuning.cc: baseLat of Ring, Simple)


class Layout(Record, frozen=True):
    """`shards` devices hold one copy of masters, gradients and moments; there are `replicas` of these."""

    kind: Literal["none", "fsdp", "hsdp"]
    shards: int
    replicas: int


class CommunicationCost(NamedTuple):
    """Of one device and step: bytes that it sends, and seconds."""

    bytes: float
    seconds: float


def layouts(n: int) -> Iterator[Layout]:
    """All that `n` devices can have."""
    yield Layout("none", 1, n)
    for shards in range(2, n):
        if n % shards == 0:
            yield Layout("hsdp", shards, n // shards)
    if n > 1:
        yield Layout("fsdp", n, 1)


def communication(work: Workload, layout: Layout, n_products: int, gpu: Gpu) -> CommunicationCost:
    """What a step of so many products takes."""
    made = cost_models.cost_model_of(work)
    n, calls = made.n_parameters, made.n_layers + 1
    arrows = _embeddings_cost(work, layout, gpu)
    if layout.kind == "none":
        alike = _all_reduce_cost(FP32_BYTES * n, calls, layout.replicas, min(gpu.node, layout.replicas), gpu)
        return _total(alike, arrows)
    spread = layout.shards, min(gpu.node, layout.shards), gpu
    there = _ring_cost(
        work.bytes * (made.root + 2 * made.in_layers), 2 * calls - 1, *spread
    )  # the root stays
    back = _ring_cost(FP32_BYTES * n, calls, *spread)
    within = CommunicationCost(
        n_products * (there.bytes + back.bytes), n_products * (there.seconds + back.seconds)
    )
    apart = max(1, gpu.node // layout.shards)  # devices of one node that have the same shard
    over = _all_reduce_cost(
        FP32_BYTES * n / layout.shards, calls, layout.replicas, min(apart, layout.replicas), gpu
    )
    muon = made.matrices if work.optimizer == "muon" else 0  # which wants whole matrices
    stepped = _ring_cost(FP32_BYTES * muon, made.n_layers, *spread)
    return _total(within, over, stepped, arrows)


def _total(*said: CommunicationCost) -> CommunicationCost:
    return CommunicationCost(sum(each.bytes for each in said), sum(each.seconds for each in said))


def _embeddings_cost(work: Workload, layout: Layout, gpu: Gpu) -> CommunicationCost:
    """Of pairs that are told from those of all devices: both arrows of each in fp32, there and back."""
    if work.unit == "token":
        return CommunicationCost(0.0, 0.0)
    n = layout.shards * layout.replicas
    return _ring_cost(2 * 2 * FP32_BYTES * work.batch * work.shape.width, 4, n, min(gpu.node, n), gpu)


def _ring_cost(size: float, calls: int, ranks: int, in_node: int, gpu: Gpu) -> CommunicationCost:
    """All-gathers or reduce-scatters of `size` bytes together, over ranks of which so many share a node."""
    if ranks == 1 or not size:
        return CommunicationCost(0.0, 0.0)
    nodes = math.ceil(ranks / in_node)
    sent = size * (ranks - 1) / ranks
    wait = _BASE + (ranks - nodes) * gpu.hops[0] + (nodes - 1) * gpu.hops[1]
    return CommunicationCost(sent, sent / _bandwidth(in_node, nodes, gpu) + calls * wait)


def _all_reduce_cost(size: float, calls: int, ranks: int, in_node: int, gpu: Gpu) -> CommunicationCost:
    """All-reduces: twice a ring, or a tree of nodes."""
    if ranks == 1:
        return CommunicationCost(0.0, 0.0)
    nodes = math.ceil(ranks / in_node)
    ring = (ranks - nodes) * gpu.hops[0] + (nodes - 1) * gpu.hops[1]
    tree = (in_node - 1) * gpu.hops[0] + math.log2(nodes) * gpu.hops[1]
    sent = 2 * size * (ranks - 1) / ranks
    return CommunicationCost(
        sent, sent / _bandwidth(in_node, nodes, gpu) + calls * (_BASE + 2 * min(ring, tree))
    )


def _bandwidth(in_node: int, nodes: int, gpu: Gpu) -> float:
    """Each of a node's devices has its own way out of it, and a ring a lane through each."""
    return gpu.link if nodes == 1 else min(gpu.link, in_node * gpu.network)
