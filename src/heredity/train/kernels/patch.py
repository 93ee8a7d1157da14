"""Replacements for the forward of transformers modules, with fewer passes over memory, for training on a CPU.

On a CPU norms, rotations and gates are bound by memory. transformers' norm widens, squares, narrows and
scales, and each step reads and writes everything; its backward pass does so twice. A rotation negates,
concatenates, multiplies twice and adds. Here a norm is one product and one sum per direction, and a
rotation three passes. Compiled (compile.py), each is one pass, and the activation of a gate is recomputed.

Promises: transformers' numbers within rounding. In bfloat16 the factor of a norm is rounded once more, and a
rotated sum once instead of three times.
Leaves to others: modules of another form (Gemma's norm adds one to its weight), and generation with a cache.
They stay unchanged.

Sources: RMS norm, Zhang & Sennrich 2019 (1910.07467); rotary positions, Su et al. 2021 (2104.09864); SwiGLU,
Shazeer 2020 (2002.05202).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from heredity.train.kernels.attention import causal_attention
from heredity.train.kernels.compile import compiled

# classes of transformers that are patched
NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
ATTENTIONS = ("LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention")
FEED_FORWARDS = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")


class KernelPatch:
    """A replacement for a module's forward. The original handles inputs that this one does not support."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._usual = module.forward


def replace_forwards(
    model: nn.Module, known: Sequence[str], way: Callable[[Any], Callable[..., Any]]
) -> None:
    """Replace the forward of every module whose class has one of these names."""
    for module in model.modules():
        if type(module).__name__ in known:
            module.forward = way(module)


def patch_norms(model: nn.Module, is_fused: bool = False) -> None:
    """Patch every norm of a supported class. On other devices than a CPU the original runs."""
    replace_forwards(model, NORMS, lambda module: _PatchedNorm(module, is_fused))


class _PatchedNorm(KernelPatch):
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
        out, factor = compiled(_norm_forward)(x, weight, eps)
        ctx.save_for_backward(x, factor, weight)
        found: torch.Tensor = out
        return found

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        of_x, of_rows = compiled(_norm_back)(out, *ctx.saved_tensors)
        return of_x, of_rows.flatten(0, -2).sum(0), None


def _norm_forward(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    wide = x.float()
    factor = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)  # (..., 1)
    return (wide * factor).to(x.dtype) * weight, factor


def _norm_back(
    out: torch.Tensor, x: torch.Tensor, factor: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of the input, and of the weight at each row."""
    normed, grad = x.float() * factor, out.float()
    of_normed = grad * weight.float()
    along = (of_normed * normed).mean(-1, keepdim=True)
    return ((of_normed - normed * along) * factor).to(x.dtype), (grad * normed).to(weight.dtype)


def patch_attention(model: nn.Module, is_fused: bool = False) -> None:
    """Patch every attention of a supported class. On other devices than a CPU the original runs."""
    replace_forwards(model, ATTENTIONS, lambda module: _PatchedRotary(module, is_fused))


class _PatchedRotary(KernelPatch):
    """The forward of an attention."""

    def __init__(self, module: Any, is_fused: bool) -> None:
        super().__init__(module)
        self._turned = _CompiledRotate if is_fused else _Rotate

    def __call__(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        lengths: tuple[int, ...] = (),
        n_shared: int = 0,
        **rest: Any,
    ) -> Any:
        """(1, tokens, width) -> (1, tokens, width), and no weights."""
        if hidden_states.device.type != "cpu" or not lengths:
            rest |= {"lengths": lengths, "n_shared": n_shared}
            return self._usual(hidden_states, position_embeddings, attention_mask, **rest)
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
        out, _ = causal_attention(at, q, k, v, None, at.scaling, lengths, window, n_shared)
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


class _CompiledRotate(torch.autograd.Function):
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


def patch_feed_forward(model: nn.Module) -> None:
    """Patch every feed-forward part of a supported class. On other devices than a CPU the original runs."""
    replace_forwards(model, FEED_FORWARDS, _PatchedSwiglu)


class _PatchedSwiglu(KernelPatch):
    """The forward of a feed-forward part."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., width)"""
        of = self._module
        if x.device.type != "cpu" or of.config.hidden_act != "silu":
            usual: torch.Tensor = self._usual(x)
            return usual
        out: torch.Tensor = of.down_proj(
            _Gate.apply(  # type: ignore[no-untyped-call]
                of.gate_proj(x), of.up_proj(x)
            )
        )
        return out


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        out: torch.Tensor = compiled(_gate_forward)(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = compiled(_gate_back)(out, *ctx.saved_tensors)
        return found


def _gate_forward(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return functional.silu(gate) * up


def _gate_back(out: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, grad = gate.float(), out.float()
    share = torch.sigmoid(x)
    of_gate = grad * up.float() * share * (1 + x * (1 - share))
    return of_gate.to(gate.dtype), (grad * x * share).to(up.dtype)
