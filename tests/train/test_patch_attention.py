"""Faster attention modules give transformers' numbers, both ways; what is of another form stays."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention, Gemma3TextConfig
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3Config

from heredity.train import kernels

N = 37


def config(kind: Any) -> Any:
    made = kind(
        hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=16, num_hidden_layers=2
    )
    made._attn_implementation = "sdpa"
    return made


def both(dtype: torch.dtype) -> list[tuple[torch.Tensor, ...]]:
    """Output, and the gradients of what went in and of a weight: transformers' and the faster."""
    found = []
    for is_quick in (False, True):
        torch.manual_seed(0)
        module = Qwen3Attention(config(Qwen3Config), 0)
        x = torch.randn(1, N, 48)
        angles = torch.arange(N)[:, None] * 10_000.0 ** -torch.linspace(0, 1, 9)[:8]
        at = tuple(f(angles).repeat(1, 2)[None].bfloat16().to(dtype) for f in (torch.cos, torch.sin))
        module = module.bfloat16().to(dtype)
        given = x.bfloat16().to(dtype).requires_grad_()
        more: dict[str, Any] = {}
        if is_quick:
            kernels.patch_attention(module)
            more = {"lengths": (N,)}
        out, _ = module(given, position_embeddings=at, attention_mask=None, **more)
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(dtype))
        assert given.grad is not None
        assert module.q_proj.weight.grad is not None
        found.append((out.detach(), given.grad, module.q_proj.weight.grad))
    return found


def test_numbers_are_those_of_transformers_both_ways() -> None:
    usual, quick = both(torch.float32)
    for a, b in zip(usual, quick, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_they_are_within_rounding_of_the_exact_ones() -> None:
    exact, _ = both(torch.float32)
    usual, quick = both(torch.bfloat16)

    def far(found: tuple[torch.Tensor, ...]) -> list[float]:
        return [float((a.float() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]

    for mine, theirs in zip(far(quick), far(usual), strict=True):
        assert mine < 1.2 * theirs + 1e-3
        assert mine < 0.02


def test_a_module_of_another_form_stays_as_it_is() -> None:
    module = Gemma3Attention(config(Gemma3TextConfig), 0)
    before = module.forward
    kernels.patch_attention(module)
    assert module.forward == before


def test_without_documents_it_is_the_usual_one() -> None:
    module = Qwen3Attention(config(Qwen3Config), 0)
    x, at = torch.randn(1, N, 48), (torch.ones(1, N, 16), torch.zeros(1, N, 16))
    wanted, _ = module(x, position_embeddings=at, attention_mask=None)
    kernels.patch_attention(module)
    found, _ = module(x, position_embeddings=at, attention_mask=None)
    assert torch.equal(found, wanted)
