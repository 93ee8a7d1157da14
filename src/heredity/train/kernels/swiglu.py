"""Gated feed-forward parts whose gate is one pass over memory each way, where chains are compiled.

Step by step the gate's activation and the product are two passes, and four on the way back; and the
activation is kept for it. Here it is made again.

Promises: transformers' numbers within rounding.
Leaves to others: parts with another activation, which stay as they are.

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
    """Give every gated part of the model whose form is known the faster way, where it is on a CPU."""
    patch.replace_forwards(model, KNOWN, _PatchedSwiglu)


class _PatchedSwiglu(patch.KernelPatch):
    """A feed-forward part's forward."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., width)"""
        of = self._module
        if x.device.type != "cpu" or of.config.hidden_act != "silu":
            usual: torch.Tensor = self._usual(x)
            return usual
        out: torch.Tensor = of.down_proj(patch.apply_function(_Gate, of.gate_proj(x), of.up_proj(x)))
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
    x, told = gate.float(), out.float()
    share = torch.sigmoid(x)
    of_gate = told * up.float() * share * (1 + x * (1 - share))
    return of_gate.to(gate.dtype), (told * x * share).to(up.dtype)
