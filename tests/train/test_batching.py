"""An epoch sees every example once; the order follows from seed and step alone; nothing is cropped."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from heredity.engines.chat import Document
from heredity.train.data.chat import TokenizedExample
from heredity.train.loop import BatchSampler
from heredity.train.models.causal_lm import PADDING_MULTIPLE, collate


def examples(n: int) -> list[TokenizedExample]:
    return [TokenizedExample(Document((i,) * (2 + i % 9), (True,) * (2 + i % 9))) for i in range(n)]


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 99), st.integers(4, 64))
def test_every_epoch_sees_every_example_once(n: int, batch: int, seed: int, product: int) -> None:
    order = BatchSampler(examples(n), batch, seed, product)
    seen = Counter(order.at(place) for place in range(3 * n))
    assert set(seen.values()) == {3}
    assert sorted(order.at(p) for p in range(n)) == list(range(n))


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 99), st.integers(4, 64))
def test_a_step_is_the_same_whatever_was_asked_before_and_loses_no_token(
    n: int, batch: int, seed: int, product: int
) -> None:
    order, again = (
        BatchSampler(examples(n), batch, seed, product),
        BatchSampler(examples(n), batch, seed, product),
    )
    again.batches(0)
    one, two = order.batches(5), again.batches(5)
    assert [b.tokens.tolist() for b in one] == [b.tokens.tolist() for b in two]
    places = [order.at(p) for p in range(5 * batch, 6 * batch)]
    assert sum(len(b.tokens) for b in one) == sum(2 + i % 9 for i in places)
    assert all(len(b.tokens) <= product or b.n_documents == 1 for b in one)
    assert all(sum(b.lengths) == len(b.tokens) for b in one)


def test_what_is_learned_is_told_by_the_token_before_it() -> None:
    order = BatchSampler([TokenizedExample(Document((7, 8, 9, 10), (False, False, True, True)))], 1, 0)
    (batch,) = order.batches(0)
    assert batch.at.tolist() == [1, 2] and batch.targets.tolist() == [9, 10]
    assert batch.positions.tolist() == [0, 1, 2, 3]


@given(st.integers(1, 200))
def test_a_filled_batch_has_whole_blocks_and_learns_nothing_of_them(n: int) -> None:
    batch = collate([TokenizedExample(Document((9,) * n, (True,) * n))])
    filled = batch.padded
    assert (
        len(filled.tokens)
        == len(filled.positions)
        == sum(filled.lengths)
        == -(-n // PADDING_MULTIPLE) * PADDING_MULTIPLE
    )
    assert filled.lengths[0] == n and filled.tokens[:n].tolist() == batch.tokens.tolist()
    assert filled.at is batch.at and filled.targets is batch.targets
    assert filled.positions.tolist() == [*range(n), *range(len(filled.tokens) - n)]
