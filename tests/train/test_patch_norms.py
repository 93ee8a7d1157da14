"""Faster norms and the losses' own way back give what torch and transformers give."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
from torch.nn import functional
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from heredity.train import kernels
from heredity.train.objectives.causal import cross_entropy


def both(x: torch.Tensor, weight: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Output, and the gradients of x and of the weight: transformers' and the faster."""
    found = []
    for is_quick in (False, True):
        module = Qwen3RMSNorm(x.shape[-1]).to(x.dtype)
        with torch.no_grad():
            module.weight.copy_(weight)
        if is_quick:
            kernels.patch_norms(module)
        given = x.detach().clone().requires_grad_()
        out = module(given)
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(x.dtype))
        found.append((out.detach(), given.grad, module.weight.grad))
    return found


@pytest.mark.parametrize("shape", [(1, 37, 48), (1, 37, 3, 16), (5, 8)])
def test_a_faster_norm_gives_transformers_numbers_both_ways(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    usual, quick = both(torch.randn(shape), torch.rand(shape[-1]) + 0.5)
    for a, b in zip(usual, quick, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_it_is_within_rounding_of_the_exact_numbers() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 64, 48), torch.rand(48) + 0.5
    exact, _ = both(x.bfloat16().float(), weight.bfloat16().float())
    _, quick = both(x.bfloat16(), weight.bfloat16())
    for a, b in zip(exact, quick, strict=True):
        torch.testing.assert_close(b.float(), a, rtol=2e-2, atol=2e-2 * float(a.abs().max()))


def test_a_norm_of_another_form_stays_as_it_is() -> None:
    module = Gemma3RMSNorm(16)
    before = module.forward
    kernels.patch_norms(module)
    assert module.forward == before


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_both_losses_and_their_gradient_are_torchs(z_loss: float, share: float) -> None:
    torch.manual_seed(0)
    logits, targets = 30 * torch.randn(19, 101), torch.randint(0, 101, (19,))
    one, two = (logits.clone().requires_grad_() for _ in range(2))
    far = z_loss * one.logsumexp(1).square().sum()
    wanted = functional.cross_entropy(one, targets, reduction="sum") + far
    found, found_far = cross_entropy(two, targets, z_loss)
    (share * wanted).backward()
    (share * found).backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found_far, far, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-6)
