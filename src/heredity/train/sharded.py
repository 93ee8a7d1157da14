"""Weights in pieces over processes (FSDP2), and Muon over such pieces.

A layer is whole only while it computes; what is outside of layers (embedding, last norm, head) is whole from
the forward pass to the end of the backward one, so that a loss may use the head behind it. With replicas the
pieces lie once in each (HSDP).

Sources: FSDP, Zhao et al. 2023 (2304.11277), in torch's second form, `fully_shard`; recomputation of
activations, Chen et al. 2016 (1604.06174).

Promises: gradients are sums over processes, not means; names of weights are those of the network alone.
Leaves to others: how processes are started (processes.py), and the disk (_pieces.py).
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
    """A network whose weights lie in pieces. `is_reduced_once`: gradients of a step's batches stay here,
    whole, until the last of them; else they go into pieces after each.
    """

    def __init__(self, net: CausalLM, together: DistContext, is_reduced_once: bool = True) -> None:
        self.model, self.folder, self.is_fused = net.model, net.folder, net.is_fused
        self._is_reduced_once = is_reduced_once
        self.root = _shard_with_fsdp(net, together)

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        found: torch.Tensor = self.root("hidden", batch)
        return found

    def begin(self, is_last: bool) -> None:
        self.root.set_requires_gradient_sync(is_last or not self._is_reduced_once)

    @torch.no_grad()
    def gathered(self, make: Callable[[], CausalLM], is_first: bool) -> CausalLM:
        """In the first process the whole network, laid into one that `make` gives; every process must ask."""
        self.root.reshard()
        net = make() if is_first else self
        into = dict(net.model.named_parameters())
        for name, weight in self.model.named_parameters():
            whole = weight.full_tensor()
            if is_first:
                into[name].copy_(whole.view_as(into[name]))
        return net


class ShardedDualEncoder(ShardedModel, DualEncoder):
    """The same of two encoders."""

    def arrows(self, batch: PackedBatch) -> PairEmbeddings:
        found: PairEmbeddings = self.root("arrows", batch)
        return found

    def of_captions(self, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.root("of_captions", rows)
        return found


def shard_model(net: CausalLM, together: DistContext, is_reduced_once: bool = True) -> ShardedModel:
    """A network, whichever it is, with its weights in pieces."""
    return (ShardedDualEncoder if isinstance(net, DualEncoder) else ShardedModel)(
        net, together, is_reduced_once
    )


class _Root(nn.Module):
    """What FSDP takes for the whole: all weights, asked of a batch what the network is."""

    def __init__(self, net: CausalLM) -> None:
        super().__init__()
        self.model, self._net = net.model, net

    def forward(self, what: str, given: Any) -> Any:
        return getattr(self._net, what)(given)


def _shard_with_fsdp(net: CausalLM, together: DistContext) -> Any:
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    net.model.to(together.device)
    for module in net.model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if not weight.ndim:  # a single number cannot be cut, but a row of one can
                setattr(module, name, nn.Parameter(weight.detach().view(1)))
    root = _Root(net)
    how: dict[str, Any] = {
        "mesh": together.mesh if together.replicas > 1 else together.mesh["pieces"],
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32),
    }
    for layer in transformer_layers(net.model):
        fully_shard(layer, **how)
    fully_shard(root, reshard_after_forward=False, **how)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loss was divided by what all processes learn
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return root


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformers model: what its lists of that name hold (BERT's is "layer")."""
    return [
        layer
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ("layer", "layers") and isinstance(module, nn.ModuleList)
        for layer in module
    ]


def recompute_activations(model: nn.Module) -> None:
    """Keep a layer's input alone, and make the rest of it again on the way back."""
    from torch.utils.checkpoint import checkpoint

    for layer in transformer_layers(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


class ShardedMuon(torch.optim.Optimizer):
    """torch's Muon where each matrix lies in pieces of rows: every process makes some matrices' directions.

    Momentum stays in pieces. `n_rows`: of each whole matrix. Of as many matrices as there are processes each
    gets one whole, and its direction goes back to where its pieces lie.
    """

    def __init__(
        self,
        pieces: Sequence[torch.Tensor],
        n_rows: Sequence[int],
        together: DistContext,
        lr: float,
        weight_decay: float,
    ) -> None:
        super().__init__(pieces, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})
        self._n_rows, self._together = n_rows, together

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        (group,) = self.param_groups
        n = self._together.n_pieces
        for start in range(0, len(group["params"]), n):
            some = slice(start, start + n)
            masters = group["params"][some]
            wanted = [self._wanted(master, group["momentum"]) for master in masters]
            for master, change in zip(
                masters, self._changes(wanted, self._n_rows[some], group["lr"]), strict=True
            ):
                master.mul_(1 - group["lr"] * group["weight_decay"]).add_(change)

    def _wanted(self, master: torch.Tensor, momentum: float) -> torch.Tensor:
        """Nesterov's gradient of a piece."""
        assert master.grad is not None
        kept = self.state[master].setdefault("momentum_buffer", torch.zeros_like(master))
        kept.lerp_(master.grad, 1 - momentum)
        return master.grad.lerp(kept, momentum)

    def _changes(self, pieces: list[torch.Tensor], n_rows: Sequence[int], rate: float) -> list[torch.Tensor]:
        """What is added to each piece, of at most as many matrices as there are processes."""
        n, mine = self._together.n_pieces, self._together.piece
        sizes = [piece.numel() for piece in pieces] + [0] * (n - len(pieces))
        spans = (
            [shard_span(n_rows[mine], each, n) for each in range(n)] if mine < len(pieces) else [(0, 0)] * n
        )
        columns = pieces[mine].shape[1] if mine < len(pieces) else 0
        whole_sizes = [(high - low) * columns for low, high in spans]
        whole = self._exchanged(torch.cat([piece.flatten() for piece in pieces]), sizes, whole_sizes)
        if columns:
            whole = muon_update(whole.view(-1, columns), rate).flatten()
        back = self._exchanged(whole, whole_sizes, sizes)
        return [part.view_as(piece) for part, piece in zip(back.split(sizes), pieces, strict=False)]

    def _exchanged(self, given: torch.Tensor, to: list[int], of: list[int]) -> torch.Tensor:
        """The first `to[0]` numbers go to the first piece's process, ...; `of[i]` come from the i-th."""
        got = given.new_empty(sum(of))
        group = self._together.mesh.get_group("pieces")
        torch.distributed.all_to_all_single(got, given, of, to, group=group)
        return got


def muon_update(wanted: torch.Tensor, rate: float) -> torch.Tensor:
    """The change that torch's own Muon makes to a matrix for a gradient, momentum and decay aside."""
    change = torch.zeros_like(wanted).requires_grad_()
    change.grad = wanted
    torch.optim.Muon(
        [change], lr=rate, weight_decay=0.0, momentum=0.0, nesterov=False, adjust_lr_fn="match_rms_adamw"
    ).step()
    return change.detach()
