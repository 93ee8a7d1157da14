"""Weights sharded over processes (FSDP2), and Muon over the shards.

A layer is whole only while it computes. Weights outside the layers (embedding, last norm, head) are whole
until the end of the backward pass, so that a loss may use the head. With replicas, each
replica has all shards (HSDP).

Sources: FSDP, Zhao et al. 2023 (2304.11277), in torch's second version, `fully_shard`. Activation
checkpointing, Chen et al. 2016 (1604.06174).

Promises: gradients are sums over processes, not means; weights keep the names of the unsharded network.
Leaves to others: starting processes (distributed.py), and the disk (checkpoint.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from heredity.train.data.batching import PackedBatch
from heredity.train.distributed import DistContext, shard_span
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
        found: torch.Tensor = self.root("hidden", batch)
        return found

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
        found: torch.Tensor = self.root("embed_captions", rows)
        return found


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
