"""The processes of one training, as torchrun starts them: ranks, collectives, and weights in shards (FSDP2).

CPUs communicate by gloo, GPUs by NCCL, one process per GPU. A layer is whole only while it computes. Weights
outside the layers (embedding, last norm, head) are whole until the end of the backward pass, so that a loss
may use the head. With replicas, each replica has all shards (HSDP).

Sources: FSDP, Zhao et al. 2023 (2304.11277), in torch's second version, `fully_shard`. Activation
checkpointing, Chen et al. 2016 (1604.06174).

Promises: no object is pickled on its way to another process. If one process ends, the others end too.
Gradients are sums over processes, not means; weights keep the names of the unsharded network.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import nn

from heredity.core import host
from heredity.core.errors import HeredityError, Unavailable, UsageError
from heredity.core.host import Device
from heredity.train.loop import DistContext, placed
from heredity.train.models.causal_lm import CausalLM, PackedBatch
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


_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
_TIMEOUT = timedelta(minutes=30)  # for the slowest; the first may hash models before it begins
_RELEASE_SECONDS = 0.2  # seconds; it takes microseconds where a core is free


@contextmanager
def process_group(replicas: int = 1, device: Device | None = None) -> Iterator[DistContext]:
    """Join the processes that torchrun started, and leave them at the end; otherwise a single process.

    replicas: groups of processes that hold all weights each; 1: weights are sharded over all processes.
    device: where to compute (host.choose_device). Of several processes each has the GPU of its local rank.
    Raises UsageError if replicas do not divide the processes, HeredityError if another process has ended.
    """
    if not all(name in os.environ for name in _TORCHRUN_VARIABLES):
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
