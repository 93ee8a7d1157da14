"""Attention in rows of like length is attention within each document, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from heredity.train import kernels
from heredity.train import kernels as attention_blocks
from heredity.train import kernels as bidirectional
from heredity.train.kernels import causal_attention

LENGTHS = (40, 31, 31, 30, 7, 2)  # four of like length, and two alone
N_HEADS, N_KEYS, SIZE = 6, 2, 16
SCALE = 0.3

Tensors = tuple[torch.Tensor, ...]


def made(lengths: tuple[int, ...] = LENGTHS, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn((1, n, sum(lengths), SIZE), generator=generator).to(dtype).requires_grad_()
        for n in (N_HEADS, N_KEYS, N_KEYS)
    ]


def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Each document by itself, as it is written in the books."""
    out = []
    parts = zip(*(x[0].split(LENGTHS, 1) for x in (q, k, v)), strict=True)
    for one, keys, values in parts:
        keys, values = (x.repeat_interleave(N_HEADS // N_KEYS, 0) for x in (keys, values))
        ages = torch.arange(one.shape[1])[:, None] - torch.arange(one.shape[1])[None]
        unseen = (ages < 0) | (ages >= (window or one.shape[1]))
        scores = (one @ keys.transpose(1, 2) * SCALE).masked_fill(unseen, -torch.inf)
        out.append((functional.softmax(scores, -1) @ values).transpose(0, 1))
    return torch.cat(out)[None]


def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = None) -> torch.Tensor:
    return causal_attention(None, q, k, v, None, SCALE, LENGTHS, window)[0]


def back(of: Callable[..., torch.Tensor], window: int | None, dtype: torch.dtype = torch.float32) -> Tensors:
    """What comes out, and the gradients of what went in."""
    given = made(dtype=dtype)
    out = of(*given, window)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype))
    return (out.detach(), *(x.grad for x in given if x.grad is not None))


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU on which torch's kernel is slow, with rows of these lengths cut into several blocks."""
    monkeypatch.setattr(kernels, "is_fused_kernel_fast", lambda _: False)
    monkeypatch.setattr(attention_blocks, "_MIN_QUERIES", 16)


@pytest.mark.parametrize("short", [0, 30, 1000], ids=["fused", "both", "products"])
@pytest.mark.parametrize("window", [None, 5, 31], ids=str)
def test_it_is_that_of_each_document_alone_and_so_are_its_gradients(
    short: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "is_fused_kernel_fast", lambda _: True)
    monkeypatch.setattr(kernels, "SHORT_ROWS", short)
    assert_like_the_books(window)


@pytest.mark.usefixtures("in_blocks")
@pytest.mark.parametrize("most", [1, 1 << 24], ids=["small", "usual"])
@pytest.mark.parametrize("window", [None, 5, 17, 31], ids=str)
def test_in_blocks_it_is_the_same(most: int, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_blocks, "_MAX_SCORES", most)
    assert attention_blocks.block_size(4 * N_HEADS, 48) == 16
    assert_like_the_books(window)


def test_blocks_are_of_one_size_and_small_where_there_are_many_rows() -> None:
    for n in range(16, 5000, 16):
        size = attention_blocks.block_size(10, n)
        assert size % 16 == 0 and size <= max(128, n // 8 + 16)
        assert -(-n // size) * size - n < 16 * -(-n // size)  # what the last lacks, of all of them
    assert 64 * 8192 * attention_blocks.block_size(64, 8192) <= 1 << 24


def assert_like_the_books(window: int | None) -> None:
    found, wanted = back(ours, window), back(alone, window)
    assert len(found) == len(wanted) == 4
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("is_quick", [True, False], ids=["kernel", "blocks"])
def test_in_bfloat16_it_is_as_near_to_the_truth_as_the_books(
    is_quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "is_fused_kernel_fast", lambda _: is_quick)
    monkeypatch.setattr(attention_blocks, "_MIN_QUERIES", 16)

    def truth() -> Tensors:
        given = [x.detach().float().requires_grad_() for x in made(dtype=torch.bfloat16)]
        out = alone(*given)
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().float())
        return (out.detach(), *(x.grad for x in given if x.grad is not None))

    def far(found: Tensors) -> list[float]:
        return [
            float((one.float() - other).norm() / other.norm())
            for one, other in zip(found, truth(), strict=True)
        ]

    mine = far(back(ours, None, torch.bfloat16))
    theirs = far(back(alone, None, torch.bfloat16))
    assert max(mine) < 0.01
    assert all(one < 1.5 * other for one, other in zip(mine, theirs, strict=True)), (mine, theirs)


def test_a_document_alone_gives_what_it_gives_among_others() -> None:
    q, k, v = made()
    among = ours(q, k, v)
    start = 0
    for n in LENGTHS:
        part = [x[:, :, start : start + n] for x in (q, k, v)]
        found = causal_attention(None, *part, None, SCALE, (n,))[0]
        torch.testing.assert_close(found, among[:, start : start + n], atol=1e-6, rtol=1e-5)
        start += n


@pytest.mark.parametrize("window", [None, 5, 17], ids=str)
def test_to_both_sides_blocks_give_what_the_kernel_gives(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of documents some of which fill up their row, and some of which do not."""

    def found(is_quick: bool) -> Tensors:
        monkeypatch.setattr(bidirectional, "is_fused_kernel_fast", lambda _: is_quick)
        given = [made()[0].detach().requires_grad_() for _ in range(3)]
        out = bidirectional.bidirectional_attention(None, *given, None, SCALE, LENGTHS, window)[0]
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))
        return (out.detach(), *(x.grad for x in given if x.grad is not None))

    monkeypatch.setattr(attention_blocks, "_MIN_QUERIES", 16)
    assert kernels.row_groups(LENGTHS)[0] == ((40, 31, 31, 30), 48)
    for one, other in zip(found(False), found(True), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_another_device_is_taken_to_be_quick_and_leaves_no_mask_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "_has_amx", lambda: False)
    given = made(dtype=torch.bfloat16)
    assert not kernels.is_fused_kernel_fast(given[0])
    with kernels.assume_accelerator():
        assert kernels.is_fused_kernel_fast(given[0])
        ours(*given)
    assert not kernels.is_fused_kernel_fast(given[0]) and not kernels.row_indices.cache_info().currsize
