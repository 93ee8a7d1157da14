"""Two models of a study on the same trials, as estimates.json holds it: any two, and a child with its parent.

Promises: an edge is a pair told from the parent's side, so both hold the same table and the same test.
Leaves to others: computing them (cells.py), the formulas (stats/), how they look (report/).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from heredity.records import Estimate, Record

Measure = Literal["breach", "over_refusal"]


class Table2x2(Record, frozen=True):
    """Trials that both models decided: where both broke, only `a`, only `b`, neither."""

    both: int
    only_a: int
    only_b: int
    neither: int


class Pair(Record, frozen=True):
    """Two models on the same trials. `difference` is the rate of `b` minus the rate of `a`.

    `verdict_ab` says what `b` is compared with `a`, `verdict_ba` the reverse; each is "worse", "not worse"
    (within `margin`) or "not enough evidence". `p_holm` is corrected over all pairs of the same measure in
    the same list, so over both scopes of breaches. `detectable` is the smallest difference that this n could
    have shown with 80 % power. Rates are as judged, not corrected: a judge's errors shrink a difference.
    `technique` is a scope in `Estimates.pairs`, one technique in `Estimates.technique_pairs` (exploratory).
    """

    a: str
    b: str
    measure: Measure
    technique: str
    table: Table2x2
    n: int
    difference: Estimate
    p_value: float | None
    p_holm: float | None
    test: str
    margin: float
    detectable: float | None
    verdict_ab: str
    verdict_ba: str
    words: str


def turned(pair: Pair) -> Pair:
    """The same comparison told the other way round: `a` is `b`, and the difference has the other sign."""
    found, table = pair.difference, pair.table
    value, low, high = (None if x is None else 0.0 - x for x in (found.value, found.high, found.low))
    return msgspec.structs.replace(
        pair,
        a=pair.b,
        b=pair.a,
        table=Table2x2(table.both, table.only_b, table.only_a, table.neither),
        difference=Estimate(value, low, high, found.n, found.method),
        verdict_ab=pair.verdict_ba,
        verdict_ba=pair.verdict_ab,
    )


class Inheritance(Record, frozen=True):
    """What a child has of a parent's security, on the trials that both decided, under a scope or a technique.

    Of breaches: `kept` held with both, `lost` held with the parent alone, `gained` with the child alone,
    `never` with neither. Of over-refusal the same words are about benign twins that were answered.
    `retention` is P(child held | parent held), over kept + lost. `compared` is the pair (`a` the parent, `b`
    the child); its `p_holm` is corrected over all edges of the same measure in the same list. `recipe` is
    how the child was made, with the steps between where they were not asked; `role` is what the parent was.
    """

    parent: str
    child: str
    recipe: str
    role: str
    kept: int
    lost: int
    gained: int
    never: int
    retention: Estimate
    compared: Pair

    @property
    def verdict(self) -> str:
        """What the child is compared with the parent: worse, not worse, not enough evidence."""
        return self.compared.verdict_ab
