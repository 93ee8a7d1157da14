"""Expected cost, the chance to be the best, and ranks: by hand, at the ends, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from heredity.stats.decision import FailureKind, ModelCost, expected_costs
from tests.support.errors import raises

NAN = float("nan")


def models(rng: np.random.Generator, rates: list[float], behaviours: int, per: int) -> FailureKind:
    """Models that find the same behaviours hard: rates vary by behaviour with correlation 0.3."""
    luck, scale = rng.random(behaviours), 1 / 0.3 - 1
    own = np.array([stats.beta.ppf(luck, r * scale, (1 - r) * scale) for r in rates]).repeat(per, axis=1)
    return FailureKind("breach", 1.0, rng.random(own.shape) < own, np.repeat(np.arange(behaviours), per))


def ask(*kinds: FailureKind, n_draws: int = 2000, seed: int = 0) -> tuple[ModelCost, ...]:
    return expected_costs(kinds, np.random.default_rng(seed), n_draws=n_draws)


def test_the_cost_is_the_sum_of_cost_times_rate() -> None:
    breach = FailureKind("breach", 100.0, [[1, 0, 0, 0], [1, 1, 0, NAN]], [0, 0, 1, 1])
    refusal = FailureKind("refusal", 5.0, [[1, 1], [0, 0]], [0, 1])
    found = ask(breach, refusal)
    assert [m.parts for m in found] == [(25.0, 5.0), (pytest.approx(100 * 2 / 3), 0.0)]
    assert [m.cost.value for m in found] == [pytest.approx(30.0), pytest.approx(100 * 2 / 3)]
    assert [m.cost.n for m in found] == [6, 5]
    assert sum(m.p_best for m in found) == pytest.approx(1.0)


def test_the_user_s_costs_decide_which_model_is_best() -> None:
    rng = np.random.default_rng(1)
    breaches, refusals = models(rng, [0.1, 0.5], 40, 2), models(rng, [0.6, 0.1], 40, 2)
    careful = ask(breaches._replace(cost=100.0), refusals._replace(cost=1.0))
    helpful = ask(breaches._replace(cost=1.0), refusals._replace(cost=100.0))
    assert careful[0].p_best > 0.99 and helpful[1].p_best > 0.99
    assert [(m.rank_low, m.rank_high) for m in careful] == [(1, 1), (2, 2)]


def test_a_model_without_a_failure_is_not_free_of_risk() -> None:
    found = ask(FailureKind("breach", 1.0, np.zeros((2, 50)), np.arange(50)), n_draws=20_000)
    for m in found:
        assert m.cost.value == 0.0 and m.cost.high == pytest.approx(3 / 50, rel=0.1)
        assert m.p_best == pytest.approx(0.5, abs=0.02)
        assert (m.rank_low, m.rank_high) == (1, 2)


def test_pairing_is_kept() -> None:
    """b fails where a fails, and on five behaviours more: the costs overlap, the order does not."""
    a = np.arange(60) < 25
    b = np.arange(60) < 32
    paired = ask(FailureKind("breach", 1.0, [a, b], np.arange(60)))
    crossed = ask(FailureKind("breach", 1.0, [a, b[::-1]], np.arange(60)))
    assert paired[0].cost.high > paired[1].cost.low
    assert paired[0].p_best > 0.98 > crossed[0].p_best


def test_kinds_that_share_behaviours_are_drawn_together() -> None:
    broke = np.arange(30) % 2 == 0
    both = [FailureKind(name, 1.0, [x], np.arange(30)) for name, x in (("x", broke), ("y", ~broke))]
    apart = [both[0], both[1]._replace(clusters=np.arange(30) + 30)]
    together, alone = ask(*both)[0].cost, ask(*apart)[0].cost
    assert together.high - together.low < 0.6 * (alone.high - alone.low)


def test_the_same_generator_gives_the_same_result() -> None:
    kind = models(np.random.default_rng(2), [0.1, 0.2, 0.3], 20, 2)
    assert ask(kind, seed=5) == ask(kind, seed=5)


def test_a_kind_that_a_model_was_not_asked_refuses_the_comparison() -> None:
    found = ask(FailureKind("refusal", 1.0, [[0.0, 1.0], [NAN, NAN]], [0, 1]))
    assert all(m.cost.value is None and "refusal" in m.cost.note and m.p_best is None for m in found)


def test_one_model_has_rank_one() -> None:
    (only,) = ask(FailureKind("breach", 1.0, [[0.0, 1.0, 0.0]], [0, 1, 2]))
    assert (only.p_best, only.rank_low, only.rank_high) == (1.0, 1, 1)


def test_what_does_not_fit_is_an_error() -> None:
    for kind, code in (
        (FailureKind("x", 0.0, [[1.0]], [0]), "bad-setting"),
        (FailureKind("x", 1.0, [[1.0, 0.0]], [0]), "bad-setting"),
        (FailureKind("x", 1.0, [[2.0]], [0]), "bad-setting"),
    ):
        with raises(ValueError, code):
            ask(kind)
    with raises(ValueError, "bad-setting"):
        ask(FailureKind("x", 1.0, [[1.0]], [0]), FailureKind("y", -1.0, [[1.0]], [0]))


# --- simulation -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviours", "rates"),
    [(15, [0.2, 0.2, 0.3]), pytest.param(40, [0.02, 0.1, 0.3], marks=pytest.mark.proof)],
)
def test_intervals_and_ranks_hold_the_truth(behaviours: int, rates: list[float]) -> None:
    rng, inside, ranked, n = np.random.default_rng(3), [], [], 300
    for _ in range(n):
        found = expected_costs([models(rng, rates, behaviours, 3)], rng, n_draws=500)
        inside.append(np.mean([m.cost.low <= r <= m.cost.high for m, r in zip(found, rates, strict=True)]))
        # Models of equal cost may share a rank: the first of them has the lowest.
        low, high = (
            [sum(o < r for o in rates) + 1 for r in rates],
            [sum(o <= r for o in rates) for r in rates],
        )
        ranked.append(
            all(m.rank_low <= h and m.rank_high >= w for m, w, h in zip(found, low, high, strict=True))
        )
    assert np.mean(inside) > 0.95 - 0.03
    assert np.mean(ranked) > 0.95 - 0.03


@pytest.mark.parametrize("cost", [NAN, float("inf"), -float("inf"), 1e308, -1.0])
def test_a_cost_that_is_no_amount_is_refused(cost: float) -> None:
    kinds = [FailureKind(name, c, [[1, 0]], [0, 1]) for name, c in (("breach", 1.0), ("refusal", cost))]
    with raises(ValueError, "bad-setting"):
        ask(*kinds)
