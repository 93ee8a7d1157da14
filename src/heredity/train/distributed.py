"""The processes of one training, as torchrun starts them: ranks, collectives, and weights in shards (FSDP2).

CPUs communicate by gloo, GPUs by NCCL, one process per GPU. A layer is whole only while it computes. Weights
outside the layers (embedding, last norm, head) are whole until the end of the backward pass, so that a loss
may use the head. With replicas, each replica has all shards (HSDP).

Sources: FSDP, Zhao et al. 2023 (2304.11277), in torch's second version, `fully_shard`. Activation
checkpointing, Chen et al. 2016 (1604.06174).

Promises: in a single process every collective is the identity. No object is pickled on its way to another
process. If one process ends, the others end too. Gradients are sums over processes, not means; weights keep
the names of the unsharded network.
Leaves to others: checkpoints (loop.py), and what each process reads (data/).
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from heredity.core import host
from heredity.core.errors import HeredityError, Unavailable, UsageError
from heredity.core.host import Device
from heredity.train.data.batching import PackedBatch
from heredity.train.models.causal_lm import CausalLM
from heredity.train.models.dual import DualEncoder, PairEmbeddings


class ShardedModel(CausalLM):
    """A network whose weights are sharded.

    is_reduced_once: gradients stay whole until the last microbatch of a step, and are reduced once;
    otherwise after each microbatch.
    """

    def __init__(self, net: CausalLM, dist: DistContext, is_reduced_once: bool = True) -> None:
        self.model, self.folder, self.is_fused = net.model, net.folder, net.is_fused
        self._is_reduced_once = is_reduced_once
        self.root = _shard_with_fsdp(net, dist)

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        states: torch.Tensor = self.root("hidden", batch)
        return states

    def begin(self, is_last: bool) -> None:
        self.root.set_requires_gradient_sync(is_last or not self._is_reduced_once)

    @torch.no_grad()
    def gathered(self, make: Callable[[], CausalLM], is_main_process: bool) -> CausalLM:
        """Gather the weights into `make()`, in the main process. Every process must call this."""
        self.root.reshard()
        net = make() if is_main_process else self
        into = dict(net.model.named_parameters())
        for name, weight in self.model.named_parameters():
            whole = weight.full_tensor()
            if is_main_process:
                into[name].copy_(whole.view_as(into[name]))
        return net


class ShardedDualEncoder(ShardedModel, DualEncoder):
    """A sharded dual encoder."""

    def embed(self, batch: PackedBatch) -> PairEmbeddings:
        pair_embeddings: PairEmbeddings = self.root("embed", batch)
        return pair_embeddings

    def embed_captions(self, rows: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.root("embed_captions", rows)
        return embeddings


def shard_model(net: CausalLM, dist: DistContext, is_reduced_once: bool = True) -> ShardedModel:
    """Shard the weights of a network."""
    return (ShardedDualEncoder if isinstance(net, DualEncoder) else ShardedModel)(net, dist, is_reduced_once)


class _Root(nn.Module):
    """The root module for FSDP: it calls a method of the network by name."""

    def __init__(self, net: CausalLM) -> None:
        super().__init__()
        self.model, self._net = net.model, net

    def forward(self, what: str, given: Any) -> Any:
        return getattr(self._net, what)(given)


def _shard_with_fsdp(net: CausalLM, dist: DistContext) -> Any:
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    assert dist.mesh is not None
    net.model.to(dist.device)
    for module in net.model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if not weight.ndim:  # FSDP cannot shard a scalar, but it can a row of one
                setattr(module, name, nn.Parameter(weight.detach().view(1)))
    root = _Root(net)
    how: dict[str, Any] = {
        "mesh": dist.mesh if dist.replicas > 1 else dist.mesh["shards"],
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32),
    }
    for layer in transformer_layers(net.model):
        fully_shard(layer, **how)
    fully_shard(root, reshard_after_forward=False, **how)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loss was divided by the targets of all processes
            module.set_force_sum_reduction_for_comms(True)  # gloo supports no other
    return root


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformers model, from its module lists "layers" (BERT: "layer")."""
    return [layer for stack in _stacks(model) for layer in stack]


def _stacks(model: nn.Module) -> list[nn.ModuleList]:
    return [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ("layer", "layers") and isinstance(module, nn.ModuleList)
    ]


def recompute_activations(model: nn.Module, every: int = 1) -> None:
    """Keep only the input of every n-th layer, and recompute the rest of it in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    for stack in _stacks(model):
        for layer in list(stack)[every - 1 :: every]:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


class ShardedMuon(torch.optim.Optimizer):
    """torch's Muon for matrices that are sharded by rows. Momentum is sharded, too.

    Matrices are taken in groups of one per process. Each process gathers one of them, computes its update,
    and sends the rows back to their shards. n_rows: the rows of each whole matrix.
    """

    def __init__(
        self,
        shards: Sequence[torch.Tensor],
        n_rows: Sequence[int],
        dist: DistContext,
        lr: float,
        weight_decay: float,
    ) -> None:
        super().__init__(shards, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})
        self._n_rows, self._dist = n_rows, dist

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        (group,) = self.param_groups
        n = self._dist.n_shards
        for start in range(0, len(group["params"]), n):
            some = slice(start, start + n)
            masters = group["params"][some]
            wanted = [self._wanted(master, group["momentum"]) for master in masters]
            for master, change in zip(
                masters, self._changes(wanted, self._n_rows[some], group["lr"]), strict=True
            ):
                master.mul_(1 - group["lr"] * group["weight_decay"]).add_(change)

    def _wanted(self, master: torch.Tensor, momentum: float) -> torch.Tensor:
        """The Nesterov gradient of a shard."""
        assert master.grad is not None
        kept = self.state[master].setdefault("momentum_buffer", torch.zeros_like(master))
        kept.lerp_(master.grad, 1 - momentum)
        return master.grad.lerp(kept, momentum)

    def _changes(self, shards: list[torch.Tensor], n_rows: Sequence[int], lr: float) -> list[torch.Tensor]:
        """The updates of the shards, for at most one matrix per process."""
        n, mine = self._dist.n_shards, self._dist.shard_index
        sizes = [shard.numel() for shard in shards] + [0] * (n - len(shards))
        spans = (
            [shard_span(n_rows[mine], each, n) for each in range(n)] if mine < len(shards) else [(0, 0)] * n
        )
        columns = shards[mine].shape[1] if mine < len(shards) else 0
        whole_sizes = [(high - low) * columns for low, high in spans]
        whole = self._exchanged(torch.cat([shard.flatten() for shard in shards]), sizes, whole_sizes)
        if columns:
            whole = muon_update(whole.view(-1, columns), lr).flatten()
        back = self._exchanged(whole, whole_sizes, sizes)
        return [part.view_as(shard) for part, shard in zip(back.split(sizes), shards, strict=False)]

    def _exchanged(self, given: torch.Tensor, to: list[int], of: list[int]) -> torch.Tensor:
        """All-to-all: `to[i]` numbers go to shard i's process, and `of[i]` come from it."""
        got = given.new_empty(sum(of))
        assert self._dist.mesh is not None
        group = self._dist.mesh.get_group("shards")
        torch.distributed.all_to_all_single(got, given, of, to, group=group)
        return got


def muon_update(wanted: torch.Tensor, lr: float) -> torch.Tensor:
    """The update by torch's own Muon for a gradient, without momentum and weight decay."""
    change = torch.zeros_like(wanted).requires_grad_()
    change.grad = wanted
    torch.optim.Muon(
        [change], lr=lr, weight_decay=0.0, momentum=0.0, nesterov=False, adjust_lr_fn="match_rms_adamw"
    ).step()
    return change.detach()


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
