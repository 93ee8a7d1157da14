"""RMS norms with fewer passes over memory than transformers' own, for training on a CPU.

A norm on a CPU is bound by memory: widening, squaring, narrowing and scaling each read and write everything.
The backward pass does so twice. Here it is one product and one sum per direction, in the network's dtype.
Compiled, it is one pass, and only the input is kept for the backward pass.

Promises: transformers' numbers within rounding; in bfloat16 the factor of a row is rounded once more.
Leaves to others: norms of another form, which stay unchanged (Gemma's adds one to its weight).

Source: Zhang & Sennrich 2019 (1910.07467).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from heredity.train.kernels import patch
from heredity.train.kernels.compile import compiled

KNOWN = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


def patch_norms(model: nn.Module, is_fused: bool = False) -> None:
    """Patch every norm of a supported class. On other devices than a CPU the original runs."""
    patch.replace_forwards(model, KNOWN, lambda module: _PatchedNorm(module, is_fused))


class _PatchedNorm(patch.KernelPatch):
    """The forward of a norm."""

    def __init__(self, module: Any, is_fused: bool) -> None:
        super().__init__(module)
        self._normed = _CompiledNorm if is_fused else _Norm

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., width)"""
        if x.device.type != "cpu":
            usual: torch.Tensor = self._usual(x)
            return usual
        weight, eps = self._module.weight, self._module.variance_epsilon
        out: torch.Tensor = self._normed.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return out


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        factor = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)  # (..., 1)
        normed: torch.Tensor = x * factor
        ctx.save_for_backward(normed, factor, weight)
        out: torch.Tensor = normed * weight
        return out

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        normed, factor, weight = ctx.saved_tensors
        of_normed = out * weight
        along = (of_normed * normed).mean(-1, keepdim=True)
        of_x = torch.addcmul(of_normed, normed, along, value=-1).mul_(factor)
        of_weight = (out * normed).flatten(0, -2).sum(0)
        return of_x, of_weight, None


class _CompiledNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out, factor = compiled(_norm)(x, weight, eps)
        ctx.save_for_backward(x, factor, weight)
        found: torch.Tensor = out
        return found

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        of_x, of_rows = compiled(_back)(out, *ctx.saved_tensors)
        return of_x, of_rows.flatten(0, -2).sum(0), None


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    wide = x.float()
    factor = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)  # (..., 1)
    return (wide * factor).to(x.dtype) * weight, factor


def _back(
    out: torch.Tensor, x: torch.Tensor, factor: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of the input, and of the weight at each row."""
    normed, grad = x.float() * factor, out.float()
    of_normed = grad * weight.float()
    along = (of_normed * normed).mean(-1, keepdim=True)
    return ((of_normed - normed * along) * factor).to(x.dtype), (grad * normed).to(weight.dtype)
