"""A KV cache in 8 and 4 bits: what is rounded and when, and that a row's bits depend on that row only."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from heredity.core.records import Decoding, Message, Request
from heredity.engines.torch.decoder import BLOCK, Decoder, KvSlots, SharedPrefix
from heredity.engines.torch.engine import (
    GROUP,
    KvBits,
    KvQuantizedDecoder,
    TorchEngine,
    open_folder,
    round_keys,
    round_values,
)
from heredity.formats import weights
from tests.support.batch_caches import caches
from tests.support.tiny_models import WORDS

NOTHING = SharedPrefix((), [], [])
SYSTEM = Message("system", " ".join(WORDS * 2))


def tokens(n: int, seed: int = 1) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(3, 300), k=n))


def decoders(folder: Path, bits: KvBits, dtype: torch.dtype = torch.float32) -> tuple[Decoder, Decoder]:
    """The plain decoder, and the one with a rounded cache."""
    read = weights.read_weights(folder, dtype)
    return Decoder(read, dtype), KvQuantizedDecoder(read, dtype, bits)


def prefilled(
    decoder: Decoder, own: tuple[int, ...], prefix: SharedPrefix = NOTHING
) -> tuple[KvSlots, torch.Tensor]:
    slots = decoder.slots(1, 4 * BLOCK)
    with torch.inference_mode():
        hidden = decoder.prefill(prefix, slots, 0, own)[: len(own)]
        return slots, decoder.logits(hidden)


# --- the rounding ---


@pytest.mark.parametrize("bits", [4, 8])
def test_each_number_is_within_half_a_step_of_its_group_and_a_group_has_2_to_the_bits_numbers(
    bits: KvBits,
) -> None:
    x = torch.randn(2, 64, 48, generator=torch.Generator().manual_seed(1))
    for found, groups, dim in (
        (round_keys(x, bits), x.unflatten(1, (-1, GROUP)), 2),
        (round_values(x, bits), x.unflatten(2, (-1, 16)), 3),
    ):
        step = (groups.amax(dim, keepdim=True) - groups.amin(dim, keepdim=True)) / (2**bits - 1)
        rounded = found.reshape(groups.shape)
        assert ((rounded - groups).abs() <= step * 0.5001 + 1e-6).all()
        assert max(len(row.unique()) for row in rounded.movedim(dim, -1).flatten(0, -2)) <= 2**bits
        assert not torch.equal(found, x)


def test_a_channel_with_large_keys_takes_no_digits_from_the_others() -> None:
    """The finding of KIVI: rounded by position, one such channel coarsens all."""
    keys = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(2))
    keys[:, :, 5] += 100
    others = [channel for channel in range(32) if channel != 5]
    lost = [
        (found - keys)[..., others].abs().mean() for found in (round_keys(keys, 4), round_values(keys, 4))
    ]
    assert lost[0] < 0.1 * lost[1]


def test_equal_numbers_stay_as_they_are() -> None:
    same = torch.full((1, 70, 32), 3.0)
    assert torch.equal(round_keys(same, 4), same) and torch.equal(round_values(same, 4), same)


# --- what is rounded, and when ---


@pytest.mark.parametrize("n", [1, 63, 64, 65, 150, 192])
def test_whole_blocks_are_rounded_and_the_newest_positions_are_not(any_kind: Path, n: int) -> None:
    """In the first layer keys and values do not depend on attention: they are those of the plain decoder."""
    plain, ours = decoders(any_kind, 4)
    (whole, _), (rounded, _) = prefilled(plain, tokens(n)), prefilled(ours, tokens(n))
    for side, how in (("keys", round_keys), ("values", round_values)):
        before, after = getattr(whole, side)[0][0], getattr(rounded, side)[0][0]
        for start in range(0, n // BLOCK * BLOCK, BLOCK):
            block = slice(start, start + BLOCK)
            assert torch.allclose(after[:, block], how(before[:, block], 4), atol=1e-4)
        rest = slice(n // BLOCK * BLOCK, n)
        assert torch.allclose(after[:, rest], before[:, rest], atol=1e-5)


def test_a_prompt_in_one_pass_and_token_by_token_leave_the_same_cache_and_logits(any_kind: Path) -> None:
    _, ours = decoders(any_kind, 8)
    own = tokens(2 * BLOCK + 9)
    slots, logits = prefilled(ours, own)
    stepped = ours.slots(1, 4 * BLOCK)
    with torch.inference_mode():
        found = [
            ours.step(NOTHING, stepped, torch.tensor([token]), torch.tensor([at]))[0]
            for at, token in enumerate(own)
        ]
    assert torch.allclose(torch.stack(found), logits, atol=0.02)
    for before, after in zip((*slots.keys, *slots.values), (*stepped.keys, *stepped.values), strict=True):
        far = (before - after)[:, :, : len(own)].abs()
        assert far.max() < 0.1 and far.mean() < 1e-3  # a number between two steps may fall to either side


def test_more_bits_are_nearer_to_the_plain_decoder_and_short_texts_are_equal(any_kind: Path) -> None:
    own = tokens(150)
    _, plain = prefilled(decoders(any_kind, 8)[0], own)
    far = {bits: (prefilled(decoders(any_kind, bits)[1], own)[1] - plain).abs() for bits in (4, 8)}
    assert all(bool((each[:BLOCK] < 1e-4).all()) for each in far.values())
    assert 0 < far[8][BLOCK:].mean() < 0.3 * far[4][BLOCK:].mean()


def test_a_shared_prefix_is_rounded_whole_and_gives_the_numbers_of_an_unshared_one(any_kind: Path) -> None:
    plain, ours = decoders(any_kind, 4)
    own = tokens(150)
    with torch.inference_mode():
        shared = ours.prefix(own[:BLOCK])
        odd, whole = ours.prefix(own[:70]), plain.prefix(own[:70])
    assert torch.allclose(odd.keys[0][:, 64:70], round_keys(whole.keys[0][:, 64:70], 4), atol=1e-4)
    _, together = prefilled(ours, own[BLOCK:], shared)
    _, apart = prefilled(ours, own)
    assert (together - apart[BLOCK:]).abs().mean() < 0.05 * (
        apart - prefilled(plain, own)[1]
    ).abs().mean() + 1e-4


def test_a_decoder_with_a_hook_or_fewer_layers_keeps_its_rounding(tiny_llama: Path) -> None:
    _, ours = decoders(tiny_llama, 4)
    for other in (ours.hooked(lambda x: x), ours.until(2)):
        assert isinstance(other, KvQuantizedDecoder) and other.cache_form == ours.cache_form != ""
    engine = open_folder(tiny_llama, dtype="float32", is_probed=False, kv_bits=4)
    assert engine.until(2).numerics.startswith(engine.numerics) and "kv int4" in engine.numerics


# --- a row by itself ---


def questions(n: int) -> list[Request]:
    stream = random.Random(3)
    texts = [" ".join(stream.choices(WORDS, k=stream.randint(1, 60))) for _ in range(n)]
    lengths = [stream.randint(1, 90) for _ in range(n)]
    return [
        Request(i, (SYSTEM, Message("user", text)), Decoding(length), n_shared=1)
        for i, (text, length) in enumerate(zip(texts, lengths, strict=True))
    ]


def answers(engine: TorchEngine, asked: list[Request]) -> dict[int, tuple[int, ...]]:
    return {reply.key: tuple(reply.tokens) for reply in engine.reply(asked)}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.proof)])
@pytest.mark.parametrize("bits", [4, 8])
def test_an_answer_is_the_same_alone_in_company_in_any_order_and_after_a_restart(
    tiny_llama: Path, tmp_path: Path, dtype: str, bits: KvBits
) -> None:
    asked = questions(30)
    engine = open_folder(tiny_llama, tmp_path / "t", dtype=dtype, kv_bits=bits)
    together = answers(engine, asked)
    assert any(len(each) > 64 for each in together.values())  # blocks filled by steps
    assert answers(engine, asked[::-1]) == together
    assert {key: each for one in asked[::5] for key, each in answers(engine, [one]).items()} == {
        one.key: together[one.key] for one in asked[::5]
    }
    again = open_folder(tiny_llama, tmp_path / "t", dtype=dtype, width=8, kv_bits=bits)
    assert answers(again, asked[20:]) == {key: together[key] for key in range(20, 30)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_s_cache_keeps_its_bits_in_company(any_kind: Path, dtype: str) -> None:
    engine = open_folder(any_kind, dtype=dtype, kv_bits=4)
    asked = [
        Request(i, (SYSTEM, Message("user", " ".join(WORDS[: 1 + 3 * i]))), n_shared=1) for i in range(6)
    ]
    together, backwards = caches(engine, asked, 70), caches(engine, asked[::-1], 70)
    for request in asked[::2]:
        alone = caches(engine, [request], 70)[request.key]
        assert torch.equal(alone, together[request.key]) and torch.equal(alone, backwards[request.key])
