"""The processes of one training, as torchrun starts them: ranks, shards and collectives.

CPUs communicate by gloo, GPUs by NCCL, one process per GPU.

Promises: in a single process every collective is the identity. No object is pickled on its way to another
process. If one process ends, the others end too.
Leaves to others: sharding weights (sharded.py), checkpoints (checkpoint.py), what each process reads (data/).
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from heredity.core import host
from heredity.core.errors import HeredityError, Unavailable, UsageError
from heredity.core.host import Device
from heredity.train.data.batching import PackedBatch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
_TIMEOUT = timedelta(minutes=30)  # for the slowest; the first may hash models before it begins
_RELEASE_SECONDS = 0.2  # seconds; it takes microseconds where a core is free


@dataclass(frozen=True)
class DistContext:
    """This process, `rank` of `world_size`. mesh: (replicas, shards), or None in a single process."""

    rank: int = 0
    world_size: int = 1
    replicas: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: DeviceMesh | None = None

    @property
    def is_single_process(self) -> bool:
        """Whether this is the only process."""
        return self.mesh is None

    @property
    def is_main_process(self) -> bool:
        """Whether this is the main process: it writes, the others only compute."""
        return self.rank == 0

    @property
    def n_shards(self) -> int:
        """Processes that the weights are sharded over."""
        return self.world_size // self.replicas

    @property
    def shard_index(self) -> int:
        """The index of this process's shard of every weight."""
        return self.rank % self.n_shards

    def rows(self, n: int) -> tuple[int, int]:
        """(first row, end) of this process's shard of `n` rows."""
        return shard_span(n, self.shard_index, self.n_shards)

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Sum each number over all processes."""
        if self.is_single_process:
            return list(numbers)
        totals = torch.tensor(list(numbers), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(totals)
        return [float(each) for each in totals.tolist()]

    def broadcast(self, numbers: Sequence[float]) -> list[float]:
        """The numbers of the main process, in every process."""
        if self.is_single_process:
            return list(numbers)
        n = int(self.sum([len(numbers) if self.is_main_process else 0])[0])
        return self.sum(list(numbers) if self.is_main_process else [0.0] * n) if n else []

    def barrier(self) -> None:
        """Wait for every process."""
        self.sum([0.0])

    def norm(self, of_shard: float) -> float:
        """The norm of a vector, given the norm of this process's shard of it."""
        return of_shard if self.is_single_process else math.sqrt(self.sum([of_shard**2])[0] / self.replicas)

    def to_device(self, batch: PackedBatch) -> PackedBatch:
        """The batch on this process's device."""
        return batch if self.device.type == "cpu" else batch.to(self.device)


SINGLE_PROCESS = DistContext()


def placed(dist: DistContext | None, device: Device) -> DistContext:
    """A single process on a device; several processes stay on theirs."""
    host.prepare_device(device)
    return DistContext(device=device.torch) if dist is None or dist.is_single_process else dist


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """This process's shard of a tensor; the whole tensor if it is not sharded."""
    mine: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return mine


def shard_span(n: int, shard_index: int, n_shards: int) -> tuple[int, int]:
    """(first row, end) of a shard, as FSDP splits `n` rows: equal sizes while rows are left."""
    each = -(-n // n_shards)
    return min(n, shard_index * each), min(n, (shard_index + 1) * each)


def is_torchrun() -> bool:
    """Whether torchrun started this process."""
    return all(name in os.environ for name in _TORCHRUN_VARIABLES)


@contextmanager
def process_group(replicas: int = 1, device: Device | None = None) -> Iterator[DistContext]:
    """Join the processes that torchrun started, and leave them at the end; otherwise a single process.

    replicas: groups of processes that hold all weights each; 1: weights are sharded over all processes.
    device: where to compute (host.choose_device). Of several processes each has the GPU of its local rank.
    Raises UsageError if replicas do not divide the processes, HeredityError if another process has ended.
    """
    if not is_torchrun():
        _check_replicas(replicas, 1)
        yield placed(None, host.choose_device(device))
        return
    _check_replicas(replicas, int(os.environ["WORLD_SIZE"]))
    if not torch.distributed.is_available():
        raise Unavailable(
            "This torch has no distributed support. Install one that has, or run without torchrun."
        )
    joined = _join(replicas, device)
    try:
        yield joined
    except RuntimeError as error:
        if not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise
        raise HeredityError(
            "Another process of this training has ended; see its own message. Run the same command to resume "
            "from the last checkpoint."
        ) from error
    object.__setattr__(joined, "mesh", None)
    gc.collect()
    torch.distributed.destroy_process_group()
    time.sleep(_RELEASE_SECONDS)


def _check_replicas(replicas: int, world_size: int) -> None:
    if world_size % replicas:
        raise UsageError(
            f"{replicas} replicas of the weights do not divide {world_size} "
            f"process{'es' * (world_size > 1)}. Set replicas to a divisor."
        )


def _join(replicas: int, device: Device | None) -> DistContext:
    chosen = host.choose_device(device)
    if chosen.kind == "mps":
        raise Unavailable(
            "Several processes train on processors or on CUDA devices, not on mps. Add --device cpu."
        )
    chosen = chosen if chosen.is_cpu else host.choose_device(Device("cuda", int(os.environ["LOCAL_RANK"])))
    where = chosen.torch
    if not chosen.is_cpu:
        torch.cuda.set_device(where)
    bound = None if chosen.is_cpu else where
    backend = "gloo" if chosen.is_cpu else "nccl"
    torch.distributed.init_process_group(backend, timeout=_TIMEOUT, device_id=bound)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    shape = (replicas, world_size // replicas)
    mesh = torch.distributed.device_mesh.init_device_mesh(
        where.type, shape, mesh_dim_names=("replicas", "shards")
    )
    return DistContext(rank, world_size, replicas, where, mesh)


def rank_span(n: int, rank: int, world_size: int) -> tuple[int, int]:
    """(first row, end) of a process\'s share of `n` rows; shares differ by at most one row.

    FSDP's split (shard_span) would leave the last of 4 processes without any of 9 rows.
    """
    return n * rank // world_size, n * (rank + 1) // world_size


def all_gather(mine: torch.Tensor, n: int, dist: DistContext) -> torch.Tensor:
    """(rows of this process, width) -> (n, width), with rows split by `rank_span`. Differentiable."""
    if dist.is_single_process:
        return mine
    gathered: torch.Tensor = _AllGather.apply(mine, n, dist)  # type: ignore[no-untyped-call]
    return gathered


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor, n: int, dist: DistContext) -> torch.Tensor:
        spans = [rank_span(n, rank, dist.world_size) for rank in range(dist.world_size)]
        ctx.span = spans[dist.rank]
        most = max(high - low for low, high in spans)
        filled = torch.nn.functional.pad(mine, (0, 0, 0, most - len(mine)))  # gloo sends rows of one number
        got = [torch.empty_like(filled) for _ in spans]
        torch.distributed.all_gather(got, filled)
        return torch.cat([each[: high - low] for each, (low, high) in zip(got, spans, strict=True)])

    @staticmethod
    def backward(ctx: Any, whole: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        whole = whole.contiguous()
        torch.distributed.all_reduce(whole)
        return whole[slice(*ctx.span)], None, None
