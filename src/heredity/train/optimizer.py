"""AdamW and Muon on fp32 master weights, and the learning-rate schedules.

The network computes in its own dtype. Master weights are kept in fp32 and copied into the network after each
step, so that small updates are not lost to rounding. Gradients of a step's microbatches are summed in fp32;
each is released once it is added.

Sources: Loshchilov & Hutter 2017 (1711.05101). Muon: Jordan et al. 2024, Moonlight 2502.16982, whose learning
rate is matched to AdamW's. Warmup-stable-decay: 2404.06395.

Promises: weight decay on matrices that are not embeddings; the state is a set of named tensors.
Leaves to others: when to step (loop.py) and the disk (checkpoint.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from heredity.train.distributed import SINGLE_PROCESS, DistContext, local_shard

Schedule = Literal["cosine", "wsd", "constant"]
OptimizerName = Literal["adamw", "muon"]
BETAS = (0.9, 0.95)
_EMBEDDINGS = ("embed", "wte", "wpe")  # in the names of embeddings, of tokens and of positions


class MasterWeights:
    """The fp32 master weights of the trainable parameters, and the optimizer over them."""

    def __init__(
        self,
        parameters: Sequence[tuple[str, nn.Parameter]],
        kind: OptimizerName,
        lr: float,
        weight_decay: float,
        dist: DistContext = SINGLE_PROCESS,
    ) -> None:
        self.names = [name for name, _ in parameters]
        self.parameters = [parameter for _, parameter in parameters]
        self.masters = [
            _at_least_1d(local_shard(p.detach())).clone().float().requires_grad_() for p in self.parameters
        ]
        self.n_rows = {
            name: len(p) if p.ndim else 1 for name, p in parameters
        }  # of the whole weight, not of a shard
        self.lr, self.dist = lr, dist
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            parameter.register_post_accumulate_grad_hook(_gradient_hook(master))
        decays = [
            m.ndim == 2 and not any(each in name for each in _EMBEDDINGS)
            for name, m in zip(self.names, self.masters, strict=True)
        ]
        hidden = [
            does and kind == "muon" and "lm_head" not in name
            for name, does in zip(self.names, decays, strict=True)
        ]
        pick = [place for place, use in enumerate(hidden) if use]
        rest = list(zip(self.masters, decays, hidden, strict=True))
        groups: list[dict[str, Any]] = [
            {"params": [m for m, does, use in rest if does and not use], "weight_decay": weight_decay},
            {"params": [m for m, does, _ in rest if not does], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.optimizers: list[torch.optim.Optimizer] = []
        if groups:
            self.optimizers.append(torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True))
        if pick:
            self.optimizers.append(self._muon(pick, weight_decay))

    def _muon(self, places: list[int], weight_decay: float) -> torch.optim.Optimizer:
        masters = [self.masters[place] for place in places]
        if self.dist.is_single_process:
            return torch.optim.Muon(
                masters, lr=self.lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        from heredity.train.sharded import ShardedMuon

        n_rows = [self.n_rows[self.names[place]] for place in places]
        return ShardedMuon(masters, n_rows, self.dist, self.lr, weight_decay)

    def step(self, share: float, grad_clip: float) -> float:
        """Update with `share` of the learning rate; return the global gradient norm before clipping.

        grad_clip: the norm that gradients are clipped to; 0 disables clipping.
        """
        gradients = [m.grad for m in self.masters if m.grad is not None]
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))
        norm = self.dist.norm(norm)
        if grad_clip and norm > grad_clip:
            torch._foreach_mul_(gradients, grad_clip / norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.copy_down()
        return norm

    @torch.no_grad()
    def are_finite(self) -> bool:
        """Whether every master weight is finite, in all processes."""
        n_bad = sum(not bool(torch.isfinite(master).all()) for master in self.masters)
        return not self.dist.sum([float(n_bad)])[0]

    @torch.no_grad()
    def copy_down(self) -> None:
        """Copy the master weights into the network."""
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            local_shard(parameter).copy_(master.view_as(local_shard(parameter)))

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors that a resumed run needs: master weights and moments, by name."""
        found = {f"master/{name}": m.detach() for name, m in zip(self.names, self.masters, strict=True)}
        place = {id(m): name for name, m in zip(self.names, self.masters, strict=True)}
        for optimizer in self.optimizers:
            for master, moments in optimizer.state.items():
                for key, value in moments.items():
                    found[f"{key}/{place[id(master)]}"] = torch.as_tensor(value)
        return found

    def forget(self) -> None:
        """Drop the accumulated gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state`."""
        for optimizer in self.optimizers:
            optimizer.state.clear()
        by_name = dict(zip(self.names, self.masters, strict=True))
        owner = {
            id(master): optimizer
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for master in group["params"]
        }
        with torch.no_grad():
            for name, master in by_name.items():
                master.copy_(state[f"master/{name}"])
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            if kind != "master" and name in by_name:
                owner[id(by_name[name])].state[by_name[name]][kind] = tensor.to(by_name[name].device).clone()
        self.copy_down()


def _at_least_1d(tensor: torch.Tensor) -> torch.Tensor:
    """A scalar as a row of one, as a sharded weight has it."""
    return tensor if tensor.ndim else tensor.view(1)


def _gradient_hook(master: torch.Tensor) -> Callable[[torch.Tensor], None]:
    def add(parameter: torch.Tensor) -> None:
        if parameter.grad is None:
            return
        gradient = _at_least_1d(local_shard(parameter.grad))
        if master.grad is None:
            master.grad = gradient.float().clone()
        else:
            master.grad += gradient
        parameter.grad = None

    return add


def lr_factor(step: int, n_steps: int, schedule: Schedule, n_warmup: int, decay_share: float = 0.2) -> float:
    """The factor of the peak learning rate at a step counted from 0; it is never 0."""
    if step < n_warmup:
        return (step + 1) / (n_warmup + 1)
    left = (n_steps - step) / max(1, n_steps - n_warmup)  # from 1 to nearly 0
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    return min(1.0, left / decay_share)
