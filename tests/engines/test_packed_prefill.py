"""Packed prefills: several rows in one pass, cut anywhere, with the bits of a row by itself."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from heredity.engines.chat import ChatCodec
from heredity.engines.torch import autotune
from heredity.engines.torch.decoder import (
    BLOCK,
    CHUNK,
    PAD,
    Decoder,
    KvSlots,
    Segment,
    SharedPrefix,
    padded,
)
from heredity.engines.torch.engine import KvQuantizedDecoder, TorchEngine
from heredity.engines.torch.session import Prefiller, PrefixCache, packed
from heredity.formats import weights
from tests.support.marks import or_proof
from tests.support.tiny_models import make_model

WIDTHS = (64, 128)


def tokens(n: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(3, 300), k=n))


def sides(slots: KvSlots, slot: int, n: int) -> list[torch.Tensor]:
    return [cache[slot, :, :n].clone() for cache in (*slots.keys, *slots.values)]


def cut(slot: int, own: tuple[int, ...], ends: list[int]) -> list[Segment]:
    return [Segment(slot, a, own[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


class Watched:
    """Counts the tokens that a decoder prefills."""

    def __init__(self, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_tokens: list[int] = []
        through = decoder.prefill_packed

        def watched(prefix: Any, slots: Any, segments: list[Segment], width: int) -> None:
            self.n_tokens.append(sum(len(segment.tokens) for segment in segments))
            assert width == min(w for w in WIDTHS if w >= self.n_tokens[-1])
            through(prefix, slots, segments, width)

        monkeypatch.setattr(decoder, "prefill_packed", watched)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Batched matmuls whose sums are exact, so that no order of them can show."""

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.matmul(left.double(), right.double()).to(left.dtype)

    monkeypatch.setattr(torch, "bmm", product)
    return product


@pytest.mark.parametrize("n_prefix", [0, 1, 70])
def test_packed_segments_have_the_numbers_of_rows_by_themselves(any_kind: Path, n_prefix: int) -> None:
    decoder = Decoder(weights.read_weights(any_kind, torch.float32), torch.float32)
    with torch.inference_mode():
        prefix = decoder.prefix(tokens(n_prefix, 9))
        alone, together = decoder.slots(3, 2 * BLOCK), decoder.slots(3, 3 * BLOCK)
        rows = {0: tokens(96, 1), 2: tokens(112, 2)}
        for slot, own in rows.items():
            decoder.prefill(prefix, alone, slot, own)
        first, second = cut(0, rows[0], [16, 80, 96]), cut(2, rows[2], [48, 64, 112])
        for segments in zip(first, second, strict=True):
            decoder.prefill_packed(prefix, together, segments, 128)
        for slot, own in rows.items():
            for a, b in zip(sides(alone, slot, len(own)), sides(together, slot, len(own)), strict=True):
                assert torch.allclose(a, b, atol=1e-4, rtol=1e-3)
        assert not any(cache[1].any() for cache in (*together.keys, *together.values))


def test_a_packed_pass_calls_a_hook_as_often_as_it_promises(tiny_llama: Path) -> None:
    calls: list[int] = []

    def hook(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x

    decoder = Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32, hook)
    with torch.inference_mode():
        decoder.prefill_packed(decoder.prefix(()), decoder.slots(1, BLOCK), [Segment(0, 0, (5,) * PAD)], 64)
    assert calls == [64] * (1 + 2 * decoder.shape.n_layers)


def filled(
    decoder: Decoder,
    prefix: SharedPrefix,
    waves: list[list[tuple[int, ...]]],
    widths: tuple[int, ...],
    budget: int,
) -> dict[tuple[int, ...], list[torch.Tensor]]:
    """The keys and values of every prompt, prefilled wave by wave through one cache."""
    prefill, found = Prefiller(decoder, prefix, PrefixCache(budget, bool(widths)), widths), {}
    for wave in waves:
        slots = decoder.slots(len(wave), 9 * BLOCK)
        prefill.fill(slots, dict(enumerate(wave)))
        found |= {prompt: sides(slots, at, len(prompt)) for at, prompt in enumerate(wave)}
    return found


@pytest.fixture(scope="module", params=or_proof(("llama", "qwen2", "qwen3"), ("llama",)))
def wide_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 64 numbers, as in real models: more machines prove widths for it than for the tiny ones."""
    return make_model(
        tmp_path_factory.mktemp("wide"), request.param, hidden_size=384, intermediate_size=512,
        num_attention_heads=6, num_hidden_layers=2, max_position_embeddings=2048,
    )  # fmt: skip


BITS = pytest.mark.parametrize(("n_prefix", "dtype"), [(0, "float32"), (70, "float32"), (70, "bfloat16")])


@BITS
def test_a_prompt_of_a_wider_model_keeps_its_bits_in_company(
    wide_model: Path, n_prefix: int, dtype: str
) -> None:
    assert_keeps_bits(wide_model, n_prefix, getattr(torch, dtype))


@BITS
def test_a_prompt_keeps_its_bits_in_company_and_behind_a_kept_beginning(
    any_kind: Path, n_prefix: int, dtype: str
) -> None:
    assert_keeps_bits(any_kind, n_prefix, getattr(torch, dtype))


def assert_keeps_bits(model: Path, n_prefix: int, dtype: torch.dtype) -> None:
    """Under widths that the probe of this machine has proven; it may prove none."""
    decoder = Decoder(weights.read_weights(model, dtype), dtype)
    with torch.inference_mode():
        prefix = decoder.prefix(tokens(n_prefix, 9))
        widths = autotune._pass_widths(decoder, prefix)
        turn = tokens(70, 1)
        longer = turn + tokens(60, 2)
        prompts = [
            turn,
            longer,
            tokens(9, 3),
            tokens(300, 4),
            longer + tokens(CHUNK, 5),
            turn[:40] + tokens(200, 6),
        ]
        alone = filled(decoder, prefix, [[prompt] for prompt in prompts], widths, 0)
        in_turns = filled(decoder, prefix, [[prompt] for prompt in prompts], widths, 1 << 30)
        in_company = filled(decoder, prefix, [prompts[::-1]], widths, 1 << 30)
        for prompt in prompts:
            for a, b, c in zip(alone[prompt], in_turns[prompt], in_company[prompt], strict=True):
                assert torch.equal(a, b) and torch.equal(a, c)


def test_a_turn_computes_only_what_follows_the_turn_before(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    watched, first = Watched(decoder, monkeypatch), tokens(75, 1)
    second = first + tokens(50, 2)
    with torch.inference_mode():
        filled(decoder, decoder.prefix(()), [[first], [second], [second], [second[:90]]], WIDTHS, 1 << 30)
        # 80 padded; 125 padded to 128, and 64 kept; nothing but 13 tokens; of 90 there are 80 kept.
        assert watched.n_tokens == [80, 64, 16, 16]


def test_prompts_that_begin_with_one_system_message_compute_it_once(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    watched, system = Watched(decoder, monkeypatch), tokens(CHUNK + 90, 1)
    prompts = [system + tokens(n, n) for n in (30, 25, 38)]
    n_shared = CHUNK + 80  # a multiple of PAD
    with torch.inference_mode():
        filled(decoder, decoder.prefix(()), [[prompt] for prompt in prompts], WIDTHS, 1 << 30)
        one_by_one = sum(watched.n_tokens)
        assert one_by_one == padded(prompts[0]) + sum(padded(each) - n_shared for each in prompts[1:])
        watched.n_tokens.clear()
        filled(decoder, decoder.prefix(()), [prompts], WIDTHS, 1 << 30)
        assert sum(watched.n_tokens) == one_by_one, "at once, the others wait for the first"


def test_prompts_that_repeat_one_another_at_once_are_computed_once(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    watched, long = Watched(decoder, monkeypatch), tokens(CHUNK, 1)
    wave = [long, long, tokens(32, 2), long + tokens(16, 3)]
    with torch.inference_mode():
        filled(decoder, decoder.prefix(()), [wave], WIDTHS, 1 << 30)
        assert sum(watched.n_tokens) == CHUNK + 32 + 16
        watched.n_tokens.clear()
        filled(decoder, decoder.prefix(()), [wave], WIDTHS, 0)  # where nothing can be kept, all is computed
        assert sum(watched.n_tokens) == 3 * CHUNK + 32 + 16


def test_without_proven_widths_and_with_rounded_caches_each_row_goes_by_itself(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = weights.read_weights(tiny_llama, torch.float32)
    for decoder, widths in (
        (Decoder(read, torch.float32), ()),
        (KvQuantizedDecoder(read, torch.float32, 4), WIDTHS),
    ):
        monkeypatch.setattr(decoder, "prefill_packed", None)
        with torch.inference_mode():
            filled(decoder, decoder.prefix(()), [[tokens(40, 1), tokens(40, 2)]], widths, 1 << 30)
            assert widths == () or autotune._pass_widths(decoder, decoder.prefix(())) == ()


@given(st.lists(st.integers(1, 40), max_size=12))
def test_passes_hold_each_token_once_and_each_row_in_order(sizes: list[int]) -> None:
    rows = {slot: tokens(PAD * n, slot) for slot, n in enumerate(sizes)}
    passes = packed((Segment(slot, 0, own) for slot, own in rows.items()), 128)
    assert all(sum(len(segment.tokens) for segment in one) <= 128 for one in passes)
    found: dict[int, tuple[int, ...]] = {}
    for segment in (segment for one in passes for segment in one):
        assert segment.start == len(found.get(segment.slot, ()))
        found[segment.slot] = found.get(segment.slot, ()) + segment.tokens
    assert found == rows


def test_parts_are_kept_within_the_budget_and_dropped_from_the_end(tiny_llama: Path) -> None:
    decoder = Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    empty, slots = decoder.prefix(()), decoder.slots(1, 2 * CHUNK)
    a_token = sum(cache[0, :, :1].nbytes for cache in (*slots.keys, *slots.values))
    kept, turn = PrefixCache(a_token * (CHUNK + 96), is_fine=True), tokens(CHUNK + 40, 1)
    kept.keep(empty, turn, slots, 0)
    assert kept.n_cached(empty, turn) == kept.load(empty, turn, slots, 0) == CHUNK + 32
    assert kept.n_cached(empty, turn[:CHUNK] + tokens(50, 2)) == CHUNK
    assert kept.n_cached(empty, turn[: CHUNK - 1]) == CHUNK - 16, "a part of a part"
    assert kept.n_cached(empty, turn[:15]) == kept.n_cached(empty, tokens(CHUNK, 2)) == 0
    assert kept.n_cached(SharedPrefix((7,), [], []), turn) == 0
    longer = turn + tokens(40, 3)
    kept.keep(empty, longer, slots, 0)
    assert kept.n_cached(empty, longer) == CHUNK + 80 and kept._size == a_token * (CHUNK + 80)
    kept.keep(empty, tokens(48, 4), slots, 0)
    assert kept.n_cached(empty, longer) == CHUNK + 32 and kept._size <= a_token * (CHUNK + 96)


# --- the probe -------------------------------------------------------------------------------------------


def test_sums_whose_order_depends_on_the_number_of_keys_are_noticed(
    tiny_llama: Path, exact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(weights.read_weights(tiny_llama, torch.bfloat16), torch.bfloat16)
    assert autotune.has_steady_sums(decoder)

    def in_halves(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        n = left.shape[-1] // 2
        return exact(left[..., :n], right[:, :n]) + exact(left[..., n:], right[:, n:])

    monkeypatch.setattr(torch, "bmm", in_halves)
    assert not autotune.has_steady_sums(decoder)
    assert autotune._pass_widths(decoder, decoder.prefix(())) == ()


def test_sums_whose_order_depends_on_the_number_of_queries_are_noticed(
    tiny_llama: Path, exact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(weights.read_weights(tiny_llama, torch.bfloat16), torch.bfloat16)

    def crooked(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return exact(left, right) + (2.0**-20 if left.shape[1] < 4 * BLOCK else 0)

    monkeypatch.setattr(torch, "bmm", crooked)
    assert not autotune.has_steady_sums(decoder)


@pytest.mark.parametrize(
    ("bad", "left"), [(96, (32, 48, 64, 128, 192)), (128, ()), (0, autotune.PASS_WIDTHS)]
)
def test_a_width_with_other_bits_is_not_used_and_none_if_the_usual_one_moves(
    tiny_llama: Path, bad: int, left: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(weights.read_weights(tiny_llama, torch.bfloat16), torch.bfloat16)

    def written(prefix: Any, slots: KvSlots, segments: list[Segment], width: int) -> None:
        for segment in segments:
            for cache in (*slots.keys, *slots.values):
                numbers = torch.tensor(segment.tokens) + (width == bad and len(segments) > 1)
                cache[segment.slot, :, segment.start : segment.end] = numbers[:, None]

    monkeypatch.setattr(autotune, "has_steady_sums", lambda _: True)
    monkeypatch.setattr(autotune, "_keeps_layers", lambda *_: True)
    monkeypatch.setattr(decoder, "prefill_packed", written)
    assert autotune._pass_widths(decoder, decoder.prefix(())) == left


@pytest.mark.parametrize("name", ["qkv", "out", "gate_up", "down"])
def test_a_width_at_which_a_layer_seldom_has_other_bits_is_not_used(
    tiny_llama: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small model the witness text has too few numbers for a difference that is this rare."""
    read = weights.read_weights(tiny_llama, torch.bfloat16)
    layer, stream = getattr(read.blocks[0], name), torch.Generator().manual_seed(3)

    def crooked(x: torch.Tensor) -> torch.Tensor:
        y = apart(layer)(x)
        return torch.where(torch.rand(y.shape, generator=stream) < 6e-5, y * 1.01, y) if len(x) == 192 else y

    changed = {each: apart(getattr(read.blocks[0], each)) for each in ("qkv", "out", "gate_up", "down")}
    block = replace(read.blocks[0], **{**changed, name: crooked})
    decoder = Decoder(replace(read, blocks=[block, *read.blocks[1:]]), torch.bfloat16)
    monkeypatch.setattr(autotune, "has_steady_sums", lambda _: True)
    monkeypatch.setattr(autotune, "_text_bits", lambda *_, **__: "the same")
    assert autotune._pass_widths(decoder, decoder.prefix(())) == autotune.PASS_WIDTHS[:-1]


def apart(layer: Any) -> Any:
    """The layer with the same bits at any number of rows, on any machine."""
    return lambda x: (x.float()[:, :1] * layer(x.new_ones(1, x.shape[1])).float()).to(x.dtype)


def test_numerics_say_whether_prompts_are_packed(tiny_llama: Path) -> None:
    decoder = Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    tuning = autotune.Tuning(autotune.SCHEMA, "float32", (4,), {}, "0" * 16, "", True)
    engines = [
        TorchEngine(
            decoder, ChatCodec(tiny_llama), tiny_llama, msgspec.structs.replace(tuning, pass_widths=widths)
        )
        for widths in ((), WIDTHS)
    ]
    assert [" packed " in engine.numerics for engine in engines] == [False, True]
    assert [engine.pool.pass_widths for engine in engines] == [(), WIDTHS]
