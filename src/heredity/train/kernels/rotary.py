"""Attention modules with rotary positions, with fewer passes over memory than transformers' own, on a CPU.

Rotation is bound by memory: transformers negates, concatenates, multiplies twice and adds, and the backward
pass of each half fills a whole tensor. Here it is three passes per direction; compiled, one.

Promises: transformers' numbers within rounding; in bfloat16 a sum is rounded once instead of three times.
Leaves to others: modules of another form, and generation with a cache, which stay unchanged.

Source: Su et al. 2021 (2104.09864).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from heredity.train.kernels import patch
from heredity.train.kernels.attention import causal_attention
from heredity.train.kernels.compile import compiled

KNOWN = ("LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention")


def patch_attention(model: nn.Module, is_fused: bool = False) -> None:
    """Patch every attention of a supported class. On other devices than a CPU the original runs."""
    patch.replace_forwards(model, KNOWN, lambda module: _PatchedRotary(module, is_fused))


class _PatchedRotary(patch.KernelPatch):
    """The forward of an attention."""

    def __init__(self, module: Any, is_fused: bool) -> None:
        super().__init__(module)
        self._turned = _CompiledRotary if is_fused else _Rotate

    def __call__(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        lengths: tuple[int, ...] = (),
        **rest: Any,
    ) -> Any:
        """(1, tokens, width) -> (1, tokens, width), and no weights."""
        if hidden_states.device.type != "cpu" or not lengths:
            return self._usual(hidden_states, position_embeddings, attention_mask, lengths=lengths, **rest)
        at = self._module
        q, k, v = (
            linear(hidden_states).unflatten(-1, (-1, at.head_dim))
            for linear in (at.q_proj, at.k_proj, at.v_proj)
        )
        if hasattr(at, "q_norm"):
            q, k = at.q_norm(q), at.k_norm(k)
        cos, sin = (x.unsqueeze(-2) for x in position_embeddings)
        q, k = (self._turned.apply(x, cos, sin) for x in (q, k))  # type: ignore[no-untyped-call]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        window = getattr(at, "sliding_window", getattr(at.config, "sliding_window", None))
        out, _ = causal_attention(at, q, k, v, None, at.scaling, lengths, window)
        return at.o_proj(out.flatten(-2)), None


class _Rotate(torch.autograd.Function):
    """Rotate the halves of each head (..., heads, head_dim) by angles (..., 1, head_dim)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, -1)

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(out, cos, sin.roll(sin.shape[-1] // 2, -1), 1), None, None


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int) -> torch.Tensor:
    out: torch.Tensor = x * cos
    first, second = x.chunk(2, -1)
    of_first, of_second = sin.chunk(2, -1)
    low, high = out.chunk(2, -1)
    low.addcmul_(second, of_first, value=sign)
    high.addcmul_(first, of_second, value=-sign)
    return out


class _CompiledRotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        out: torch.Tensor = compiled(_rotate)(x, cos, sin)
        return out

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        of_x: torch.Tensor = compiled(_rotate_back)(out, *ctx.saved_tensors)
        return of_x, None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    (first, second), (c1, c2), (s1, s2) = (each.chunk(2, -1) for each in (x, cos, sin))
    return torch.cat((first * c1 - second * s1, second * c2 + first * s2), -1)


def _rotate_back(out: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    (first, second), (c1, c2), (s1, s2) = (each.chunk(2, -1) for each in (out, cos, sin))
    return torch.cat((first * c1 + second * s2, second * c2 - first * s1), -1)
