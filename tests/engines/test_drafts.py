"""Drafts: idle rows verify tokens guessed from a row's own text, and no answer changes by them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from heredity.core.records import Decoding
from heredity.engines.torch.decoder import BLOCK, Decoder, round_up
from heredity.engines.torch.engine import KvQuantizedDecoder
from heredity.engines.torch.session import (
    MAX_DRAFT,
    BatchRow,
    ContinuousBatch,
    Drafter,
    Sampler,
    TextIndex,
    share_out,
)
from heredity.formats import weights

GREEDY, SAMPLED = Decoding(), Decoding(temperature=0.01, top_p=0.9)
BOTH = (GREEDY, SAMPLED)  # rows by turns


def test_a_pair_is_continued_as_it_was_the_last_time_and_a_loop_goes_on() -> None:
    text = TextIndex((1, 2, 3, 9, 1, 2, 4, 5))
    assert text.continuation((1, 2), 2) == [4, 5]
    assert text.continuation((1, 2), 5) == [4, 5, 4, 5, 4]
    assert text.continuation((4, 5), 3) == [] == text.continuation((7, 7), 3)
    text.extend((1, 2))
    assert text.continuation((1, 2), 4) == [4, 5, 1, 2]


def test_a_row_guesses_from_its_own_text_first_and_more_once_it_was_right() -> None:
    drafter = Drafter((5, 6, 7, 5), TextIndex((5, 6, 8, 8, 1, 2, 3)))
    assert drafter.propose([6], 9) == [7, 5, 6]
    drafter.note(3)
    assert len(drafter.propose([6, 7], 9)) == MAX_DRAFT
    assert drafter.propose([6, 7, 1, 2], 1) == [3]  # from the shared prefix
    drafter.note(0)
    assert len(drafter.propose([6, 7, 1, 2, 5, 6], 9)) == 1
    assert drafter.propose([6, 7, 1, 2, 5, 6], 0) == []


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(0, 40))
def test_idle_rows_are_shared_out_evenly_and_never_more_than_there_are(wanted: list[int], n: int) -> None:
    given_out = share_out(wanted, n)
    assert sum(given_out) == min(n, sum(wanted))
    assert all(got <= want for got, want in zip(given_out, wanted, strict=True))
    poorest = min((got for got, want in zip(given_out, wanted, strict=True) if got < want), default=99)
    assert max(given_out, default=0) <= poorest + 1


class Counted:
    """Counts the steps of a decoder."""

    def __init__(self, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_steps = 0
        step = decoder.step

        def counted(*given: Any) -> torch.Tensor:
            self.n_steps += 1
            return step(*given)

        monkeypatch.setattr(decoder, "step", counted)


def rows(decodings: Sequence[Decoding], n: int = 7) -> list[BatchRow]:
    stream = torch.Generator().manual_seed(4)
    found = []
    for key in range(n):
        length = int(torch.randint(2, 2 * BLOCK, (1,), generator=stream))
        prompt = tuple(torch.randint(3, 300, (length,), generator=stream).tolist())
        decoding = decodings[key % len(decodings)]
        found.append(BatchRow(key, prompt, 9 + 17 * key % 60, Sampler(decoding, key)))
    return found


def answers(
    decoder: Decoder,
    max_draft: int,
    n_at_once: int = 5,
    budget: int = 1 << 30,
    decodings: Sequence[Decoding] = (GREEDY,),
    widths: tuple[int, ...] = (16,),
) -> dict[int, list[int]]:
    """Answer all rows, a few at once, so that rows leave and enter between drafts."""
    batch = ContinuousBatch(
        decoder, decoder.prefix(tuple(range(3, 90))), widths, lambda row: row.output[-1] == 7, budget, None,
        (1, 2, 4, 8), max_draft,
    )  # fmt: skip
    waiting, done = rows(decodings), {}
    with torch.inference_mode():
        while waiting or batch.rows:
            while waiting and len(batch.rows) < n_at_once and batch.has_room(waiting[0]):
                batch.admit(waiting.pop(0))
            done |= {row.key: row.output for row in batch.step()}
    return done


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_drafts_change_no_token(any_kind: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = getattr(torch, dtype)
    decoder = Decoder(weights.read_weights(any_kind, kind), kind)
    counted = Counted(decoder, monkeypatch)
    expected = answers(decoder, 0, decodings=BOTH)
    n_plain, counted.n_steps = counted.n_steps, 0
    assert answers(decoder, MAX_DRAFT, decodings=BOTH) == expected
    assert counted.n_steps < n_plain
    assert answers(decoder, MAX_DRAFT, n_at_once=1, decodings=BOTH) == expected
    assert answers(decoder, 2, n_at_once=9, decodings=BOTH) == expected


def test_an_answer_that_repeats_itself_takes_a_fraction_of_the_steps(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    monkeypatch.setattr(decoder, "logits", lambda hidden: torch.eye(300)[:1].expand(len(hidden), -1))
    counted = Counted(decoder, monkeypatch)
    expected = answers(decoder, 0, n_at_once=2)
    n_plain, counted.n_steps = counted.n_steps, 0
    assert answers(decoder, MAX_DRAFT, n_at_once=2) == expected
    assert counted.n_steps < n_plain / 4


def test_a_step_reads_no_more_slots_than_its_rows_and_drafts_need(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    step, n_used = decoder.step, list[int]()

    def watched(*given: Any) -> torch.Tensor:
        if len(given) > 5:  # with writes, those of drafts among them
            n_used.append(len(given[5].rows.unique()))
            assert given[4] == next(n for n in (1, 2, 4, 8, 16) if n >= n_used[-1])
        return step(*given)

    monkeypatch.setattr(decoder, "step", watched)
    for n_at_once in (2, 4, 7):
        answers(decoder, MAX_DRAFT, n_at_once)
    assert n_used


def test_a_step_of_few_rows_is_as_narrow_as_its_rows_and_drafts_allow(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    step, taken = decoder.step, list[tuple[int, int]]()

    def watched(*given: Any) -> torch.Tensor:
        n_drafts = len(given[5].rows.unique()) - 1 if len(given) > 5 else 0
        taken.append((len(given[2]), n_drafts))
        return step(*given)

    monkeypatch.setattr(decoder, "step", watched)
    answers(decoder, MAX_DRAFT, n_at_once=1, widths=(1, 2, 4, 8, 16))
    assert {n for _, n in taken} >= {0, 1}
    assert all(width == next(w for w in (1, 2, 4) if w > n) for width, n in taken)


def test_a_draft_makes_no_cache_longer(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    monkeypatch.setattr(decoder, "logits", lambda hidden: torch.eye(300)[:1].expand(len(hidden), -1))
    step, n_with_drafts = decoder.step, 0

    def watched(*given: Any) -> torch.Tensor:
        nonlocal n_with_drafts
        n_with_drafts += len(given) > 5
        assert given[1].capacity == round_up(int(given[3][0]) + 1, BLOCK)  # of the one row's own length
        return step(*given)

    monkeypatch.setattr(decoder, "step", watched)
    answers(decoder, MAX_DRAFT, n_at_once=1)
    assert n_with_drafts


def test_drafts_stay_inside_the_budget_of_the_caches(tiny_llama: Path) -> None:
    decoder = Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    a_block = 2 * sum(cache.nbytes for cache in decoder.slots(1, BLOCK).keys)
    batch = ContinuousBatch(
        decoder, decoder.prefix(()), (16,), lambda _: False, 8 * a_block, None, (1, 2, 4, 8), MAX_DRAFT
    )
    row = BatchRow(0, (5, 6) * 80, 60, Sampler(Decoding(), 0))  # four blocks
    with torch.inference_mode():
        batch.admit(row)
        while batch.rows:
            batch.step()
            assert batch._slots is not None
            held = sum(cache.nbytes for cache in (*batch._slots.keys, *batch._slots.values))
            assert held <= 8 * a_block


def test_a_cache_that_is_rounded_block_by_block_takes_no_drafts(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = KvQuantizedDecoder(weights.read_weights(tiny_llama, torch.float32), torch.float32, 8)
    counted = Counted(decoder, monkeypatch)
    expected = answers(decoder, 0)
    n_plain, counted.n_steps = counted.n_steps, 0
    assert answers(decoder, MAX_DRAFT) == expected and counted.n_steps == n_plain
