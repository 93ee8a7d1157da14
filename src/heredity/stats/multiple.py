"""Many comparisons at once: p-values adjusted so that the family keeps its error rate.

Promises: adjusted values in the order given, each at least the raw one, capped at 1.
Leaves to others: which comparisons form one family (estimates.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import BadArgument


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979): the chance of any false claim stays below alpha."""
    p, order = _sorted(p_values)
    m = len(p)
    steps = np.maximum.accumulate(p[order] * np.arange(m, 0, -1))
    return _unsorted(steps, p, order)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg 1995: the expected share of false claims among the claims stays below alpha."""
    p, order = _sorted(p_values)
    m = len(p)
    steps = p[order] * m / np.arange(1, m + 1)
    return _unsorted(np.minimum.accumulate(steps[::-1])[::-1], p, order)


def _sorted(p_values: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    p = np.asarray(p_values, dtype=np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise BadArgument(
            "a p-value lies outside [0, 1] or is missing; leave comparisons without one out",
            code="values-out-of-range",
        )
    return p, np.argsort(p, kind="stable")


def _unsorted(steps: NDArray[np.float64], p: NDArray[np.float64], order: NDArray[np.intp]) -> list[float]:
    adjusted = np.empty_like(steps)
    adjusted[order] = np.clip(steps, p[order], 1.0)  # p * m / m may round to just below p
    return [float(value) for value in adjusted]
