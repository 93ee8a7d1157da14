"""Which trials a worker gets, and what becomes of those that it gives back."""

from __future__ import annotations

from functools import partial

from heredity.study.plan import Grid, TrialSet
from heredity.study.workers import Lease, TrialQueue
from tests.support.small_study import small_plan

GRID = Grid(small_plan())  # 2 models x 2 attacks x 3 probes x 2 samples


def book(size: int = 4, answered: tuple[int, ...] = ()) -> TrialQueue:
    known = TrialSet(len(GRID))
    for index in answered:
        known.add(index)
    made = TrialQueue(GRID, known, size)
    made.add([(m, partial(known.missing, GRID.of_model(m))) for m in (0, 1)])
    return made


def take(made: TrialQueue, m: int = 0, n_workers: int = 1, is_idle: bool = True) -> Lease:
    lease = made.take(m, n_workers, is_idle)
    assert lease is not None
    return lease


def test_leases_hold_every_trial_once_and_none_that_has_a_row() -> None:
    made = book(answered=(1, 5))
    found: list[int] = []
    while made.waiting(0):
        found += take(made).indices
    assert found == [i for i in range(12) if i not in (1, 5)]
    assert made.left(0) == 10 and made.models() == [1]


def test_a_lease_is_of_one_attack() -> None:
    made = book(size=100)
    lease = take(made, n_workers=1)
    assert lease.indices == tuple(range(6))  # half of twelve, and the first attack has six


def test_leases_get_smaller_near_the_end_so_that_all_workers_have_work() -> None:
    made = book(size=4)
    sizes = []
    while made.waiting(0):
        sizes.append(len(take(made, n_workers=2).indices))
    assert sizes == [3, 3, 2, 1, 1, 1, 1]


def test_a_lease_that_comes_back_is_given_again_without_its_answers() -> None:
    made = book()
    first = take(made)
    assert made.answer(first.indices[1])
    assert made.give_back(first, is_suspect=False) == ()
    again = take(made)
    assert again.indices == tuple(i for i in first.indices if i != first.indices[1])


def test_the_first_answer_counts_and_a_late_one_is_dropped() -> None:
    made = book()
    slow = take(made)
    made.give_back(slow, is_suspect=False)
    other = take(made)
    assert all(made.answer(index) for index in other.indices)
    assert not any(made.answer(index) for index in slow.indices)
    assert made.left(0) == 12 - len(other.indices)


def test_a_late_answer_that_comes_first_is_kept_and_the_other_dropped() -> None:
    made = book()
    slow = take(made)
    made.give_back(slow, is_suspect=False)
    other = take(made)
    assert made.answer(slow.indices[0])
    assert made.left(0) - made.waiting(0) == len(other.indices) - 1
    assert not made.answer(other.indices[0])


def test_it_is_done_when_every_trial_of_every_model_is_answered() -> None:
    made = book()
    for m in (0, 1):
        while made.waiting(m):
            for index in take(made, m).indices:
                made.answer(index)
    assert made.left(0) == made.left(1) == 0 and made.models() == []


def test_trials_that_two_workers_died_of_are_asked_alone_and_the_culprit_becomes_an_error() -> None:
    made = book()
    for _ in range(2):
        lease = take(made)
        assert made.give_back(lease, is_suspect=True) == ()
    suspects = set(lease.indices)
    while made.waiting(0) > len(suspects):  # all others come first
        for index in take(made).indices:
            assert index not in suspects and made.answer(index)
    assert made.take(0, 1, is_idle=False) is None  # a worker with other trials does not get one
    culprit, n_deaths, over = lease.indices[1], 0, tuple[int, ...]()
    while made.waiting(0):
        alone = take(made)
        assert len(alone.indices) == 1 and alone.is_alone
        if alone.indices == (culprit,):
            n_deaths += 1
            over += made.give_back(alone, is_suspect=True)
        else:
            assert made.answer(alone.indices[0])
    assert over == (culprit,) and n_deaths == 3
    assert made.left(0) == 1  # until its error row is written


def test_a_lease_that_was_not_begun_is_no_suspect() -> None:
    made = book()
    for _ in range(5):
        lease = take(made)
        made.give_back(lease, is_suspect=False)
    assert len(take(made).indices) == len(lease.indices)
