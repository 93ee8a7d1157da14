"""Next-token prediction: cross-entropy in nats, summed over targets.

Source of the z-loss, which keeps the normalizer of the logits near 1: PaLM (2204.02311, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from heredity.train.kernels import compiled
from heredity.train.models.causal_lm import CausalLM, PackedBatch
from heredity.train.objectives import Loss


@dataclass(frozen=True)
class Causal:
    """The negative log-likelihood of the targets, plus `z_loss` times the square of log Z."""

    z_loss: float = 0.0

    def loss(self, network: CausalLM, batch: PackedBatch) -> Loss:
        """Summed over the batch's targets."""

        def of_rows(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            return summed_cross_entropy(logits, batch.targets[rows], self.z_loss, sums, network.is_fused)

        sums: dict[str, float] = {}
        return Loss(network.loss(network.hidden(batch), of_rows, network.is_fused), sums)

    def weight(self, batch: PackedBatch) -> float:
        """The number of targets."""
        return float(len(batch.targets))


def summed_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, z_loss: float, sums: dict[str, float], is_fused: bool = False
) -> torch.Tensor:
    """The summed loss of rows of logits. The z-loss is added to `sums`."""
    total, far = cross_entropy(logits, targets, z_loss, is_fused)
    if z_loss:
        sums["z-loss"] = sums.get("z-loss", 0.0) + float(far)
    return total


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, z_loss: float, is_fused: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy plus z-loss, and the z-loss, summed. logits: (rows, vocabulary); targets: (rows,)."""
    way = _CompiledLoss if is_fused else _LossWithGradient
    losses: tuple[torch.Tensor, torch.Tensor] = way.apply(  # type: ignore[no-untyped-call]
        logits, targets, z_loss
    )
    return losses


class _LossWithGradient(torch.autograd.Function):
    """Both losses from one log-softmax, which is overwritten with their gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, z_loss: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logs = torch.log_softmax(logits, 1)
        log_z = logits[:, 0] - logs[:, 0]
        far = z_loss * log_z.square().sum()
        ctx.logs, ctx.log_z, ctx.targets, ctx.z_loss = logs, log_z, targets, z_loss
        ctx.mark_non_differentiable(far)
        return far - logs.gather(1, targets[:, None]).sum(), far

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        grad = ctx.logs.exp_()
        ctx.logs = None  # it was overwritten
        if ctx.z_loss:
            grad.mul_((1 + 2 * ctx.z_loss * ctx.log_z)[:, None])
        grad[torch.arange(len(ctx.targets), device=grad.device), ctx.targets] -= 1
        return _scaled(grad, out), None, None


def _scaled(grad: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The gradient times a factor, nearly always 1: on a CPU to look at it is cheaper than to multiply."""
    return grad if factor.is_cpu and factor.item() == 1 else grad.mul_(factor)


class _CompiledLoss(torch.autograd.Function):
    """Both losses and their gradient in two passes over logits of any dtype."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, z_loss: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        summed_cross_entropy, far, ctx.grad = compiled(_loss_rows)(logits, targets, z_loss)
        far = far.sum()
        ctx.mark_non_differentiable(far)
        return summed_cross_entropy.sum() + far, far

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        grad, ctx.grad = ctx.grad, None
        return _scaled(grad, out), None, None


def _loss_rows(
    logits: torch.Tensor, targets: torch.Tensor, z_loss: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The cross-entropy, the z-loss and the gradient of each row."""
    wide = logits.float()
    highest = wide.amax(1, keepdim=True)
    shares = (wide - highest).exp()
    whole = shares.sum(1, keepdim=True)
    log_z = highest + whole.log()
    summed_cross_entropy = log_z - wide.gather(1, targets[:, None])
    is_right = torch.arange(wide.shape[1], device=wide.device)[None] == targets[:, None]
    grad = shares / whole * (1 + 2 * z_loss * log_z) - is_right.float()
    return summed_cross_entropy[:, 0], z_loss * log_z[:, 0].square(), grad.to(logits.dtype)
