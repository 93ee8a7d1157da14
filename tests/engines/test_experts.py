"""A mixture of experts: rows in tiles, whose bits do not depend on the company of a row."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from heredity.core.errors import Damaged
from heredity.core.records import Decoding, Message, Request
from heredity.engines.torch.engine import open_folder
from heredity.formats import weights
from heredity.formats.weights import Expert, Experts, Routing, steady_tile
from tests.support.errors import raises
from tests.support.tiny_models import WORDS, make_model


def layer(n_experts: int, routing: Routing, dtype: torch.dtype = torch.float32) -> Experts:
    stream = torch.Generator().manual_seed(1)

    def matrix(n_out: int, n_in: int) -> torch.Tensor:
        return (torch.randn(n_out, n_in, generator=stream) * n_in**-0.5).to(dtype)

    each = [Expert(weights.linear(matrix(96, 64)), weights.linear(matrix(64, 48))) for _ in range(n_experts)]
    return Experts(weights.linear(matrix(n_experts, 64)), each, routing, 4)


def rows(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, 64, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize("routing", [Routing(2), Routing(2, is_normed=True), Routing(1, is_sigmoid=True)])
def test_rows_get_the_weighted_sum_of_their_experts(routing: Routing) -> None:
    found, x = layer(5, routing), rows(23)
    scales, chosen = routing.choose(found.router(x))
    for i, row in enumerate(x):
        expected = torch.zeros(64)
        for scale, expert in zip(scales[i], chosen[i].tolist(), strict=True):
            before, after = (scale, 1.0) if routing.is_sigmoid else (1.0, scale)
            expected += found.each[expert](row[None] * before)[0] * after
        torch.testing.assert_close(found(x)[i], expected)
    if routing.is_normed:
        torch.testing.assert_close(scales.sum(1), torch.ones(23))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_whoever_shares_its_experts(dtype: torch.dtype) -> None:
    """The router is left out: its matmul has the width of the batch, which autotune proves."""
    found, x, stream = layer(4, Routing(2), dtype), rows(64, dtype), random.Random(3)
    tile = steady_tile(found.each[0], rows(4, dtype), "test")
    logits = {row.float().numpy().tobytes(): one for row, one in zip(x, found.router(x), strict=True)}

    def known(some: torch.Tensor) -> torch.Tensor:
        return torch.stack([logits[row.float().numpy().tobytes()] for row in some])

    steady = Experts(known, found.each, found.routing, tile)
    usual = steady(x)
    for n in (1, 2, 3, 7, 16, 40, 64):
        at = torch.tensor(stream.sample(range(64), n))
        assert torch.equal(steady(x[at]), usual[at])


def test_a_tile_is_one_row_where_places_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_STEADY", {})
    noise = torch.arange(8)[:, None] * 1e-3
    moody = Expert(lambda x: torch.cat([x, x], 1), lambda x: x + noise[: len(x)])
    assert steady_tile(moody, rows(4), "moody") == 1
    assert steady_tile(layer(1, Routing(1)).each[0], rows(4), "plain") in weights.TILES


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.proof)])
def test_an_answer_is_the_same_alone_and_in_company(tmp_path: Path, dtype: str) -> None:
    engine = open_folder(make_model(tmp_path, "qwen3_moe"), dtype=dtype)
    stream = random.Random(5)
    asked = [
        Request(i, (Message("user", " ".join(stream.choices(WORDS, k=1 + i % 9))),), Decoding(max_tokens=9))
        for i in range(24)
    ]
    together = {reply.key: reply for reply in engine.reply(asked)}
    backwards = {reply.key: reply for reply in engine.reply(asked[::-1])}
    assert together == backwards
    for request in asked[::4]:
        assert next(iter(engine.reply([request]))) == together[request.key]


def test_more_chosen_experts_than_there_are_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "qwen3_moe")
    config = (
        (folder / "config.json").read_text().replace('"num_experts_per_tok": 2', '"num_experts_per_tok": 9')
    )
    (folder / "config.json").write_text(config)
    with raises(Damaged, code="damaged"):
        weights.read_weights(folder, torch.float32)
