"""The share of trials that a child still holds of those that its parent held.

Promises: the four counts are the paired table from the parent's side. Retention has a width at 0 and 1.
Leaves to others: whether the difference is more than chance, and the verdict (paired.py).

If answers are sampled, retention falls below 1 by chance: a copy loses some trials, and gains about as many.
The verdict therefore rests on the difference, never on retention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate
from heredity.stats.intervals import CONFIDENCE, clustered_rate
from heredity.stats.paired import Table

Rate = Callable[[ArrayLike, ArrayLike, float], Estimate]


class Inherited(NamedTuple):
    """Trials that held with both, only with the parent, only with the child, and with neither."""

    kept: int
    lost: int
    gained: int
    never: int


def inherited(table: Table) -> Inherited:
    """The counts of inheritance from the paired table of parent (a) and child (b)."""
    return Inherited(kept=table.neither, lost=table.only_b, gained=table.only_a, never=table.both)


def retention(
    parent: ArrayLike,
    child: ArrayLike,
    clusters: ArrayLike | None = None,
    confidence: float = CONFIDENCE,
    rate: Rate = clustered_rate,
) -> Estimate:
    """P(child held | parent held), where `parent` and `child` say on which trials each broke.

    Wilson on kept + lost trials, or on their effective n if trials share clusters. The spread is that of a
    ratio, because the number of trials that the parent held is random too. `rate` is another interval.
    """
    a, b = np.asarray(parent, dtype=np.bool_), np.asarray(child, dtype=np.bool_)
    if a.shape != b.shape or a.ndim != 1:
        raise BadArgument(
            f"{a.shape} and {b.shape} trials are not paired; both must be flat and equal", code="not-paired"
        )
    labels = np.arange(a.size) if clusters is None else np.asarray(clusters)
    return rate(~b[~a], labels[~a], confidence)
