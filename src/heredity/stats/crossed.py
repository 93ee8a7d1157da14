"""Behaviours crossed with attacks: intervals that speak for other behaviours and other attacks.

Promises: intervals lie in the range of their value, contain it and have a width above zero. Two levels of a
factor give a wide interval, and one level is refused. The same generator state gives the same interval.
Leaves to others: the target of a claim. One about these attacks only is clustered by behaviour.

The variance is that of Owen's pigeonhole bootstrap if both factors have `MANY` levels. Rows and columns are
sampled with replacement, and a trial counts the product of both. A bootstrap of two to nine columns has too
few distinct draws. Then it is the two-way clustered variance of Cameron, Gelbach and Miller:

    V = V(rows) + V(columns) - V(cells),  each with the factor g / (g - 1);  at least V(rows) and V(columns)

Both get a t quantile with (levels of the smaller factor - 1) degrees of freedom, in a score interval.

Sources: Owen 2007, Ann. Appl. Stat. 1:386 (pigeonhole bootstrap). Owen and Eckles 2012, Ann. Appl. Stat.
6:895 (product weights). Cameron, Gelbach and Miller 2011, J. Bus. Econ. Stat. 29:238. Cameron and Miller
2015, J. Hum. Resour. 50:317 (few clusters). Korn and Graubard 1998, Survey Methodology 24:193.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate
from heredity.stats.intervals import CONFIDENCE, EffectiveN, refused, wilson_bounds
from heredity.stats.paired import tabulate, tango_bounds

MANY = 10  # levels of both factors, for the bootstrap
N_DRAWS = 2000
_AT_ONCE = 4_000_000  # weights of rows that are held at a time
_Floats = NDArray[np.float64]


class CrossedDifference(NamedTuple):
    """b's rate minus a's, and the p-value of its t test."""

    difference: Estimate
    p_value: float


class _CrossedSums(NamedTuple):
    """(row, column) sums of the values and numbers of trials."""

    total: _Floats
    size: _Floats

    @property
    def mean(self) -> float:
        return float(self.total.sum() / self.size.sum())

    @property
    def n_levels(self) -> int:
        """Levels of the smaller factor."""
        n_rows, n_columns = self.total.shape
        return int(min(n_rows, n_columns))

    @property
    def floor(self) -> float:
        """Effective n if all trials of a row, or all of a column, always agreed (Kish)."""
        n = float(self.size.sum())
        return min(n * n / float(np.square(self.size.sum(axis=axis)).sum()) for axis in (0, 1))


def crossed_rate(
    broke: ArrayLike,
    rows: ArrayLike,
    columns: ArrayLike,
    rng: np.random.Generator,
    confidence: float = CONFIDENCE,
    n_draws: int = N_DRAWS,
) -> Estimate:
    """The rate of trials that share behaviours (`rows`) and attacks (`columns`), with Wilson's interval.

    broke: 0 or 1 per trial. Refused if one of the factors has fewer than two levels.
    """
    cells = _cells(np.asarray(broke, dtype=np.float64), rows, columns)
    if why := _refusal(cells):
        return refused(int(cells.size.sum()), why)
    if cells.total.min() < 0 or (cells.total > cells.size).any():
        raise BadArgument("a trial is 1 (broke) or 0 (held)")
    rate = cells.mean
    effective_n, method = _effective_n(cells, rate * (1 - rate), rng, n_draws)
    bounds = wilson_bounds(rate, effective_n.at(confidence), confidence)
    return effective_n.estimate(rate, bounds, f"wilson, {method}", confidence)


def crossed_difference(
    a: ArrayLike,
    b: ArrayLike,
    rows: ArrayLike,
    columns: ArrayLike,
    rng: np.random.Generator,
    confidence: float = CONFIDENCE,
    n_draws: int = N_DRAWS,
) -> CrossedDifference:
    """b's rate minus a's on the same trials, with Tango's interval and a t test.

    Refused, with p = 1, if one of the factors has fewer than two levels.
    """
    table = tabulate(a, b)
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    cells = _cells(differences, rows, columns)
    if why := _refusal(cells):
        return CrossedDifference(refused(table.n, why), 1.0)
    mean = cells.mean
    spread = table.n_discordant / table.n - mean**2
    effective_n, method = _effective_n(cells, spread, rng, n_draws)
    bounds = tango_bounds(table, effective_n.at(confidence), confidence)
    estimates = effective_n.estimate(mean, bounds, f"tango, {method}", confidence)
    if mean == 0.0 or effective_n.estimated is None:
        return CrossedDifference(estimates, 1.0)
    t = abs(mean) / math.sqrt(spread / effective_n.estimated) if spread > 0 else math.inf
    return CrossedDifference(estimates, min(1.0, 2.0 * float(special.stdtr(effective_n.df, -t))))


def pigeonhole(total: _Floats, size: _Floats, rng: np.random.Generator, n_draws: int = N_DRAWS) -> _Floats:
    """Draws of the mean: rows and columns of (row, column) sums are resampled, each with return.

    A draw in which no trial is left has the value nan.
    """
    n_rows, n_columns = total.shape
    terms = []
    for start in range(0, n_draws, step := max(1, _AT_ONCE // n_rows)):
        n = min(step, n_draws - start)
        of_rows, of_columns = _times(rng, n, n_rows), _times(rng, n, n_columns)
        sums = ((of_rows @ total) * of_columns).sum(axis=1)
        sizes = ((of_rows @ size) * of_columns).sum(axis=1)
        terms.append(np.divide(sums, sizes, out=np.full(n, np.nan), where=sizes > 0))
    return np.concatenate(terms)


def _times(rng: np.random.Generator, n_draws: int, n_levels: int) -> _Floats:
    """(draw, level) how often each level is drawn."""
    drawn = rng.integers(0, n_levels, (n_draws, n_levels)) + n_levels * np.arange(n_draws)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=n_draws * n_levels)
    return counts.reshape(n_draws, n_levels).astype(np.float64)


def _cells(values: _Floats, rows: ArrayLike, columns: ArrayLike) -> _CrossedSums:
    row_labels, column_labels = np.asarray(rows), np.asarray(columns)
    if not (values.shape == row_labels.shape == column_labels.shape) or values.ndim != 1:
        raise BadArgument(
            f"{values.shape} trials do not fit {row_labels.shape} rows and {column_labels.shape} columns; "
            "all must be flat and equal"
        )
    row_names, r = np.unique(row_labels, return_inverse=True)
    column_names, c = np.unique(column_labels, return_inverse=True)
    shape = len(row_names), len(column_names)
    place = r * shape[1] + c
    n_cells = shape[0] * shape[1]
    total = np.bincount(place, weights=values, minlength=n_cells).astype(np.float64)
    size = np.bincount(place, minlength=n_cells).astype(np.float64)
    return _CrossedSums(total.reshape(shape), size.reshape(shape))


def _refusal(cells: _CrossedSums) -> str:
    if cells.n_levels < 2:
        return "an interval for other behaviours and attacks needs at least two of each"
    return ""


def _effective_n(
    cells: _CrossedSums, spread: float, rng: np.random.Generator, n_draws: int
) -> tuple[EffectiveN, str]:
    """The effective n, and the name of the method. `spread`: the variance of one independent trial."""
    n, levels = int(cells.size.sum()), cells.n_levels
    if levels >= MANY:
        variance = float(np.nanvar(pigeonhole(cells.total, cells.size, rng, n_draws), ddof=1))
        method = f"pigeonhole bootstrap, {n_draws:,} draws"
    else:
        variance, method = _two_way(cells), "two-way clusters"
    estimated = min(float(n), spread / variance) if variance > 0 and spread > 0 else None
    return EffectiveN(n, levels, cells.floor, estimated, levels - 1), method


def _two_way(cells: _CrossedSums) -> float:
    residuals, n = cells.total - cells.size * cells.mean, float(cells.size.sum())
    by_row, by_column = (_between(residuals.sum(axis=axis)) for axis in (1, 0))
    by_cell = _between(residuals[cells.size > 0])
    return max(by_row + by_column - by_cell, by_row, by_column) / n**2


def _between(sums: _Floats) -> float:
    return float(np.square(sums).sum()) * sums.size / (sums.size - 1)
