"""Several processes at one training, as torchrun starts them: who this one is, and what all of them agree on.

On CPUs they speak by gloo, on GPUs by NCCL, one process a GPU.

Promises: alone, everything here is nothing at all; no object is pickled on its way to another process; where
one ends, the others end too.
Leaves to others: where weights lie (_sharded.py), checkpoints (_pieces.py), what each reads (stream.py).
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
from typing import Any

import torch

from heredity.core import host
from heredity.core.errors import HeredityError, Unavailable, UsageError
from heredity.train.data.batching import PackedBatch
from heredity.train.kernels.patch import apply_function

_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
_TIMEOUT = timedelta(minutes=30)  # for the slowest; the first may hash models before it begins
_RELEASE_SECONDS = 0.2  # seconds; it takes microseconds where a core is free


@dataclass(frozen=True)
class DistContext:
    """This process among `world`, counted from 0. mesh: None alone, else (replicas, pieces of weights)."""

    rank: int = 0
    world: int = 1
    replicas: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: Any = None

    @property
    def is_alone(self) -> bool:
        """Whether torchrun started nothing."""
        return self.mesh is None

    @property
    def is_first(self) -> bool:
        """The first writes; the others only compute."""
        return self.rank == 0

    @property
    def n_pieces(self) -> int:
        """Processes that the weights are cut over."""
        return self.world // self.replicas

    @property
    def piece(self) -> int:
        """Which piece of every weight lies here."""
        return self.rank % self.n_pieces

    def rows(self, n: int) -> tuple[int, int]:
        """The first row of `n` that lies here, and the one behind the last."""
        return shard_span(n, self.piece, self.n_pieces)

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all processes, which give as many numbers each."""
        if self.is_alone:
            return list(numbers)
        together = torch.tensor(list(numbers), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(together)
        return [float(each) for each in together.tolist()]

    def told(self, numbers: Sequence[float]) -> list[float]:
        """What the first says, in every process."""
        if self.is_alone:
            return list(numbers)
        n = int(self.sum([len(numbers) if self.is_first else 0])[0])
        return self.sum(list(numbers) if self.is_first else [0.0] * n) if n else []

    def wait(self) -> None:
        """Until every process has come here."""
        self.sum([0.0])

    def norm(self, of_mine: float) -> float:
        """The length of a vector whose piece here has this length."""
        return of_mine if self.is_alone else math.sqrt(self.sum([of_mine**2])[0] / self.replicas)

    def here(self, batch: PackedBatch) -> PackedBatch:
        """A batch where this process computes."""
        if self.device.type == "cpu":
            return batch
        moved: dict[str, Any] = {
            name: x.to(self.device) for name, x in batch._asdict().items() if isinstance(x, torch.Tensor)
        }
        return batch._replace(**moved)


SINGLE_PROCESS = DistContext()


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """The piece of a tensor that lies in this process; all of it where it is not cut."""
    mine: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return mine


def shard_span(n: int, piece: int, n_pieces: int) -> tuple[int, int]:
    """Rows of a piece, as FSDP cuts `n` rows: each as large as the first, as long as rows are left."""
    each = -(-n // n_pieces)
    return min(n, piece * each), min(n, (piece + 1) * each)


def is_torchrun() -> bool:
    """Whether torchrun started this process."""
    return all(name in os.environ for name in _TORCHRUN_VARIABLES)


@contextmanager
def process_group(replicas: int = 1) -> Iterator[DistContext]:
    """This process among those that torchrun started; alone where it started none.

    replicas: groups of processes that hold all weights each; 1: every process holds another piece of them.
    Raises UsageError where they do not divide the processes, HeredityError where another process has ended.
    """
    if not is_torchrun():
        _check_replicas(replicas, 1)
        yield SINGLE_PROCESS
        return
    _check_replicas(replicas, int(os.environ["WORLD_SIZE"]))
    if not torch.distributed.is_available():
        raise Unavailable(
            "This torch cannot speak to other processes. Install another, or run without torchrun."
        )
    joined = _join(replicas)
    try:
        yield joined
    except RuntimeError as error:
        if not _is_peer_failure(error):
            raise
        raise HeredityError(
            "Another process of this training has ended, and its own message says why. The same command goes "
            "on from the last checkpoint."
        ) from error
    _leave(joined)


def _leave(joined: DistContext) -> None:
    """Leaves the others, with time for gloo's threads to let go of the last tensors.

    They need Python for that, and one that asks for it while Python ends aborts the process (torch 2.13).
    They end with their group, but what torch keeps of sharded tensors holds groups until Python ends.
    """
    object.__setattr__(joined, "mesh", None)
    gc.collect()
    torch.distributed.destroy_process_group()
    time.sleep(_RELEASE_SECONDS)


def _check_replicas(replicas: int, world: int) -> None:
    if world % replicas:
        raise UsageError(
            f"{replicas} replicas of the weights cannot be laid over {world} process{'es' * (world > 1)}. "
            "Give replicas that divide them.",
            code="replicas-do-not-divide",
        )


def _join(replicas: int) -> DistContext:
    chosen = host.choose_device(int(os.environ["LOCAL_RANK"]))
    device = chosen.torch
    if not chosen.is_cpu:
        torch.cuda.set_device(device)
    bound = None if chosen.is_cpu else device
    backend = "gloo" if chosen.is_cpu else "nccl"
    torch.distributed.init_process_group(backend, timeout=_TIMEOUT, device_id=bound)
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    shape = (replicas, world // replicas)
    mesh = torch.distributed.device_mesh.init_device_mesh(
        device.type, shape, mesh_dim_names=("replicas", "pieces")
    )
    return DistContext(rank, world, replicas, device, mesh)


def _is_peer_failure(error: RuntimeError) -> bool:
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def rank_span(n: int, rank: int, world: int) -> tuple[int, int]:
    """The first of a process's share of `n` rows, and the one behind the last; shares differ by one row.

    FSDP's cut (processes.span) would leave the last of 4 processes none of 9 rows.
    """
    return n * rank // world, n * (rank + 1) // world


def all_gather(mine: torch.Tensor, n: int, together: DistContext) -> torch.Tensor:
    """(rows of this process, width) -> (n, width), by `share`."""
    return mine if together.is_alone else apply_function(_AllGather, mine, n, together)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor, n: int, together: DistContext) -> torch.Tensor:
        spans = [rank_span(n, rank, together.world) for rank in range(together.world)]
        ctx.span = spans[together.rank]
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
