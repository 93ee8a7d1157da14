"""A law is found again from what follows it, and its interval holds the truth."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.stats.scaling import extrapolate, fit
from tests.support.errors import raises

COMPUTE = 10.0 ** np.arange(15, 20)


def chinchilla(n: np.ndarray, d: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """2203.15556, equation 10."""
    return 1.69 + 406.4 / n**0.34 + 410.7 / d**0.28


def test_chinchillas_constants_are_found_again_from_noisy_runs() -> None:
    sizes, tokens = (
        x.ravel() for x in np.meshgrid(10.0 ** np.linspace(7, 10, 8), 10.0 ** np.linspace(9, 11.5, 8))
    )
    noise = np.random.default_rng(0).normal(0, 0.002, len(sizes))
    law = fit(np.stack([sizes, tokens]), chinchilla(sizes, tokens) * np.exp(noise))
    assert law.floor == pytest.approx(1.69, abs=0.08)
    assert law.powers == pytest.approx((0.34, 0.28), abs=0.03)
    assert law.error < 0.003
    assert law.at(7e10, 1.4e12) == pytest.approx(
        float(chinchilla(np.array(7e10), np.array(1.4e12))), abs=0.03
    )


def test_a_law_without_noise_is_found_to_the_digit() -> None:
    law = fit(COMPUTE[None], 1.5 + 2000 * COMPUTE**-0.15)
    assert (law.floor, *law.factors, *law.powers) == pytest.approx((1.5, 2000, 0.15), rel=1e-6)


def test_one_run_that_went_wrong_hardly_moves_the_law() -> None:
    compute = 10.0 ** np.linspace(15, 20, 12)
    losses = 1.5 + 2000 * compute**-0.15
    losses[4] *= 1.3
    assert fit(compute[None], losses).powers[0] == pytest.approx(0.15, abs=0.01)


@pytest.mark.slow
def test_the_interval_holds_the_truth_and_is_wider_farther_out() -> None:
    rng, held, compute = np.random.default_rng(3), 0, 10.0 ** np.linspace(15, 19, 8)
    truth = 1.5 + 2000 * 1e21**-0.15
    for _ in range(8):
        noisy = (1.5 + 2000 * compute**-0.15) * np.exp(rng.normal(0, 0.005, 8))
        told = extrapolate(compute[None], noisy, np.array([1e21]), rng, draws=60)
        held += told.interval.low <= truth <= told.interval.high
    assert held >= 6
    near = extrapolate(compute[None], noisy, np.array([1e19]), rng, draws=60).interval
    assert near.high - near.low < told.interval.high - told.interval.low


@pytest.mark.parametrize(
    ("inputs", "losses", "said"),
    [
        (COMPUTE[None, :3], np.ones(3), ("bad-setting", ["3"])),
        (COMPUTE[None], np.array([1, 2, 3, 4, np.nan]), ("bad-setting", ["0"])),
        (np.array([[1.0, 1, 1, 2, 2]]), np.ones(5), ("bad-setting", [])),
    ],
)
def test_what_tells_no_law_is_refused(
    inputs: np.ndarray, losses: np.ndarray, said: tuple[str, list[str]]
) -> None:  # type: ignore[type-arg]
    with raises(ValueError, *said):
        fit(inputs, losses)
