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

from heredity.records import Record
from heredity.train.planning import memory, parts
from heredity.train.planning.gpus import Gpu
from heredity.train.planning.work import Work

_BASE = 8.4e-6  # seconds of any collective (tuning.cc: baseLat of Ring, Simple)


class Layout(Record, frozen=True):
    """`shards` devices hold one copy of masters, gradients and moments; there are `replicas` of these."""

    kind: Literal["none", "fsdp", "hsdp"]
    shards: int
    replicas: int


class Talk(NamedTuple):
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


def talk(work: Work, layout: Layout, n_products: int, gpu: Gpu) -> Talk:
    """What a step of so many products takes."""
    n, calls = memory.n_parameters(work), work.shape.layers + 1
    if layout.kind == "none":
        return _summed(memory.WIDE * n, calls, layout.replicas, min(gpu.node, layout.replicas), gpu)
    root, layers = memory.gathered(work.shape, work.has_qk_norm)
    spread = layout.shards, min(gpu.node, layout.shards), gpu
    there = _ring(work.bytes * (root + 2 * layers), 2 * calls - 1, *spread)  # the root stays gathered
    back = _ring(memory.WIDE * n, calls, *spread)
    within = Talk(n_products * (there.bytes + back.bytes), n_products * (there.seconds + back.seconds))
    apart = max(1, gpu.node // layout.shards)  # devices of one node that have the same shard
    over = _summed(memory.WIDE * n / layout.shards, calls, layout.replicas, min(apart, layout.replicas), gpu)
    stepped = _ring(memory.WIDE * _muon(work), work.shape.layers, *spread)  # Muon wants whole matrices
    said = (within, over, stepped)
    return Talk(sum(each.bytes for each in said), sum(each.seconds for each in said))


def _muon(work: Work) -> int:
    return parts.hidden_matrices(work.shape) if work.optimizer == "muon" else 0


def _ring(size: float, calls: int, ranks: int, in_node: int, gpu: Gpu) -> Talk:
    """All-gathers or reduce-scatters of `size` bytes together, over ranks of which so many share a node."""
    if ranks == 1 or not size:
        return Talk(0.0, 0.0)
    nodes = math.ceil(ranks / in_node)
    sent = size * (ranks - 1) / ranks
    wait = _BASE + (ranks - nodes) * gpu.hops[0] + (nodes - 1) * gpu.hops[1]
    return Talk(sent, sent / _speed(in_node, nodes, gpu) + calls * wait)


def _summed(size: float, calls: int, ranks: int, in_node: int, gpu: Gpu) -> Talk:
    """All-reduces: twice a ring, or a tree of nodes."""
    if ranks == 1:
        return Talk(0.0, 0.0)
    nodes = math.ceil(ranks / in_node)
    ring = (ranks - nodes) * gpu.hops[0] + (nodes - 1) * gpu.hops[1]
    tree = (in_node - 1) * gpu.hops[0] + math.log2(nodes) * gpu.hops[1]
    sent = 2 * size * (ranks - 1) / ranks
    return Talk(sent, sent / _speed(in_node, nodes, gpu) + calls * (_BASE + 2 * min(ring, tree)))


def _speed(in_node: int, nodes: int, gpu: Gpu) -> float:
    """Each of a node's devices has its own way out of it, and a ring a lane through each."""
    return gpu.link if nodes == 1 else min(gpu.link, in_node * gpu.network)
