"""Compiled chains give what the steps one by one give, whatever size came first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch.nn import functional
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

from heredity.train import kernels
from heredity.train import kernels as fused
from heredity.train.models import causal_lm
from heredity.train.models.causal_lm import CausalLM
from heredity.train.objectives.causal import Causal, cross_entropy
from tests.support.errors import raises
from tests.support.marks import or_proof
from tests.support.tiny_models import ARCHITECTURES
from tests.train.test_causal_lm import DOCUMENTS

Found = tuple[torch.Tensor, ...]


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    """Asked only where these tests run: a trial takes seconds."""
    if why := fused.why_unavailable():
        pytest.skip(f"nothing can be compiled: {why}")


def near(found: Found, wanted: Found, dtype: torch.dtype) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        scale = float(b.float().abs().max())
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(a.float(), b.float(), rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 37, 48), torch.bfloat16), ((1, 52, 3, 16), torch.float32)], ids=str
)
def test_a_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    def both_ways(module: Any, x: torch.Tensor) -> Found:
        given = x.clone().requires_grad_()
        out = module(given)
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(dtype))
        assert given.grad is not None
        return out.detach(), given.grad, module.weight.grad

    torch.manual_seed(0)
    one, two = (Qwen3RMSNorm(shape[-1]).to(dtype) for _ in range(2))
    with torch.no_grad():
        two.weight.copy_(one.weight.add_(0.3 * torch.randn(shape[-1])))
    x = torch.randn(shape).to(dtype)
    kernels.patch_norms(two, is_fused=True)
    near(both_ways(two, x), both_ways(one, x), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate(dtype: torch.dtype) -> None:
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Config

    torch.manual_seed(0)
    one = Qwen3MLP(Qwen3Config(hidden_size=48, intermediate_size=80)).to(dtype)
    x = torch.randn(1, 37, 48).to(dtype)
    found = []
    for is_fused in (False, True):
        one.zero_grad()
        if is_fused:
            kernels.patch_feed_forward(one)
        given = x.clone().requires_grad_()
        out = one(given)
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(dtype))
        found.append((out.detach(), given.grad, *(p.grad.clone() for p in one.parameters())))
    near(found[1], found[0], dtype)


def test_a_turn() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 37, 3, 16)
    cos, sin = torch.randn(2, 1, 37, 1, 16)  # halves that differ, so that none stands for the other
    found = []
    for way in (kernels._Rotate, kernels._CompiledRotate):
        given = x.clone().requires_grad_()
        out: Any = way.apply(given, cos, sin)
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
        found.append((out.detach(), given.grad))
    near(found[1], found[0], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_loss_and_its_gradient_are_torchs(share: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, targets, z_loss = (30 * torch.randn(19, 101)).to(dtype), torch.randint(0, 101, (19,)), 1e-2
    one, two = logits.float().clone().requires_grad_(), logits.clone().requires_grad_()
    far = z_loss * one.logsumexp(1).square().sum()
    (share * (functional.cross_entropy(one, targets, reduction="sum") + far)).backward()
    found, found_far = cross_entropy(two, targets, z_loss, is_fused=True)
    (share * found).backward()
    torch.testing.assert_close(found_far, far)
    torch.testing.assert_close(found, functional.cross_entropy(one, targets, reduction="sum") + far)
    assert one.grad is not None and two.grad is not None
    near((two.grad,), (one.grad.to(dtype),), dtype)


def gradients(net: CausalLM, batch: causal_lm.PackedBatch) -> list[torch.Tensor]:
    net.model.zero_grad()
    (Causal(1e-4).loss(net, batch).total / len(batch.targets)).backward()
    return [p.grad.clone() for p in net.model.parameters()]


@pytest.mark.parametrize(
    "any_model",
    or_proof(sorted(ARCHITECTURES), ("llama", "gemma3_text")),  # the norms and the gate of Gemma are others
    indirect=True,
)
def test_a_network_has_the_gradients_of_the_steps_one_by_one(
    any_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal_lm, "LOGIT_ROWS", 7)  # so that the last part is a short one
    from heredity.train.data.chat import TokenizedExample

    usual = causal_lm.load(any_model, "float32")
    batch = causal_lm.collate([TokenizedExample(d) for d in DOCUMENTS])
    wanted = gradients(usual, batch)
    found = gradients(CausalLM(usual.model, any_model, is_fused=True), batch)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_its_bits_hang_on_no_size_that_came_before(tiny_llama: Path) -> None:
    """A run that goes on after a stop compiles anew, and for another batch first."""
    from heredity.engines.chat import Document
    from heredity.train.data.chat import TokenizedExample

    net = CausalLM(causal_lm.load(tiny_llama, "bfloat16").model, tiny_llama, is_fused=True)
    batches = [
        causal_lm.collate(
            [TokenizedExample(Document(tuple(range(5, 5 + n)), (False, *[True] * (n - 1))))] * times
        )
        for n, times in ((300, 9), (2, 1), (40, 3))
    ]

    def anew(order: list[int]) -> dict[int, list[torch.Tensor]]:
        torch._dynamo.reset()
        fused.compiled.cache_clear()
        return {i: gradients(net, batches[i]) for i in order}

    first, second = anew([0, 1, 2]), anew([2, 1, 0])
    for i in first:
        assert all(torch.equal(a, b) for a, b in zip(first[i], second[i], strict=True))


def test_what_cannot_be_compiled_is_told_and_never_taken_step_by_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any, **__: Any) -> Callable[..., Any]:
        raise RuntimeError("no C++ compiler\n was found")

    monkeypatch.setattr(torch, "compile", broken)
    fused.compiled.cache_clear()
    fused.why_unavailable.cache_clear()
    try:
        assert fused.why_unavailable() == "no C++ compiler was found"
        with raises(RuntimeError, mentions=["C++"]):
            fused.compiled(kernels._gate_forward)
    finally:
        monkeypatch.undo()
        fused.compiled.cache_clear()
        fused.why_unavailable.cache_clear()
