"""Memory of a batch: a change of capacity holds one layer twice, and longer rows stay inside the budget."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from heredity.core.records import Decoding
from heredity.engines.torch import decoder as _decoder
from heredity.engines.torch.decoder import BLOCK, Decoder, KvWrites
from heredity.engines.torch.engine import KvBits, KvQuantizedDecoder
from heredity.engines.torch.session import BatchRow, ContinuousBatch, Sampler
from heredity.formats import weights


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


@pytest.mark.parametrize("bits", [None, 4])
def test_a_prefill_that_nobody_reads_leaves_the_same_cache_and_skips_the_last_layer(
    any_kind: Path, bits: KvBits | None
) -> None:
    loaded = weights.read_weights(any_kind, torch.bfloat16)

    def make(loaded: weights.Weights) -> Decoder:
        if bits is None:
            return Decoder(loaded, torch.bfloat16)
        return KvQuantizedDecoder(loaded, torch.bfloat16, bits)

    own = tuple(torch.randint(3, 300, (2 * BLOCK + 5,), generator=torch.Generator().manual_seed(3)).tolist())
    calls: list[str] = []

    def hook(x: torch.Tensor) -> torch.Tensor:
        calls.append("")
        return x

    def left(decoder: Decoder, **how: bool) -> list[torch.Tensor]:
        slots = decoder.slots(2, 3 * BLOCK)
        decoder.prefill(decoder.prefix((5, 6, 7)), slots, 1, own, **how)
        return [*slots.keys, *slots.values]

    with torch.inference_mode():
        expected = left(make(loaded))
        assert all(map(torch.equal, left(make(loaded).hooked(hook), is_read=False), expected))
        n_calls = len(calls)
        left(make(loaded).hooked(hook))
        assert len(calls) == 2 * n_calls  # a hook is called as often as ever

        def fail(x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("computed for nobody")

        *blocks, last = loaded.blocks
        unread = replace(loaded, blocks=[*blocks, replace(last, down=fail)])
        assert all(map(torch.equal, left(make(unread), is_read=False), expected))


def test_longer_rows_narrow_a_batch_that_would_exceed_its_budget(decoder: Decoder) -> None:
    a_block = 2 * sum(cache.nbytes for cache in decoder.slots(1, BLOCK).keys)
    batch = ContinuousBatch(decoder, decoder.prefix(()), (1, 2, 8), lambda _: False, 12 * a_block)

    def row(key: int, n: int) -> BatchRow:
        return BatchRow(key, tuple(range(3, 3 + n)), 2, Sampler(Decoding(), key))

    with torch.inference_mode():
        for key in range(8):
            assert batch.has_room(row(key, 4))
            batch.admit(row(key, 4))
        assert batch._slots is not None and batch._slots.width == 8
        batch.step()
        assert len(batch.step()) == 8
        long, also_long = row(8, 3 * BLOCK), row(9, 3 * BLOCK)
        batch.admit(long)
        assert batch._slots.width == 1 and batch.has_room(also_long)
        batch.admit(also_long)
        held = sum(cache.nbytes for cache in (*batch._slots.keys, *batch._slots.values))
        assert batch._slots.width == 2 and held <= 12 * a_block
        batch.step()
        assert len(long.output) == 1


def test_the_last_rows_of_a_batch_read_only_their_own_caches(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long conversation that is left alone must not pay for empty slots as long as its own."""
    read: list[tuple[int, int, int]] = []
    step = decoder.step

    def noted(prefix: Any, slots: Any, tokens: Any, lengths: Any, n_slots: int) -> torch.Tensor:
        read.append((len(tokens), n_slots, slots.width))
        return step(prefix, slots, tokens, lengths, n_slots)

    def answer(n_slots: tuple[int, ...]) -> list[int]:
        batch = ContinuousBatch(
            decoder, decoder.prefix((3, 4)), (8,), lambda _: False, 1 << 30, None, n_slots
        )
        last = BatchRow(0, tuple(range(3, 40)), 2 * BLOCK, Sampler(Decoding(), 0))
        with torch.inference_mode():
            batch.admit(last)
            for key in range(1, 6):
                batch.admit(BatchRow(key, (5, 6, key + 3), 3, Sampler(Decoding(), key)))
            while batch.rows:
                batch.step()
        return last.output

    alone = answer((1, 2, 4))
    monkeypatch.setattr(decoder, "step", noted)
    assert answer((1, 2, 4)) == alone == answer(())
    first = read[: 2 * BLOCK]
    assert first[0] == (8, 8, 8) and first[3] == (8, 1, 8) and first[-1] == (8, 1, 1)
    assert read[-1] == (8, 8, 8)  # without proven numbers of slots, all of the width is read


def test_one_row_attends_to_a_prefix_as_it_does_among_others(decoder: Decoder) -> None:
    """A matmul of fewer than four rows takes another kernel, which sums in another order."""
    shape, stream = decoder.shape, torch.Generator().manual_seed(3)

    def drawn(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=stream)

    def attended(n: int) -> torch.Tensor:
        own = torch.arange(n)
        slots, lengths = decoder.slots(n, BLOCK), torch.zeros(n, dtype=torch.long)
        attend = decoder._attend_all(prefix, slots, lengths, n, KvWrites(own, own, lengths))
        return attend(0, q[:n], k[:n], v[:n])

    with torch.inference_mode():
        prefix = decoder.prefix(tuple(range(3, 90)))
        q = drawn(8, shape.n_heads, shape.head_dim)
        k, v = (drawn(8, shape.n_kv_heads, shape.head_dim) for _ in range(2))
        expected = attended(8)
        for n in (1, 2, 4):
            assert torch.equal(attended(n), expected[:n])
