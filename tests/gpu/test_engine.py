"""The torch engine on a GPU: equal to the processor in float32, equal bits in company, and no memory left."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from heredity.core.errors import OutOfMemory
from heredity.core.host import CPU
from heredity.core.records import Decoding, Message, Reply, Request
from heredity.engines.torch.engine import TorchEngine, open_folder
from tests.gpu import GPU
from tests.support.tiny_models import WORDS, make_model

SYSTEM = Message("system", "the quick brown fox jumps over a lazy dog " * 3)


def requests(n: int, n_tokens: int = 24, temperature: float = 0.0) -> list[Request]:
    return [
        Request(
            i, (SYSTEM, Message("user", " ".join(WORDS[: 1 + i % len(WORDS)]))),
            Decoding(n_tokens, temperature), i, n_shared=1,
        )
        for i in range(n)
    ]  # fmt: skip


def answers(engine: TorchEngine, asked: list[Request]) -> dict[int, Reply]:
    return {reply.key: reply for reply in engine.reply(asked)}


def test_log_probabilities_equal_the_processors_in_float32(any_model: Path) -> None:
    scores = [
        open_folder(any_model, dtype="float32", is_probed=False, device=device)
        .score(requests(1)[0], ["the old oak tree watches"])[0]
        .logs
        for device in (CPU, GPU)
    ]
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_an_answer_is_the_same_alone_in_company_and_after_a_restart(
    any_model: Path, dtype: str, temperature: float
) -> None:
    engine = open_folder(any_model, dtype=dtype, device=GPU)
    if engine.capabilities.provenance.is_batch_unverified:
        assert "not verified" in engine.name
        pytest.skip(f"no width gives equal bits here, and the name says so: {engine.name}")
    asked = requests(2 * engine.width, temperature=temperature)
    together = answers(engine, asked)
    assert len(together) == len(asked)
    for request in (asked[0], asked[-1]):
        assert answers(engine, [request])[request.key] == together[request.key]
    again = open_folder(any_model, dtype=dtype, device=GPU)
    assert again.numerics == engine.numerics and answers(again, asked) == together


def test_the_name_and_the_numerics_tell_the_card(tiny_llama: Path) -> None:
    here, there = (open_folder(tiny_llama, is_probed=False, device=each) for each in (CPU, GPU))
    assert GPU.card in there.name and GPU.card in there.numerics
    assert GPU.is_cpu or here.numerics != there.numerics


@pytest.mark.skipif(GPU.is_cpu, reason="the memory of a processor is not taken away")
def test_a_card_without_room_has_fewer_requests_in_flight_and_loses_none(tmp_path: Path) -> None:
    model = make_model(
        tmp_path / "model", "llama", num_hidden_layers=8, max_position_embeddings=65_536, head_dim=128,
        num_key_value_heads=4,
    )  # fmt: skip
    engine = open_folder(model, dtype="float32", is_probed=False, device=GPU)
    engine.pool.widths, engine.pool._n_slots, engine.pool._most_rows = (64,), (2, 4, 8, 16, 32), 64
    engine.pool.budget = 1 << 60  # it plans for more than there is
    asked = requests(64, n_tokens=8)
    expected = answers(engine, asked)
    free = GPU.free_memory() or 0
    engine = open_folder(model, dtype="float32", is_probed=False, device=GPU)
    engine.pool.widths, engine.pool._n_slots, engine.pool._most_rows = (64,), (2, 4, 8, 16, 32), 64
    engine.pool.budget = 1 << 60
    a_slot = 2 * 8 * 4 * 128 * 64 * 4  # bytes of one block of positions
    taken = torch.empty(max(0, free - 24 * a_slot - (256 << 20)), dtype=torch.uint8, device="cuda")
    try:
        found = answers(engine, asked)
    except OutOfMemory:
        pytest.skip("less memory was free than the smallest batch needs")
    finally:
        del taken
    assert {key: reply.tokens for key, reply in found.items()} == {
        key: reply.tokens for key, reply in expected.items()
    }


def test_a_direction_and_a_suffix_are_found(tiny_llama: Path) -> None:
    engine = open_folder(tiny_llama, dtype="float32", is_probed=False, device=GPU)
    asked = requests(16)
    changed = engine.without(engine.direction(asked[:8], asked[8:]))
    assert answers(changed, asked[:1])
    mark = Request(0, (Message("user", "the quick @@"),), Decoding(4))
    assert engine.suffix(mark, "@@", "Sure", 1, 0)
