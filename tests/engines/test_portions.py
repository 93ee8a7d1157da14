"""A long prompt is read in portions: the others go on, and no answer changes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from heredity.core.records import Decoding, Message, Request
from heredity.engines.torch import engine as torch_engine
from heredity.engines.torch.decoder import CHUNK, Decoder, padded
from heredity.engines.torch.sampling import Sampler
from heredity.engines.torch.session import MAX_DRAFT, BatchRow, ContinuousBatch, Prefiller, PrefixCache
from heredity.formats import weights

WIDTHS, PASSES = (1, 2, 4, 8), (64, 128, 192)
Answers = dict[int, list[int]]


@pytest.fixture(scope="module")
def decoder(tiny_llama: Path) -> Decoder:
    return Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)


def row(key: int, n: int, most: int = 20) -> BatchRow:
    draw, how = random.Random(key), Decoding(max_tokens=most, temperature=float(key % 2))
    return BatchRow(key, tuple(draw.randrange(3, 300) for _ in range(n)), most, Sampler(how, key))


def batch_of(
    decoder: Decoder, portion: int, passes: tuple[int, ...] = PASSES, cache: int = 0
) -> ContinuousBatch:
    return ContinuousBatch(
        decoder, decoder.prefix(tuple(range(3, 40))), WIDTHS, lambda row: row.output[-1] == 7, 1 << 30,
        PrefixCache(cache, bool(passes)), (), MAX_DRAFT, passes, 0, portion,
    )  # fmt: skip


def alone(decoder: Decoder, asked: BatchRow, passes: tuple[int, ...]) -> list[int]:
    batch = batch_of(decoder, 0, passes)
    batch.admit(asked.restarted())
    while True:
        if done := batch.step():
            return done[0].output


@torch.inference_mode()
def test_rows_in_flight_go_on_while_a_long_prompt_is_read(decoder: Decoder) -> None:
    batch = batch_of(decoder, CHUNK)
    short, long, next_one = row(0, 20, 60), row(1, 3 * CHUNK + 10), row(2, 30)
    batch.admit(short)
    batch.step()
    batch.admit(long)
    batch.admit(next_one)
    seen = []
    for _ in range(4):
        before = len(short.output)
        batch.step()
        assert len(short.output) > before
        seen.append((long.n_read, len(long.output), len(next_one.output)))
    assert seen[:3] == [(CHUNK, 0, 0), (2 * CHUNK, 0, 0), (3 * CHUNK, 0, 0)]
    assert seen[3][1] == seen[3][2] == 1  # what was left of it, and the one that came next
    whole, at = decoder.slots(1, 4 * CHUNK), batch.rows.index(long)
    decoder.prefill(batch._prefix, whole, 0, long.prompt[:-1])
    assert batch._slots is not None
    for found, wanted in zip(batch._slots.keys + batch._slots.values, whole.keys + whole.values, strict=True):
        n = len(long.prompt) - 1
        torch.testing.assert_close(found[at, :, :n], wanted[0, :, :n], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_prompt_that_nobody_waits_for_frees_its_place_before_it_is_read(decoder: Decoder) -> None:
    batch = batch_of(decoder, CHUNK)
    short, long = row(0, 20), row(1, 5 * CHUNK)
    batch.admit(short)
    batch.admit(long)
    batch.step()
    batch.step()
    assert 0 < long.n_read < len(long.prompt) - 1
    long.stop = "length"
    assert batch.step() == [long] and batch.rows == [short] and not long.output


@torch.inference_mode()
def test_without_others_a_prompt_is_read_at_once(decoder: Decoder) -> None:
    batch = batch_of(decoder, CHUNK)
    long = row(1, 3 * CHUNK)
    batch.admit(long)
    batch.step()
    assert len(long.output) == 1


@pytest.mark.parametrize("passes", [PASSES, ()])
@pytest.mark.parametrize("cache", [0, 1 << 20, 1 << 28])
@torch.inference_mode()
def test_portions_change_no_token(decoder: Decoder, passes: tuple[int, ...], cache: int) -> None:
    draw = random.Random(cache + len(passes))
    lengths = draw.choices([5, 17, 60, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 50], k=24)
    asked = [row(key, n, draw.randrange(2, 30)) for key, n in enumerate(lengths)]
    for one in asked[::4]:  # that begins as another does
        one.prompt = asked[1].prompt[: draw.randrange(1, lengths[1] + 1)] + one.prompt
    expected: Answers = {one.key: alone(decoder, one, passes) for one in asked}
    batch, waiting, found, n_waited = batch_of(decoder, CHUNK, passes, cache), list(asked), {}, 0
    while waiting or batch.rows:
        while waiting and draw.random() < 0.4 and batch.has_room(waiting[0]):
            batch.admit(waiting.pop(0))
        if not batch.rows:
            continue
        if draw.random() < 0.03:
            draw.choice(batch.rows).stop = "length"
        for done in batch.step():
            found[done.key] = done.output
        n_waited += any(one.n_read and not one.output for one in batch.rows)
        assert all(one.n_read < padded(one.prompt) for one in batch.rows)
    assert n_waited > 3 and len(found) == len(asked)
    cut = {key for key in found if found[key] != expected[key]}
    assert all(found[key] == expected[key][: len(found[key])] for key in cut) and len(cut) < len(found) / 2


class Listening:
    """Hears each answer as it grows."""

    def is_heard(self, key: int) -> bool:
        return True

    def hear(self, key: int, more: str) -> None:
        pass

    def is_wanted(self, key: int) -> bool:
        return True


def test_an_engine_that_is_heard_reads_in_portions_and_answers_as_one_that_is_not(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = torch_engine.open_folder(tiny_llama, is_probed=False, dtype="float32")
    fill, n_read = Prefiller.fill, list[int]()

    def noted(self: Prefiller, slots: Any, prompts: Any, *more: Any) -> None:
        n_read.append(max(map(len, prompts.values())))
        fill(self, slots, prompts, *more)

    def asked() -> Iterator[Request | None]:
        yield Request(0, (Message("user", "short"),), decoding=Decoding(max_tokens=60))
        yield None
        words = " ".join(f"word{n}" for n in range(60))
        yield Request(1, (Message("user", words),), decoding=Decoding(max_tokens=4))

    monkeypatch.setattr(Prefiller, "fill", noted)
    heard = {reply.key: reply.tokens for reply in engine.stream(asked(), Listening())}
    assert CHUNK in n_read
    n_read.clear()
    plain = {reply.key: reply.tokens for reply in engine.reply(asked())}
    assert heard == plain and CHUNK not in n_read and max(n_read) > CHUNK
