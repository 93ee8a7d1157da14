"""Several seeds of a child, by simulation: how often their two intervals hold the truth.

    python -m tests.stats.simulate_seeds     the table of docs/results/coverage.md, 1,000 runs a line

A parent breaks in 30 % of 100 behaviours. A child breaks in 85 % of those, and in a share of the others that
deviates between seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heredity.core.records import Estimate
from heredity.stats.paired import clustered_difference, crossed_difference

_PARENT, _KEEPS, _SHARE = 0.3, 0.85, 0.3  # breaks of the parent; of the child where it broke, and elsewhere


class SeedWorld(NamedTuple):
    """Seeds whose shares deviate by `spread`, over this many behaviours."""

    n_seeds: int
    spread: float
    n_behaviours: int = 100

    @property
    def of_recipe(self) -> float:
        """The true difference over all seeds that there could be."""
        return _difference(_SHARE)

    def draw(self, rng: np.random.Generator) -> Drawn:
        """The outcomes of one study. Half of a child's outcomes on a behaviour are shared by all seeds."""
        k, n = self.n_seeds, self.n_behaviours
        parent = rng.random(n) < _PARENT
        shares = np.clip(_SHARE + rng.normal(0, self.spread, k), 0.02, 0.98)
        shared = rng.random(n)
        u = np.where(rng.random((k, n)) < 0.5, shared, rng.random((k, n)))
        child = np.where(parent, u < _KEEPS, u < shares[:, None])
        behaviours, seeds = np.tile(np.arange(n), k), np.repeat(np.arange(k), n)
        return Drawn(np.tile(parent, k), child.ravel(), behaviours, seeds, _difference(float(shares.mean())))


class Drawn(NamedTuple):
    """One trial per seed and behaviour, and the true mean difference over these seeds."""

    parent: NDArray[np.bool_]
    child: NDArray[np.bool_]
    behaviours: NDArray[np.intp]
    seeds: NDArray[np.intp]
    truth: float


class Coverage(NamedTuple):
    """Shares of studies whose interval holds the truth, and mean widths."""

    these: float
    these_as_others: float
    others: float
    width: float
    width_of_others: float


def cover(world: SeedWorld, runs: int, rng: np.random.Generator) -> Coverage:
    """How often the interval of these seeds holds their truth, and how often each one holds the recipe's."""
    found = np.zeros(5)
    for _ in range(runs):
        drawn = world.draw(rng)
        own = clustered_difference(drawn.parent, drawn.child, drawn.behaviours)
        other = crossed_difference(drawn.parent, drawn.child, drawn.behaviours, drawn.seeds, rng).difference
        (low, high), (low_other, high_other) = _bounds(own), _bounds(other)
        found += [
            low <= drawn.truth <= high,
            low <= world.of_recipe <= high,
            low_other <= world.of_recipe <= high_other,
            high - low,
            high_other - low_other,
        ]
    return Coverage(*(found / runs).tolist())


def _difference(share: float) -> float:
    return _PARENT * _KEEPS + (1 - _PARENT) * share - _PARENT


def _bounds(found: Estimate) -> tuple[float, float]:
    return (-1.0 if found.low is None else found.low), (1.0 if found.high is None else found.high)


HEAD = (
    "seeds",
    "spread",
    "these seeds",
    "width",
    "the same for other seeds",
    "two-way, other seeds",
    "width",
)


def main() -> None:
    """Write a line for each number of seeds and spread between them."""
    sys.stdout.write(_row(HEAD) + _row(["---"] * len(HEAD)))
    for spread in (0.0, 0.15):
        for n_seeds in (2, 3, 5):
            found = cover(SeedWorld(n_seeds, spread), 1000, np.random.default_rng(100 + n_seeds))
            shares = (f"{found.these:.3f}", f"{found.width:.2f}", f"{found.these_as_others:.3f}")
            others = (f"{found.others:.3f}", f"{found.width_of_others:.2f}")
            sys.stdout.write(_row([str(n_seeds), f"{spread:g}", *shares, *others]))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    main()
