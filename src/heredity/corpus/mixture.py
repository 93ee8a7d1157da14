"""How often each document is taken, so that sources have their shares of the training tokens.

Promises: the selection of documents is a function of their text and the seed. A source with too little text
is an error with all numbers; the mixture never changes silently.
Leaves to others: reading and writing tokens (build.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import UsageError

Ints = NDArray[np.int64]


class Stock(NamedTuple):
    """The training documents of a source: the tokens of each, and a random order."""

    name: str
    weight: float | None
    repeat: int
    lengths: Ints
    order: NDArray[np.uint64]  # smaller comes first

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


def taken(stocks: Sequence[Stock], tokens: int) -> list[Ints]:
    """How often each document of each source is taken. Raises UsageError if a source has too few tokens.

    tokens: of all sources together; 0: as many as the weights allow, or, without weights, everything once.
    """
    if not tokens and stocks[0].weight is None:
        return [np.ones(len(stock.lengths), np.int64) for stock in stocks]
    weights = [stock.tokens if stock.weight is None else stock.weight for stock in stocks]
    shares = [weight / sum(weights) for weight in weights]
    if not tokens:
        tokens = int(min(s.tokens * s.repeat / share for s, share in zip(stocks, shares, strict=True)))
    wanted = [tokens * share for share in shares]
    if not tokens or any(
        want > stock.tokens * stock.repeat for want, stock in zip(wanted, stocks, strict=True)
    ):
        raise UsageError(_dry(stocks, shares, wanted, tokens))
    return [_counts(stock, want) for stock, want in zip(stocks, wanted, strict=True)]


def _counts(stock: Stock, want: float) -> Ints:
    """Whole rounds of all documents, and the first documents of the random order once more."""
    rounds = int(want // stock.tokens) if stock.tokens else 0
    left = want - rounds * stock.tokens
    order = np.argsort(stock.order, kind="stable")
    before = np.cumsum(stock.lengths[order]) - stock.lengths[order]
    counts = np.full(len(stock.lengths), rounds, np.int64)
    counts[order[before < left - 0.5]] += 1
    return counts


def _dry(stocks: Sequence[Stock], shares: list[float], wanted: list[float], tokens: int) -> str:
    lines = [
        f"{s.name} {share:.1%}: {want:,.0f} wanted, {s.tokens * s.repeat:,} available"
        + (f" ({s.tokens:,} x {s.repeat})" if s.repeat > 1 else "")
        for s, share, want in zip(stocks, shares, wanted, strict=True)
    ]
    most = int(min(s.tokens * s.repeat / share for s, share in zip(stocks, shares, strict=True)))
    return (
        f"The mixture runs dry at {tokens:,} tokens: {'; '.join(lines)}. These weights reach {most:,}: ask"
        " for fewer tokens, change the weights, add text, or let a source repeat (repeat = 2)."
    )
