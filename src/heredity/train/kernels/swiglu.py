"""Gated feed-forward parts whose gate is one pass over memory per direction, compiled.

Uncompiled, activation and product are two passes, and four in the backward pass, and the activation is kept.
Here it is recomputed.

Promises: transformers' numbers within rounding.
Leaves to others: parts with another activation, which stay unchanged.

Source: Shazeer 2020 (2002.05202), SwiGLU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from heredity.train.kernels import patch
from heredity.train.kernels.compile import compiled

KNOWN = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")


def patch_feed_forward(model: nn.Module) -> None:
    """Patch every feed-forward part of a supported class. On other devices than a CPU the original runs."""
    patch.replace_forwards(model, KNOWN, _PatchedSwiglu)


class _PatchedSwiglu(patch.KernelPatch):
    """The forward of a feed-forward part."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., width)"""
        of = self._module
        if x.device.type != "cpu" or of.config.hidden_act != "silu":
            usual: torch.Tensor = self._usual(x)
            return usual
        out: torch.Tensor = of.down_proj(_Gate.apply(of.gate_proj(x), of.up_proj(x)))  # type: ignore[no-untyped-call]
        return out


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        out: torch.Tensor = compiled(_gated)(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = compiled(_back)(out, *ctx.saved_tensors)
        return found


def _gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return functional.silu(gate) * up


def _back(out: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, grad = gate.float(), out.float()
    share = torch.sigmoid(x)
    of_gate = grad * up.float() * share * (1 + x * (1 - share))
    return of_gate.to(gate.dtype), (grad * x * share).to(up.dtype)
