"""Weights that are packed once for the processor: the same products."""

from __future__ import annotations

import pytest
import torch

from heredity.formats import weights


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_packed_weight_computes_what_the_plain_one_does(
    has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    torch.manual_seed(0)
    weight, bias = torch.randn(96, 64), torch.randn(96) if has_bias else None
    x = torch.randn(5, 3, 64)
    plain = torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(weights, "_is_packed_faster", lambda of: True)
    assert weights._pack(weight) is not None
    packed = weights.linear(weight, bias)(x)

    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("capability, is_packed", [("AVX2", True), ("AVX512", False), ("DEFAULT", False)])
def test_float32_is_packed_where_torch_has_no_wide_kernel(
    capability: str, is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    weights._is_packed_faster.cache_clear()
    try:
        assert weights._is_packed_faster(torch.float32) is is_packed
        assert weights._is_packed_faster(torch.bfloat16)
        assert not weights._is_packed_faster(torch.float64)
    finally:
        weights._is_packed_faster.cache_clear()
