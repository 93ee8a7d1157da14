"""The difference of two models from pairs that people read, by simulation: false alarms, power, coverage.

    python bench/pairs.py              2,000 runs a cell, about one minute
    python bench/pairs.py --runs 400   quicker

Of 200 requests the parent breaks on 44 %. In the child 7 % turn into a breach, and 7 % into none. A true
difference adds to the first. The judge catches 93 % of the breaches and passes 95 % of the rest. Both
shares differ by model, with the standard deviation that a line names. People are right.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heredity.stats.edges import allocate_pairs, read_pairs_difference
from heredity.stats.paired import mcnemar_exact

SEED, N, RATE, CHURN, SENSITIVITY, SPECIFICITY = 37, 200, 0.44, 0.07, 0.93, 0.95
Floats = NDArray[np.float64]


class Cell(NamedTuple):
    """Shares of the runs: a difference shown, and the true one inside the interval."""

    by_judge: float  # McNemar's exact test of the verdicts
    shown: float
    covered: float


class World(NamedTuple):
    """A true difference, and how the judge's error rates differ between the models."""

    difference: float
    spread: float

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.intp], Floats]:
        """By pair, the child's minus the parent's: the judge's verdicts, and the truth."""
        more = CHURN + self.difference
        kinds = rng.choice(4, N, p=[RATE - CHURN, CHURN, more, 1 - RATE - more])
        truth = np.array([kinds <= 1, (kinds == 0) | (kinds == 2)])
        rates = np.clip(rng.normal([[SENSITIVITY, SPECIFICITY]] * 2, self.spread), 0.5, 1.0)
        luck = rng.random((2, N))
        judged = np.where(truth, luck < rates[:, :1], luck >= rates[:, 1:])
        return (judged[1].astype(np.intp) - judged[0]), truth[1].astype(float) - truth[0]


def read(rng: np.random.Generator, judged: NDArray[np.intp], truth: Floats, n: int) -> Floats:
    """The truth of n pairs that are drawn by strata; nan for the others."""
    strata = [np.flatnonzero(judged == h) for h in (-1, 0, 1)]
    labels = np.full(judged.size, np.nan)
    sizes = strata[0].size, strata[1].size, strata[2].size
    for places, m in zip(strata, allocate_pairs(sizes, n), strict=True):
        drawn = rng.permutation(places)[:m]
        labels[drawn] = truth[drawn]
    return labels


def simulate(world: World, n: int, runs: int, by_strata: bool = True) -> Cell:
    """`runs` studies in which n pairs are read; by_strata: False: drawn at random among all."""
    rng = np.random.default_rng([SEED, round(1000 * world.difference), round(1000 * world.spread), n])
    counts = np.zeros(3)
    for _ in range(runs):
        judged, truth = world.draw(rng)
        strata = judged if by_strata else np.zeros_like(judged)
        pairs = read_pairs_difference(strata, read(rng, strata, truth, n), np.arange(N))
        assert pairs is not None
        low, high = pairs.bounds(0.95)
        shown = 2 * min(pairs.p_above(0), pairs.p_below(0)) < 0.05
        p_judge = mcnemar_exact(int((judged < 0).sum()), int((judged > 0).sum()))
        counts += p_judge < 0.05, shown, low <= world.difference <= high
    return Cell(*(counts / runs).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args().runs
    print(f"N {N}, {runs} runs a cell: shown / interval covers; 'judge' is the test of the verdicts alone")
    print("spread  true   judge  60 read      100 read     all read     100 at random")
    for spread, difference in (
        (0, 0),
        (0.04, 0),
        (0.07, 0),
        (0.04, 0.1),
        (0.07, 0.1),
        (0.07, 0.15),
        (0.07, 0.2),
    ):
        world = World(difference, spread)
        cells = [simulate(world, n, runs) for n in (60, 100, N)] + [
            simulate(world, 100, runs, by_strata=False)
        ]
        each = "  ".join(f"{cell.shown:.3f}/{cell.covered:.3f}" for cell in cells)
        print(f"{spread:6.2f}  {difference:4.2f}  {cells[0].by_judge:5.3f}  {each}")


if __name__ == "__main__":
    main()
