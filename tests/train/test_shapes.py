"""The dial: what a size sets."""

from __future__ import annotations

import pytest

from heredity.core.errors import UsageError
from heredity.train.models import shapes
from heredity.train.models.shapes import TransformerShape
from tests.support.errors import raises

LLAMA_3_8B = TransformerShape(32, 4096, 32, 8, 128, 14336, 8192, 128_256, is_tied=False)


def test_parameters_of_a_published_shape_are_the_published_number() -> None:
    # 8,030,261,248 with its 65 norms of 4096 (2407.21783's 8B, as its config.json counts).
    assert shapes.n_parameters(LLAMA_3_8B) == 8_030_261_248 - 65 * 4096


def test_flops_of_a_token_are_six_a_parameter_and_attention() -> None:
    n = shapes.n_matrix_parameters(LLAMA_3_8B) + LLAMA_3_8B.vocabulary * LLAMA_3_8B.width
    attention = 6 * LLAMA_3_8B.layers * LLAMA_3_8B.width * LLAMA_3_8B.context
    assert shapes.flops_per_token(LLAMA_3_8B) == 6 * n + attention


@pytest.mark.parametrize(
    ("size", "vocabulary"),
    [
        ("1M", 2048),
        ("10M", 8192),
        ("50M", 16384),
        ("135M", 49152),
        ("1B", 128_256),
        ("8B", 128_256),
        ("70B", 128_256),
    ],
)
def test_a_size_is_the_number_of_parameters_within_a_tenth(size: str, vocabulary: int) -> None:
    found = shapes.size_preset(size, vocabulary, 1024)
    assert shapes.n_parameters(found.shape) == pytest.approx(shapes.parse_size(size), rel=0.1)
    assert found.shape.heads * found.shape.head == found.shape.width
    assert found.shape.heads % found.shape.kv_heads == 0
    assert found.tokens == 20 * shapes.n_parameters(found.shape)


def test_batch_and_rate_follow_the_published_powers_of_compute() -> None:
    found = shapes.size_preset("1B", 128_256, 1024)
    compute = found.tokens * shapes.flops_per_token(found.shape)
    assert found.batch == pytest.approx(0.2920 * compute**0.3271, rel=0.01)
    assert found.rate == pytest.approx(0.3118 * compute**-0.1250, rel=0.05)


def test_what_is_given_stands_and_the_rest_follows_from_it() -> None:
    found = shapes.size_preset("10M", 8192, 512, {"layers": 3, "tokens": 1_000_000, "rate": 0.5, "batch": 0})
    assert (found.shape.layers, found.tokens, found.rate) == (3, 1_000_000, 0.5)
    assert found.batch % 512 == 0 and found.tokens / found.batch >= 99


@pytest.mark.parametrize("size", ["10", "M", "-1M", "ten"])
def test_what_is_no_size_is_refused(size: str) -> None:
    with raises(UsageError, "bad-usage"):
        shapes.size_preset(size, 8192, 512)


def test_a_vocabulary_too_large_for_the_size_is_refused() -> None:
    with raises(UsageError, "bad-usage"):
        shapes.size_preset("1M", 128_256, 512)


def test_heads_that_cannot_share_are_refused() -> None:
    with raises(UsageError, "bad-usage", mentions=["3"]):
        shapes.size_preset("10M", 8192, 512, {"kv_heads": 3})
