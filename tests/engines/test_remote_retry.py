"""How many requests are under way, and when the next may leave."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate

import pytest

from heredity.engines.remote.engine import START, ConcurrencyLimit, TransportClosed, retry_after, wait_seconds
from tests.support.remote_models import Budget, Price, Usage

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("", None),
        (None, None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("Wed, 99 Foo 2023 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_and_as_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


def test_a_wait_doubles_within_bounds_and_is_drawn() -> None:
    for n in (1, 2, 3, 4):
        drawn = [wait_seconds(n, 0.5) for _ in range(200)]
        assert 0.25 * 2 ** (n - 1) <= min(drawn) < max(drawn) <= 0.5 * 2 ** (n - 1)
    assert wait_seconds(10_000, 0.5) <= 30


def test_the_pace_doubles_until_it_is_told_no_and_then_goes_up_by_ones() -> None:
    pace = ConcurrencyLimit(64)
    assert pace.room == START
    for _ in range(START):
        pace.grow()
    assert pace.room == 2 * START
    pace.cut(time.monotonic() + 1, 0.0)
    assert pace.room == START
    for _ in range(START + 1):
        pace.grow()
    assert pace.room == START + 1


def test_one_burst_of_refusals_is_one_cut_and_the_pace_never_falls_below_one() -> None:
    pace = ConcurrencyLimit(64)
    started = time.monotonic()
    for _ in range(10):
        pace.cut(started, 0.0)
    assert pace.room == START // 2
    for _ in range(20):
        pace.cut(time.monotonic() + 60, 0.0)
    assert pace.room == 1


def test_no_more_than_there_is_room_for_are_under_way_and_closing_sends_all_home() -> None:
    async def work() -> tuple[int, int]:
        pace, n_active, most = ConcurrencyLimit(3), 0, 0

        async def one() -> None:
            nonlocal n_active, most
            await pace.enter()
            n_active += 1
            most = max(most, n_active)
            await asyncio.sleep(0.001)
            n_active -= 1
            pace.leave()

        await asyncio.gather(*(one() for _ in range(20)))
        pace.cut(time.monotonic() + 1, 60.0)
        waiting = [asyncio.create_task(one()) for _ in range(5)]
        await asyncio.sleep(0.01)
        pace.close()
        ends = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60)
        return most, sum(isinstance(end, TransportClosed) for end in ends)

    assert asyncio.run(work()) == (3, 5)


def test_a_budget_reserves_the_worst_and_settles_what_was_used() -> None:
    budget, worst, price = Budget(100, 1.0), Usage(30, 30), Price(1000.0, 2000.0, 100.0)
    assert budget.take(worst, price) and not budget.take(worst, price)
    budget.settle(worst, Usage(20, 5, n_cached=10), price)
    assert budget.tokens == 25
    assert budget.cost == pytest.approx((10 * 1000 + 10 * 100 + 5 * 2000) / 1e6)
    assert budget.take(worst, price)
    assert "25 of 100 tokens" in str(budget.spent())
    written = Price(1000.0, 0.0).cost_of(Usage(100, 0, n_written=40))
    assert written == pytest.approx((60 * 1000 + 40 * 1250) / 1e6)
