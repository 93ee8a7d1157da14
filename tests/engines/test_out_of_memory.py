"""A GPU that runs out of memory: fewer requests are in flight, and every answer is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from heredity.core.errors import OutOfMemory
from heredity.core.records import Decoding, Message, Reply, Request
from heredity.engines.torch import autotune
from heredity.engines.torch.decoder import Decoder
from heredity.engines.torch.engine import TorchEngine, open_folder
from heredity.engines.torch.session import ContinuousBatch
from tests.support.errors import raises
from tests.support.recording_listener import RecordingListener

N = 6


@pytest.fixture
def engine(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> TorchEngine:
    monkeypatch.setattr(autotune, "WIDTHS", (2, 4, 8))
    made = open_folder(tiny_llama, dtype="float32", is_probed=False)
    made.pool.widths, made.pool._n_slots, made.pool._most_rows = (8,), (2, 4), 8
    return made


def requests(temperature: float = 0.0) -> list[Request]:
    texts = [f"the {word} fox" for word in ("quick", "brown", "lazy", "old", "wise", "seven")]
    decoding = Decoding(9, temperature)
    return [Request(i, (Message("user", text),), decoding, seed=i) for i, text in enumerate(texts)]


def answers(engine: TorchEngine, temperature: float = 0.0) -> dict[int, Reply]:
    return {reply.key: reply for reply in engine.reply(requests(temperature))}


def exhausted(method: Callable[..., Any], failures: list[int], calls: list[int]) -> Callable[..., Any]:
    """The method, whose calls of these numbers run out of memory."""

    def call(*given: Any, **named: Any) -> Any:
        calls.append(len(calls))
        if calls[-1] in failures:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return method(*given, **named)

    return call


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("failures", [[0], [3], [2, 5]])
def test_no_answer_is_lost_or_changed(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch, temperature: float, failures: list[int]
) -> None:
    expected = answers(engine, temperature)
    assert len(expected) == N
    monkeypatch.setattr(Decoder, "step", exhausted(Decoder.step, failures, []))
    assert answers(engine, temperature) == expected
    assert engine.pool._most_rows == 8 // 2 ** len(failures)


def test_a_row_whose_slot_found_no_memory_is_asked_again(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(engine)
    monkeypatch.setattr(ContinuousBatch, "_fit", exhausted(ContinuousBatch._fit, [4], []))
    assert answers(engine) == expected


def test_fewer_rows_are_in_flight_afterwards(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    widest: list[int] = []
    step = ContinuousBatch.step

    def counted(batch: ContinuousBatch) -> Any:
        widest.append(len(batch.rows))
        return step(batch)

    monkeypatch.setattr(ContinuousBatch, "step", counted)
    answers(engine)
    assert max(widest) == N
    monkeypatch.setattr(Decoder, "step", exhausted(Decoder.step, [0], []))
    answers(engine)
    widest.clear()
    answers(engine)
    assert max(widest) == 4


def test_a_listener_hears_each_part_once(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "step", exhausted(Decoder.step, [4], []))
    listener = RecordingListener()
    replies = {reply.key: reply.text for reply in engine.stream(requests(), listener)}
    assert {key: "".join(listener.heard[key]) for key in replies} == replies


def test_a_model_that_does_not_fit_ends_with_advice(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "step", exhausted(Decoder.step, list(range(99)), []))
    with raises(OutOfMemory, "out-of-memory", mentions=["2 requests in flight", "vllm"]):
        answers(engine)
