"""What a pre-training reads, step by step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from heredity.core.errors import UsageError
from heredity.train.data.packed import PackedChunk, PackedDataset, split_microbatches
from tests.support.errors import raises

END = 0


class Numbered:
    """Documents whose tokens are all different, so that each can be told wherever it turns up."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths, dtype=np.int64)
        self._first = 1 + np.concatenate([[0], np.cumsum(self.lengths)])

    def tokens(self, number: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
        return np.arange(self._first[number], self._first[number + 1], dtype=np.uint32)


DOCUMENTS = Numbered([5, 300, 64, 1, 129, 700, 64, 2, 31, 90])


def learned(stream: PackedDataset, step: int) -> list[int]:
    return [token for batch in stream.batches(step) for token in batch.targets.tolist()]


def test_an_epoch_learns_every_token_once_and_crops_none() -> None:
    stream = PackedDataset(DOCUMENTS, END, 128, 64, 3)
    n_steps = -(-stream.n_tokens // 128)
    seen = Counter(token for step in range(n_steps + 1) for token in learned(stream, step))
    assert set(seen) == set(range(1, stream.n_tokens + 1))
    first = Counter(token for step in range(stream.n_tokens // 128) for token in learned(stream, step))
    assert max(first.values()) == 1


def test_each_token_is_told_from_the_one_before_it_and_the_first_from_the_end_token() -> None:
    stream = PackedDataset(DOCUMENTS, END, 256, 64, 3)
    starts = set((1 + np.cumsum(DOCUMENTS.lengths)).tolist()) | {1}
    for batch in stream.batches(0) + stream.batches(1):
        for read, told in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
            assert read == (END if told in starts else told - 1)


def test_positions_begin_anew_with_each_piece_and_none_is_longer_than_the_context() -> None:
    for batch in PackedDataset(DOCUMENTS, END, 256, 64, 3).batches(0):
        assert batch.positions.tolist() == [at for n in batch.lengths for at in range(n)]
        assert max(batch.lengths) <= 64 and sum(batch.lengths) == len(batch.tokens)


def test_a_step_differs_from_its_share_by_less_than_a_piece() -> None:
    stream = PackedDataset(DOCUMENTS, END, 128, 64, 3)
    for step in range(40):
        assert abs(len(learned(stream, step)) - 128) < 64


@pytest.mark.parametrize("world", [2, 3])
def test_what_is_read_does_not_hang_on_how_many_processes_read_it(world: int) -> None:
    alone = PackedDataset(DOCUMENTS, END, 512, 64, 3)
    for step in range(4):
        shares = [PackedDataset(DOCUMENTS, END, 512, 64, 3, 128, rank, world) for rank in range(world)]
        assert len({len(share.batches(step)) for share in shares}) == 1
        assert sorted(t for s in shares for t in learned(s, step)) == sorted(learned(alone, step))


def test_another_seed_and_another_epoch_are_another_order() -> None:
    one, other = PackedDataset(DOCUMENTS, END, 64, 64, 3), PackedDataset(DOCUMENTS, END, 64, 64, 4)
    assert [one.chunks(s) for s in range(9)] != [other.chunks(s) for s in range(9)]
    n_steps = one.n_tokens // 64
    assert [one.chunks(s) for s in range(9)] != [one.chunks(s + n_steps) for s in range(9)]


@given(st.lists(st.integers(1, 64), min_size=1, max_size=40), st.integers(16, 200), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_pieces_are_dealt_whole_and_evenly(sizes: list[int], product: int, world: int) -> None:
    pieces = [PackedChunk(number, 0, n) for number, n in enumerate(sizes)]
    if len(pieces) < world:
        with raises(UsageError, "bad-usage"):
            split_microbatches(pieces, product, world)
        return
    bins = split_microbatches(pieces, product, world)
    assert len(bins) % world == 0 and all(bins)
    assert sorted(piece for each in bins for piece in each) == sorted(pieces)


@pytest.mark.parametrize(("rest", "n_bins"), [(0, 2), (6, 2), (30, 3)])
def test_a_step_a_little_over_its_share_takes_no_product_more(rest: int, n_bins: int) -> None:
    pieces = [PackedChunk(number, 0, 20) for number in range(10)] + [PackedChunk(10, 0, rest)] * bool(rest)
    assert len(split_microbatches(pieces, 100, 1)) == n_bins


def test_a_batch_smaller_than_the_context_is_refused() -> None:
    with raises(UsageError, "bad-usage"):
        PackedDataset(DOCUMENTS, END, 32, 64, 3)
