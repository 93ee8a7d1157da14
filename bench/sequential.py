"""Stopping early, by simulation: false alarms, coverage, and how many trials it saves or costs.

    python bench/sequential.py              4,000 runs a line, about two minutes
    python bench/sequential.py --runs 400   quicker

Every run is analysed after each behaviour, and stops as soon as the evidence is enough.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from heredity.stats import holm, n_for_difference, n_for_margin
from heredity.stats.intervals import Interval, wilson_bounds
from heredity.stats.paired import mcnemar_exact
from heredity.stats.power import (
    SequentialSize,
    sequential_n_for_difference,
    sequential_n_for_margin,
)
from heredity.stats.sequential import DIFFERENCE, RATE, Side, log_factors, log_mean_exp

ALPHA, MARGIN, SEED = 0.05, 0.05, 9
ENOUGH = -math.log(ALPHA)
BEHAVIOURS = 300  # looked at one after another
Floats = NDArray[np.float64]
Pairs = Callable[[np.random.Generator, int], NDArray[np.int64]]  # (runs, behaviours, trials) of -1, 0, 1


class World(NamedTuple):
    """Two models with these breach rates, `size` trials a behaviour.

    `correlation` is that of two trials of one behaviour and one model; `shared` models find the same
    behaviours hard.
    """

    name: str
    rate_a: float
    rate_b: float
    size: int = 1
    correlation: float = 0.0
    shared: bool = False

    def models(self, rng: np.random.Generator, runs: int, rates: tuple[float, ...]) -> NDArray[np.bool_]:
        """Who broke: (models, runs, behaviours, trials)."""
        luck = rng.random((runs, BEHAVIOURS))
        own = []
        for rate in rates:
            if not self.correlation:
                own.append(np.full(luck.shape, rate))
                continue
            scale = 1 / self.correlation - 1
            place = luck if self.shared else rng.random(luck.shape)
            own.append(special.betaincinv(rate * scale, (1 - rate) * scale, place))
        chance = np.array(own)[..., None]
        return rng.random((*chance.shape[:-1], self.size)) < chance

    def __call__(self, rng: np.random.Generator, runs: int) -> NDArray[np.int64]:
        a, b = self.models(rng, runs, (self.rate_a, self.rate_b)).astype(np.int64)
        return np.asarray(b - a)


def lopsided(rng: np.random.Generator, runs: int) -> NDArray[np.int64]:
    """Equal rates, unequal shapes: a breaks in all trials of few behaviours, b in one trial of many."""
    kind = rng.random((runs, BEHAVIOURS, 1))
    wide = np.where(kind < 0.08, -1, 0) * np.ones(4, np.int64)
    narrow = np.where((kind >= 0.08) & (kind < 0.40), 1, 0) * np.array([1, 0, 0, 0])
    return np.asarray(wide + narrow)


NULLS: list[tuple[str, Pairs]] = [
    (w.name, w)
    for w in (
        World("independent trials, rates 0.05", 0.05, 0.05),
        World("independent trials, rates 0.3", 0.3, 0.3),
        World("3 trials a behaviour, correlation 0.3", 0.2, 0.2, 3, 0.3),
        World("3 trials a behaviour, correlation 0.9", 0.2, 0.2, 3, 0.9),
        World("10 trials a behaviour, correlation 0.3, same hard ones", 0.2, 0.2, 10, 0.3, True),
    )
] + [("4 trials a behaviour, equal rates of unequal shape", lopsided)]


def false_alarms(rng: np.random.Generator, pairs: Pairs, runs: int) -> tuple[float, float, float]:
    """Shares of runs that ever claimed a difference: ours, first discordances, McNemar after every trial."""
    d = pairs(rng, runs)
    ours = path(d.mean(axis=2), 0.0)
    first = np.take_along_axis(d, (d != 0).argmax(axis=2)[..., None], axis=2)[..., 0]
    by_first = _binomial(np.cumsum(first < 0, axis=1), np.cumsum(first > 0, axis=1))
    flat = d.reshape(len(d), -1)
    naive = [_ever_mcnemar(row) for row in flat[: min(len(flat), 500)]]
    return _ever(ours), _ever(by_first), float(np.mean(naive))


def path(values: Floats, null: float, within: Interval = DIFFERENCE, side: Side = "both") -> Floats:
    """(runs, behaviours) means -> log E after each, against a mean of `null`."""
    held, place = np.unique(values, return_inverse=True)
    factors = log_factors(held, null, side, within)
    rows = place.reshape(values.shape)
    return np.array([log_mean_exp(np.cumsum(factors[row], axis=0)) for row in rows])


def _binomial(b: NDArray[np.int64], c: NDArray[np.int64]) -> Floats:
    mixed = special.betaln(0.5 + b, 0.5 + c) - special.betaln(0.5, 0.5)
    return np.asarray(mixed + (b + c) * math.log(2))


def _ever(evidence: Floats) -> float:
    return float((evidence.max(axis=1) >= ENOUGH).mean())


def _ever_mcnemar(differences: NDArray[np.int64]) -> bool:
    b, c = 0, 0
    for d in differences[differences != 0]:
        b, c = b + (d < 0), c + (d > 0)
        if mcnemar_exact(b, c) < ALPHA:
            return True
    return False


def holm_alarms(rng: np.random.Generator, world: World, rates: tuple[float, ...], runs: int) -> float:
    """The share of runs with any false claim between models of equal rates, Holm over all pairs."""
    broke = world.models(rng, runs, rates).astype(np.int64)
    pairs = [(i, j) for i in range(len(rates)) for j in range(i + 1, len(rates))]
    p = [
        np.exp(-np.maximum.accumulate(np.maximum(path((broke[j] - broke[i]).mean(axis=2), 0.0), 0), axis=1))
        for i, j in pairs
    ]
    nulls = [k for k, (i, j) in enumerate(pairs) if rates[i] == rates[j]]
    last = np.array([holm([float(x[r, -1]) for x in p]) for r in range(runs)])
    return float((last[:, nulls] <= ALPHA).any(axis=1).mean())  # p only falls: the last look shows any claim


def wrong_passes(rng: np.random.Generator, world: World, runs: int) -> float:
    """The share of runs that ever called b "not worse" although it is worse by exactly the margin."""
    return _ever(path(world(rng, runs).mean(axis=2), MARGIN, side="below"))


def ever_missed(rng: np.random.Generator, world: World, runs: int) -> tuple[float, float, float]:
    """Shares of runs in which the sequence for the rate and for the difference, and Wilson's interval, were
    wrong even once."""
    a, b = world.models(rng, runs, (world.rate_a, world.rate_b)).astype(np.int64)
    rate = path(a.mean(axis=2), world.rate_a, RATE)
    difference = path((b - a).mean(axis=2), world.rate_b - world.rate_a)
    k, n = a[..., 0].cumsum(axis=1), np.arange(1, BEHAVIOURS + 1)
    wilson = [_ever_outside(row, n, world.rate_a) for row in k[: min(runs, 300)]]
    return _ever(rate), _ever(difference), float(np.mean(wilson))


def _ever_outside(k: NDArray[np.int64], n: NDArray[np.int64], rate: float) -> bool:
    found = (wilson_bounds(int(i) / int(j), int(j)) for i, j in zip(k, n, strict=True))
    return any(not low <= rate <= high for low, high in found)


def stopped_at(rng: np.random.Generator, gap: float, discordance: float, runs: int, most: int) -> Floats:
    """The pair at which each run decided that the rates differ; infinite beyond `most`."""
    d = rng.choice(
        [-1, 0, 1], (runs, most), p=[(discordance - gap) / 2, 1 - discordance, (discordance + gap) / 2]
    )
    enough = _binomial(np.cumsum(d < 0, axis=1), np.cumsum(d > 0, axis=1)) >= ENOUGH
    return np.where(enough.any(axis=1), enough.argmax(axis=1) + 1.0, np.inf)


def savings(rng: np.random.Generator, runs: int) -> Iterator[str]:
    yield "| true gap | discordance | fixed plan for | fixed n | median n | saved | decided by fixed n |"
    yield "|---|---|---|---|---|---|---|"
    for planned in (0.0, 0.05):
        for gap in (0.05, 0.1, 0.2):
            for discordance in (gap + 0.05, gap + 0.2):
                n = n_for_difference(planned or gap, discordance)
                at = stopped_at(rng, gap, discordance, runs, 3 * n)
                median = float(np.median(at))
                words = f"{100 * (planned or gap):.0f} points"
                yield (
                    f"| {gap:.2f} | {discordance:.2f} | {words} | {n} | {median:.0f} | {1 - median / n:+.0%} "
                    f"| {np.mean(at <= n):.0%} |"
                )


def most_needed() -> Iterator[str]:
    yield "| to show | discordance | fixed n (80 % power) | sequential: n for 80 % | mean n | median n |"
    yield "|---|---|---|---|---|---|"
    for gap in (0.05, 0.1, 0.2):
        plan = sequential_n_for_difference(gap, gap + 0.1)
        fixed = n_for_difference(gap, gap + 0.1)
        yield f"| gap {gap:.2f} | {gap + 0.1:.2f} | {fixed} | {_words(plan)} |"
    for margin in (0.05, 0.1):
        plan = sequential_n_for_margin(margin, 0.2, np.random.default_rng(SEED))
        fixed = n_for_margin(margin, 0.2)
        yield f"| not worse by {margin:.2f} | 0.20 | {fixed} | {_words(plan)} |"


def _words(plan: SequentialSize) -> str:
    return f"{plan.n_most} | {plan.n_mean:.0f} | {plan.n_median}"


def tables(runs: int, seed: int = SEED) -> Iterator[str]:
    """Every table, line by line."""
    rng, off = np.random.default_rng(seed), 1.96 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
    yield f"False claims, ever, in {BEHAVIOURS} looks ({runs} runs a line; 5 % is 0.050 +- {off:.3f})"
    yield ""
    yield "| no difference | betting (used) | first discordance | McNemar after every trial |"
    yield "|---|---|---|---|"
    for name, pairs in NULLS:
        yield "| " + " | ".join([name, *(f"{x:.3f}" for x in false_alarms(rng, pairs, runs))]) + " |"
    yield ""
    yield "| three models, Holm over the pairs | any false claim |"
    yield "|---|---|"
    clustered = World("", 0.2, 0.2, 3, 0.3, True)
    for what, rates in (("all rates 0.2", (0.2,) * 3), ("rates 0.2, 0.2, 0.5", (0.2, 0.2, 0.5))):
        for world, how in ((World("", 0.2, 0.2), "independent"), (clustered, "3 a behaviour")):
            yield f"| {what}, {how} | {holm_alarms(rng, world, rates, runs):.3f} |"
    yield ""
    yield f"| worse by exactly the margin {MARGIN} | ever called not worse |"
    yield "|---|---|"
    for world in (
        World("independent", 0.1, 0.15),
        World("3 a behaviour, correlation 0.3", 0.1, 0.15, 3, 0.3),
    ):
        yield f"| {world.name} | {wrong_passes(rng, world, runs):.3f} |"
    yield ""
    yield "| truth | rate ever missed | difference ever missed | Wilson ever missed |"
    yield "|---|---|---|---|"
    for world in (
        World("independent, rates 0.05 and 0.15", 0.05, 0.15),
        World("independent, rates 0.3 and 0.5", 0.3, 0.5),
        World("3 a behaviour, correlation 0.5, rates 0.1 and 0.2", 0.1, 0.2, 3, 0.5, True),
    ):
        missed = ever_missed(rng, world, runs)
        yield f"| {world.name} | " + " | ".join(f"{x:.3f}" for x in missed) + " |"
    yield ""
    yield "Trials saved against a fixed plan of 80 % power (a minus is a cost)"
    yield ""
    yield from savings(rng, runs)
    yield ""
    yield from most_needed()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    for line in tables(arguments.runs, arguments.seed):
        print(line, flush=True)


if __name__ == "__main__":
    main()
