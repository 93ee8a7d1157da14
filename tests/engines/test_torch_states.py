"""States that are read of a prompt: those of transformers' model, and whatever the company the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from heredity.core.errors import ContextOverflow, EngineFailure
from heredity.core.records import Message, Request
from heredity.engines.torch.engine import TorchEngine, open_folder
from tests.support.errors import raises

TEXTS = ["the quick brown fox", "an old oak tree while seven wise owls watch over a lazy dog " * 6, "dog"]


def request(text: str, n_shared: int = 0) -> Request:
    return Request(0, (Message("system", "the wise owls"), Message("user", text)), n_shared=n_shared)


@pytest.fixture(scope="module")
def engine(any_kind: Path) -> TorchEngine:
    return open_folder(any_kind, dtype="float32", width=8, is_probed=False)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_state_is_what_transformers_has_behind_that_layer(
    engine: TorchEngine, any_kind: Path, n_layers: int
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(any_kind, dtype=torch.float32)
    for text in TEXTS:
        tokens = torch.tensor([engine.codec.encode(engine.render(request(text)))])
        with torch.inference_mode():
            theirs = model(tokens, output_hidden_states=True).hidden_states[n_layers][0, -1]
        assert torch.allclose(engine.until(n_layers).state(request(text)), theirs, atol=2e-4, rtol=2e-4)


def test_a_state_hangs_on_nothing_that_was_read_before(engine: TorchEngine) -> None:
    reader, again = engine.until(2), engine.until(2)
    forwards = [reader.state(request(text)) for text in TEXTS]
    backwards = [again.state(request(text)) for text in TEXTS[::-1]][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_a_shared_beginning_changes_no_more_than_the_arithmetic_s_rounding(engine: TorchEngine) -> None:
    whole, shared = (engine.until(2).state(request(TEXTS[1], n)) for n in (0, 1))
    assert torch.allclose(whole, shared, atol=2e-4, rtol=2e-4)


def test_what_is_not_there_cannot_be_read(engine: TorchEngine) -> None:
    for n_layers in (0, engine.n_layers + 1):
        with raises(EngineFailure, "engine-failure"):
            engine.until(n_layers)
    with pytest.raises(ContextOverflow):
        engine.until(1).state(request("fox " * 600))
    assert "first 2 layers" in engine.until(2).numerics
