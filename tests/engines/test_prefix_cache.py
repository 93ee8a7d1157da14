"""Beginnings of prompts that are kept: the bits that would be computed, and no more than may be held."""

from __future__ import annotations

import random
from itertools import accumulate
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from heredity.core.records import Decoding
from heredity.engines.torch import decoder as _decoder
from heredity.engines.torch.decoder import CHUNK, PAD, Decoder, KvSlots, SharedPrefix
from heredity.engines.torch.engine import KvBits, KvQuantizedDecoder
from heredity.engines.torch.session import BatchRow, ContinuousBatch, PrefixCache, Sampler
from heredity.formats import weights


def tokens(n: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(3, 300), k=n))


def left_by(
    decoder: Decoder, own: tuple[int, ...], chunks: PrefixCache, prefix: tuple[int, ...]
) -> list[object]:
    """Every layer's keys and values of the row, and its logits after two steps."""
    batch = ContinuousBatch(decoder, decoder.prefix(prefix), (4,), lambda _: False, 1 << 32, chunks)
    batch.admit(BatchRow(0, own, 3, Sampler(Decoding(), 0)))
    batch.step()
    assert batch._slots is not None
    caches = (*batch._slots.keys, *batch._slots.values)
    sides = [cache[0, :, : len(own)].clone() for cache in caches]
    batch.step()
    return [*sides, batch.rows[0].output]


@pytest.mark.parametrize("n_prefix", [0, 70])
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_kept_beginning_has_the_bits_of_a_computed_one(
    any_kind: Path, dtype: str, bits: KvBits | None, n_prefix: int
) -> None:
    kind = getattr(torch, dtype)
    read = weights.read_weights(any_kind, kind)
    decoder = Decoder(read, kind) if bits is None else KvQuantizedDecoder(read, kind, bits)
    prefix = tokens(n_prefix, 9)
    shared = tokens(2 * CHUNK, 1)
    rows = [shared + tokens(n, n) for n in (1, 40, CHUNK, CHUNK + 7)] + [shared[:CHUNK] + tokens(30, 3)]
    kept = PrefixCache(1 << 30)
    with torch.inference_mode():
        for own in (*rows, *rows):
            first, second = left_by(decoder, own, PrefixCache(0), prefix), left_by(decoder, own, kept, prefix)
            assert first[-1] == second[-1]
            assert all(torch.equal(a, b) for a, b in zip(first[:-1], second[:-1], strict=True))


def test_what_is_known_is_not_computed_again(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    computed: list[int] = []
    through = decoder._forward

    def counted(new: _decoder.Pass) -> torch.Tensor:
        computed.append(len(new.tokens))
        return through(new)

    kept, own = PrefixCache(1 << 30), tokens(2 * CHUNK, 1)
    with torch.inference_mode():
        left_by(decoder, (*own, 5), kept, ())
        monkeypatch.setattr(decoder, "_forward", counted)
        left_by(decoder, (*own, 5), kept, ())
        assert computed == [4, 4]  # the two steps
        left_by(decoder, (*own, *tokens(20, 2)), kept, ())
        assert computed[2:] == [_decoder.padded(tokens(19, 2)), 4, 4]
        left_by(decoder, (*own, 5), kept, (7,))  # behind another prefix it is another beginning
        assert computed[5:] == [_decoder.padded((7,)), CHUNK, CHUNK, 4, 4]


def test_no_more_is_kept_than_may_be_and_what_was_used_last_stays(tiny_llama: Path) -> None:
    decoder = Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    empty, slots = decoder.prefix(()), decoder.slots(1, 2 * CHUNK)
    size = sum(cache[0, :, :CHUNK].nbytes for cache in (*slots.keys, *slots.values))
    kept, rows = PrefixCache(2 * size), [tokens(CHUNK, seed) for seed in range(3)]
    for own in (rows[0], rows[1], rows[0], rows[2]):
        kept.load(empty, own, slots, 0)
        kept.keep(empty, own, slots, 0)
    assert [kept.load(empty, own, slots, 0) for own in rows] == [CHUNK, 0, CHUNK]
    assert kept._size == 2 * size


def test_what_is_kept_does_not_dwindle(tiny_llama: Path) -> None:
    """Of beginnings that share their first chunk, some of which were let go in between."""
    decoder = Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    empty, slots = decoder.prefix(()), decoder.slots(1, 4 * CHUNK)
    size = sum(cache[0, :, :CHUNK].nbytes for cache in (*slots.keys, *slots.values))
    kept, stream = PrefixCache(5 * size), random.Random(4)
    rows = [tokens(CHUNK, seed % 2) + tokens(2 * CHUNK, seed) for seed in range(6)]
    for _ in range(200):
        own = stream.choice(rows)[: stream.choice((1, 2, 3)) * CHUNK]
        kept.load(empty, own, slots, 0)
        kept.keep(empty, own, slots, 0)
        assert kept._size == sum(part.nbytes for parts in kept._kept.values() for part in parts) <= 5 * size
        assert kept.load(empty, own, slots, 0) == len(own)  # of all that is kept, the last can be used
    assert len(kept._kept) == 5


def test_a_part_that_does_not_fit_into_memory_is_not_looked_for_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty, kept, prompt = SharedPrefix((), [], []), PrefixCache(1 << 20, is_fine=True), tokens(40, 1)
    slots = KvSlots([torch.zeros(1, 1, CHUNK, 1)], [torch.zeros(1, 1, CHUNK, 1)])

    def full(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not enough memory")

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "clone", full)
        with pytest.raises(RuntimeError, match="not enough memory"):
            kept.keep(empty, prompt, slots, 0)
    assert kept.n_cached(empty, prompt) == kept._size == 0
    kept.keep(empty, prompt, slots, 0)
    assert kept.n_cached(empty, prompt) == 32


def test_prompts_of_one_caller_tell_nothing_of_another() -> None:
    empty, kept, prompt = SharedPrefix((), [], []), PrefixCache(1 << 20, is_fine=True), tokens(40, 1)
    slots = KvSlots([torch.zeros(1, 1, CHUNK, 1)], [torch.zeros(1, 1, CHUNK, 1)])
    kept.keep(empty, prompt, slots, 0, "one")
    for caller, n_cached in (("one", 32), ("other", 0), ("", 0)):
        assert kept.n_cached(empty, prompt, caller) == kept.load(empty, prompt, slots, 0, caller) == n_cached
    kept.keep(empty, prompt, slots, 0, "other")
    assert len(kept._kept) == 2


def follows_what_is_kept(kept: PrefixCache, prompt: tuple[int, ...]) -> bool:
    end = len(prompt)
    while end and (held := kept._kept.get((("", ()), prompt[:end]))):
        end -= held[0].shape[1]
    return not end


@pytest.mark.parametrize("is_fine", [True, False])
def test_what_is_loaded_is_what_these_tokens_left_whatever_was_kept_and_dropped(is_fine: bool) -> None:
    """Prompts of few tokens share many beginnings. A position holds a number that its tokens determine."""
    stream, grain = random.Random(8), PAD if is_fine else CHUNK
    empty, budget = SharedPrefix((), [], []), 4 * 2 * 3 * CHUNK  # three chunks of float32, keys and values
    kept, seen = PrefixCache(budget, is_fine), list[tuple[int, ...]]()
    slots = KvSlots([torch.zeros(1, 1, 4 * CHUNK, 1)], [torch.zeros(1, 1, 4 * CHUNK, 1)])
    blocks = [tuple(stream.choices(range(3), k=grain)) for _ in range(2)]
    for _ in range(300):
        begun = stream.choice(seen)[: stream.randrange(4 * CHUNK)] if seen and stream.random() < 0.5 else ()
        prompt = begun + tuple(stream.choice(blocks) * stream.randrange(1, 4)) + (stream.randrange(3),)
        prompt = prompt[: 4 * CHUNK]
        left = torch.tensor(list(accumulate(prompt, lambda h, token: (31 * h + token + 7) % 2**20))).float()
        for cache in (slots.keys[0], slots.values[0]):
            cache.fill_(-1)
        n_cached = kept.n_cached(empty, prompt)
        assert kept.load(empty, prompt, slots, 0) == n_cached <= len(prompt) and n_cached % grain == 0
        for cache in (slots.keys[0], slots.values[0]):
            assert torch.equal(cache[0, 0, :n_cached, 0], left[:n_cached])
            cache[0, 0, : len(prompt), 0] = left
        usable = [tokens for _, tokens in kept._kept if follows_what_is_kept(kept, tokens)]
        assert n_cached == max((kept.n_shared(tokens, prompt) for tokens in usable), default=0)
        kept.keep(empty, prompt, slots, 0)
        if len(prompt) <= 3 * CHUNK:
            assert kept.n_cached(empty, prompt) == len(prompt) // grain * grain
        assert kept._size == sum(part.nbytes for parts in kept._kept.values() for part in parts) <= budget
        assert sorted(key[1] for key in kept._kept) == kept._ordered.get(("", ()), [])
        seen.append(prompt)
