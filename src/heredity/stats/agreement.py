"""Two raters on the same items: Cohen's kappa, with its interval.

Promises: kappa is refused, with a reason, if a rater gave every item the same answer: it would always be 0.
The interval lies in [-1, 1] and has a width above zero.
Leaves to others: the items and the raters.

Sources: Cohen 1960; Fleiss, Cohen & Everitt 1969, Psychol. Bull. 72:323 (the large-sample standard error).
"""

from __future__ import annotations

import math

from heredity.core.records import Estimate
from heredity.stats.intervals import CONFIDENCE, normal_quantile, refused, wilson_bounds
from heredity.stats.paired import Table

_KAPPA = "cohen's kappa"
METHOD = f"{_KAPPA}, fleiss-cohen-everitt se"


def cohens_kappa(table: Table, confidence: float = CONFIDENCE) -> Estimate:
    """Agreement beyond chance of two raters who each answered yes or no (`both`: both answered yes).

    1 is full agreement, 0 the agreement by chance."""
    n = table.n
    if n == 0:
        return Estimate(None, None, None, 0, METHOD)
    cells = [[table.both / n, table.only_a / n], [table.only_b / n, table.neither / n]]
    rows = [sum(row) for row in cells]
    columns = [cells[0][i] + cells[1][i] for i in (0, 1)]
    observed = cells[0][0] + cells[1][1]
    expected = sum(r * c for r, c in zip(rows, columns, strict=True))
    if max(rows) == 1 or max(columns) == 1:
        return refused(n, "a rater gave every item the same answer")
    kappa = (observed - expected) / (1 - expected)
    if table.n_discordant in (0, n):  # the standard error would be 0, or could be
        low, high = (
            min(1.0, max(-1.0, (share - expected) / (1 - expected)))
            for share in wilson_bounds(observed, n, confidence)
        )
        return Estimate(kappa, min(low, kappa), max(high, kappa), n, f"{_KAPPA}, wilson")
    error = _standard_error(cells, rows, columns, observed, expected) / math.sqrt(n)
    reach = normal_quantile(confidence) * error
    return Estimate(kappa, max(-1.0, kappa - reach), min(1.0, kappa + reach), n, METHOD)


def _standard_error(
    cells: list[list[float]], rows: list[float], columns: list[float], observed: float, expected: float
) -> float:
    """Times the root of n; equation 13 of Fleiss, Cohen and Everitt."""
    agreed = sum(
        cells[i][i] * ((1 - expected) - (rows[i] + columns[i]) * (1 - observed)) ** 2 for i in (0, 1)
    )
    differed = (1 - observed) ** 2 * sum(cells[i][1 - i] * (columns[i] + rows[1 - i]) ** 2 for i in (0, 1))
    chance = (observed * expected - 2 * expected + observed) ** 2
    return math.sqrt(max(0.0, agreed + differed - chance)) / (1 - expected) ** 2
