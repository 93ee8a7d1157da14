"""Memory of a batch: a change of capacity holds one layer twice, and longer rows stay inside the budget."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from heredity.core.records import Decoding
from heredity.engines.formats import weights
from heredity.engines.torch import decoder as _decoder
from heredity.engines.torch.batch import BatchRow, ContinuousBatch, Sampler
from heredity.engines.torch.decoder import BLOCK, Decoder


@pytest.fixture(scope="module")
def decoder(tiny_llama: Path) -> Decoder:
    return Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)


def test_only_one_layer_is_held_twice(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = decoder.slots(2, BLOCK)
    for at, cache in enumerate((*slots.keys, *slots.values)):
        cache += at + 1
    old = [weakref.ref(cache) for cache in (*slots.keys, *slots.values)]
    alive: list[int] = []
    zeros = torch.zeros

    def counted(*size: Any, **more: Any) -> torch.Tensor:
        alive.append(sum(each() is not None for each in old))
        return zeros(*size, **more)

    monkeypatch.setattr(_decoder.torch, "zeros", counted)
    slots.resize(4, 2 * BLOCK, 1)
    assert alive == list(range(len(old), 0, -1))
    assert (slots.width, slots.capacity) == (4, 2 * BLOCK)
    for at, cache in enumerate((*slots.keys, *slots.values)):
        assert (cache[0, :, :BLOCK] == at + 1).all()
        assert not cache[0, :, BLOCK:].any() and not cache[1:].any()


def test_longer_rows_narrow_a_batch_that_would_exceed_its_budget(decoder: Decoder) -> None:
    a_block = 2 * sum(cache.nbytes for cache in decoder.slots(1, BLOCK).keys)
    batch = ContinuousBatch(decoder, decoder.prefix(()), (1, 2, 8), lambda _: False, 8 * a_block)

    def row(key: int, n: int) -> BatchRow:
        return BatchRow(key, tuple(range(3, 3 + n)), 2, Sampler(Decoding(), key))

    with torch.inference_mode():
        for key in range(8):
            assert batch.has_room(row(key, 4))
            batch.admit(row(key, 4))
        assert batch._slots is not None and batch._slots.width == 8
        batch.step()
        assert len(batch.step()) == 8
        long = row(8, 3 * BLOCK)
        batch.admit(long)
        held = sum(cache.nbytes for cache in (*batch._slots.keys, *batch._slots.values))
        assert batch._slots.width == 2 and held <= 8 * a_block
        batch.step()
        assert len(long.output) == 1
