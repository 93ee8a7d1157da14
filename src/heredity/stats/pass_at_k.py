"""Attack success within k tries (ASR@k): the chance that at least one of k repeated tries is a breach.

Promises: the estimate is unbiased for every k up to the number of tries. Its interval is over behaviours,
lies in [0, 1] and has a width above zero. Nothing is extrapolated beyond the tries that were made.
Leaves to others: which tries count.

Source: the estimator of pass@k (Chen et al. 2021, arXiv 2107.03374), read as attack success (2412.03556).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from heredity.core.errors import BadArgument
from heredity.core.records import Estimate
from heredity.stats.intervals import CONFIDENCE, clustered_rate


def success_at(k: int, n: int, c: int) -> float:
    """The chance of at least one breach in k tries, sampled without replacement from n with c breaches."""
    if not 1 <= k <= n or not 0 <= c <= n:
        raise BadArgument(f"{c} breaches in {n} tries say nothing about {k} tries", code="out-of-range")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)  # whole numbers: exact until the one division


def asr_at(
    k: int,
    broke: ArrayLike,
    tries: ArrayLike,
    clusters: ArrayLike,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """The mean over probes of the chance to break one within k tries, with an interval by behaviour.

    `broke` and `tries` are counts by probe, `clusters` its behaviour. Probes with fewer than k tries are left
    out: n is the number of probes that are in.
    """
    c, n, labels = np.asarray(broke, int), np.asarray(tries, int), np.asarray(clusters)
    is_in = n >= k
    pairs = list(zip(n[is_in].tolist(), c[is_in].tolist(), strict=True))
    known = {pair: success_at(k, *pair) for pair in set(pairs)}
    found = clustered_rate([known[pair] for pair in pairs], labels[is_in], confidence)
    return msgspec.structs.replace(
        found, method=f"unbiased at {k} of {_range(n[is_in].tolist())}; {found.method}"
    )


def steps(n: int) -> tuple[int, ...]:
    """The values of k of a curve over n tries: every power of two up to n, and n itself."""
    return tuple(sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | ({n} if n else set())))


def _range(tries: Sequence[int]) -> str:
    if not tries:
        return "no tries"
    low, high = min(tries), max(tries)
    return f"{high} tries" if low == high else f"{low} to {high} tries"
