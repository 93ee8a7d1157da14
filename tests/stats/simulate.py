"""How often the intervals hold the truth and the tests cry wolf, by simulation.

Promises: one seed and number of runs give one set of tables, so docs/results/coverage.md can be checked.
Rerun: python -m tests.stats.simulate
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heredity.core.records import Estimate
from heredity.stats import (
    clustered_rate,
    mcnemar_exact,
    rogan_gladen,
    tabulate,
    tango,
    wilson,
)
from heredity.stats.paired import compare, sign_flip

RUNS = 4000
SEED = 20
Generator = np.random.Generator


class Cell(NamedTuple):
    """`groups` clusters of `size` trials, the true rates of a and b, the correlation inside a cluster."""

    groups: int
    size: int
    rate_a: float
    rate_b: float
    correlation: float


class Hits(NamedTuple):
    """Shares of runs: the interval held the truth, lay below or above it; `naive` ignores the clusters."""

    held: float
    below: float
    above: float
    naive: float
    rejected: float = 0.0
    rejected_naive: float = 0.0


RATES = [
    Cell(g, m, p, p, icc) for g, m in ((10, 5), (25, 10)) for p in (0.02, 0.1, 0.4) for icc in (0.0, 0.3, 0.9)
]
PAIRS = [
    Cell(g, m, p, p + d, icc)
    for g, m in ((10, 5), (50, 10))
    for p, d in ((0.1, 0.0), (0.4, 0.0), (0.1, 0.15))
    for icc in (0.0, 0.3, 0.9)
]
JUDGES = [
    (n, m, rate, sens, spec)
    for n, m in ((100, 30), (300, 75))
    for rate in (0.02, 0.2)
    for sens, spec in ((0.87, 0.9), (0.7, 0.7), (0.95, 0.98))
]

CORNERS = [
    (n, m, rate, sens, spec)
    for n, m in ((20, 100), (50, 100), (100, 500))
    for sens, spec in ((0.85, 0.865), (0.7, 0.7), (0.95, 0.98))
    for rate in (0.0, 0.02, 0.98, 1.0)
]


def drawn(rng: Generator, cell: Cell, rate: float) -> NDArray[np.bool_]:
    """Trials whose clusters have rates of their own (Beta, with the correlation asked for)."""
    scale = 1 / cell.correlation - 1 if cell.correlation else None
    own = (
        np.full(cell.groups, rate)
        if scale is None
        else rng.beta(rate * scale, (1 - rate) * scale, cell.groups)
    )
    return rng.random(cell.groups * cell.size) < np.repeat(own, cell.size)


def rate_hits(rng: Generator, cell: Cell, runs: int) -> Hits:
    """Coverage of `clustered_rate`, and of Wilson's interval on the same trials."""
    clusters = np.repeat(np.arange(cell.groups), cell.size)
    ours, naive = [], []
    for _ in range(runs):
        values = drawn(rng, cell, cell.rate_a)
        ours.append(clustered_rate(values, clusters))
        naive.append(wilson(int(values.sum()), len(values)))
    return _hits(ours, naive, cell.rate_a)


def pair_hits(rng: Generator, cell: Cell, runs: int) -> Hits:
    """Coverage of `compare` and rejections of the sign-flip test, beside Tango and McNemar."""
    clusters = np.repeat(np.arange(cell.groups), cell.size)
    ours, naive, p, p_naive = [], [], [], []
    for _ in range(runs):
        a, b = drawn(rng, cell, cell.rate_a), drawn(rng, cell, cell.rate_b)
        table = tabulate(a, b)
        ours.append(compare(a, b, clusters).difference)
        naive.append(tango(table))
        p.append(sign_flip((b.astype(int) - a).reshape(cell.groups, cell.size).sum(axis=1)))
        p_naive.append(mcnemar_exact(table.only_a, table.only_b))
    hits = _hits(ours, naive, cell.rate_b - cell.rate_a)
    return hits._replace(rejected=_share(np.array(p) < 0.05), rejected_naive=_share(np.array(p_naive) < 0.05))


def judge_hits(rng: Generator, n: int, labels: int, rate: float, sens: float, spec: float, runs: int) -> Hits:
    """Coverage of `rogan_gladen` where not refused, and of Wilson's interval on the judged rate."""
    ours, naive = [], []
    for _ in range(runs):
        k = int(rng.binomial(n, rate * sens + (1 - rate) * (1 - spec)))
        caught, passed = int(rng.binomial(labels, sens)), int(rng.binomial(labels, spec))
        found = rogan_gladen(k, n, caught, labels, passed, labels)
        if found.value is not None:
            ours.append(found)
            naive.append(wilson(k, n))
    return _hits(ours, naive, rate)


def _hits(ours: list[Estimate], naive: list[Estimate], truth: float) -> Hits:
    low, high = (np.array([getattr(found, end) for found in ours]) for end in ("low", "high"))
    plain = [found.low - 1e-12 <= truth <= found.high + 1e-12 for found in naive]
    below, above = _share(high < truth - 1e-12), _share(low > truth + 1e-12)
    return Hits(1 - below - above, below, above, _share(np.array(plain)))


def _share(claims: NDArray[np.bool_]) -> float:
    return float(np.mean(claims))


def tables(runs: int = RUNS, seed: int = SEED) -> Iterator[str]:
    """Four tables, line by line; docs/results/coverage.md has some of their rows."""
    rng = np.random.default_rng(seed)
    yield "| clusters x trials | true rate | correlation | clustered holds | lies below | Wilson holds |"
    yield "|---|---|---|---|---|---|"
    for cell in RATES:
        h = rate_hits(rng, cell, runs)
        head = f"| {cell.groups} x {cell.size} | {cell.rate_a:g} | {cell.correlation:g} |"
        yield f"{head} {h.held:.3f} | {h.below:.3f} | {h.naive:.3f} |"
    yield ""
    yield "| clusters x trials | rates | correlation | clustered holds | Tango holds | sign-flip | McNemar |"
    yield "|---|---|---|---|---|---|---|"
    for cell in PAIRS:
        h = pair_hits(rng, cell, runs)
        head = f"| {cell.groups} x {cell.size} | {cell.rate_a:g}, {cell.rate_b:g} | {cell.correlation:g} |"
        yield f"{head} {h.held:.3f} | {h.naive:.3f} | {h.rejected:.3f} | {h.rejected_naive:.3f} |"
    yield ""
    yield "| trials | labels of each kind | true rate | sensitivity, specificity | corrected holds | raw |"
    yield "|---|---|---|---|---|---|"
    for n, labels, rate, sens, spec in JUDGES:
        h = judge_hits(rng, n, labels, rate, sens, spec, runs)
        yield f"| {n} | {labels} | {rate:g} | {sens:g}, {spec:g} | {h.held:.3f} | {h.naive:.3f} |"
    yield ""
    yield "| trials | labels of each kind | sensitivity, specificity | 0 | 0.02 | 0.98 | 1 |"
    yield "|---|---|---|---|---|---|---|"
    for start in range(0, len(CORNERS), 4):
        n, labels, _, sens, spec = CORNERS[start]
        held = (judge_hits(rng, *corner, runs).held for corner in CORNERS[start : start + 4])
        yield f"| {n} | {labels} | {sens:g}, {spec:g} | {' | '.join(f'{share:.3f}' for share in held)} |"


if __name__ == "__main__":
    for line in tables():
        sys.stdout.write(line + "\n")
