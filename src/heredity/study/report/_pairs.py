"""Comparisons for the HTML template: pairs of models, edges of the lineage, and other analyses.

Promises: shows only what estimates.json holds; a difference is turned so that it is never negative.
Leaves to others: single rates (_view.py), the words (study/wording.py), the figures (figures/).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from heredity.core.records import Estimate
from heredity.core.sanitize import label
from heredity.study import wording as words
from heredity.study.estimates import ALL, JUDGED, Estimates, Inheritance, Measure, ModelPair, Rate, negated
from heredity.study.report.figures import charts, lineage_graph

_SHORT = {"worse": "worse", "not worse": "not worse", "not enough evidence": "undecided"}


class Compared(NamedTuple):
    """A pair as a row; `high` is the model with the higher rate, so no difference is negative."""

    pair: ModelPair
    high: str  # model ids
    low: str
    difference: Estimate
    only_high: int
    only_low: int
    badge: str  # a class of the style sheet: worse, same, unknown
    verdict: str
    aside: str


class EdgeRow(NamedTuple):
    """An edge as a row; the difference of `compared` is the child's rate minus the parent's."""

    edge: Inheritance
    how: str
    badge: str
    verdict: str
    compared: Compared


class PairView:
    """The queries of the template about two models or more. Every method returns plain values."""

    def __init__(self, estimates: Estimates) -> None:
        self.estimates = estimates
        self.names = words.names(estimates.models)
        self.order = {card.id: i for i, card in enumerate(estimates.models)}
        self._rates: dict[tuple[str, str, str, str], Rate] = {
            (r.model, r.technique, r.attack, r.measure): r for r in estimates.rates
        }

    @property
    def main_scope(self) -> str:
        """The scope that the headline rests on."""
        return self.estimates.main_scope()

    def rate(self, model: str, technique: str, measure: Measure, attack: str = ALL) -> Rate | None:
        """The rate of one cell; None if it was not asked."""
        return self._rates.get((model, technique, attack, measure))

    # --- pairs ---

    def pairs(self, measure: Measure, scope: str | None = None, exploratory: bool = False) -> list[Compared]:
        """Comparisons of one measure, in one scope or in all, each with its verdict in words."""
        held = self.estimates.technique_pairs if exploratory else self.estimates.pairs
        wanted = (p for p in held if p.measure == measure and p.n and scope in (None, p.technique))
        return [self._compared(pair) for pair in wanted]

    def _compared(self, pair: ModelPair) -> Compared:
        found, table = pair.difference, pair.table
        is_b_higher = (found.value or 0.0) >= 0
        high, low = (pair.b, pair.a) if is_b_higher else (pair.a, pair.b)
        only = (table.only_b, table.only_a) if is_b_higher else (table.only_a, table.only_b)
        of_high, of_low = words.verdict_on(pair, high), words.verdict_on(pair, low)
        badge = {"worse": "worse", "not worse": "same"}.get(of_high, "unknown")
        said = words.capital(of_high)
        aside = words.withheld_on(pair, high) if badge == "unknown" else ""
        if not aside and (badge, of_low) == ("unknown", "not worse"):
            aside = f"but {self.names.get(low, '?')} is not worse"
        turned = found if is_b_higher else negated(found)
        return Compared(pair, high, low, turned, *only, badge, said, aside)

    def difference(self, row: Compared, reach: float) -> Markup:
        """The difference's interval, with the margin as a band."""
        text = f"{words.points(row.difference.value)}, interval {words.points_interval(row.difference)}"
        return charts.difference_bar(
            span(row.difference), row.pair.margin, reach, self.order.get(row.high, 0), text
        )

    def reach(self, pairs: Sequence[Compared]) -> float:
        """One scale for a table of differences."""
        return charts.reach_of([found for row in pairs if (found := span(row.difference))])

    # --- inheritance ---

    def edge_rows(
        self, measure: Measure, scope: str | None = None, exploratory: bool = False
    ) -> list[EdgeRow]:
        """The edges of one measure, in one scope or in all."""
        held = self.estimates.technique_edges if exploratory else self.estimates.edges
        wanted = (e for e in held if e.compared.measure == measure and not e.is_of_guard)
        return [_edge_row(edge) for edge in wanted if scope in (None, edge.compared.technique)]

    def retention_bar(self, edge: Inheritance) -> Markup:
        """The retention's interval on a line from 0 to 100 %."""
        order = self.order.get(edge.child, 0)
        return charts.interval_bar(span(edge.retention), order, words.retention_words(edge))

    def lineage(self) -> Markup:
        """The figure of the lineage, each edge with its verdict."""
        found, by_edge = self.estimates, words.edge_verdicts(self.estimates)
        in_it = {ident for key in by_edge for ident in key}
        nodes = [self._node(card.id) for card in found.models if card.id in in_it]
        edges = [
            lineage_graph.DrawnEdge(
                *key, words.BADGES[verdict], _edge_label(found, key, verdict), _retained(found, key, verdict)
            )
            for key, verdict in by_edge.items()
        ]
        lines = (f"{self.names[c]} from {self.names[p]}: {verdict}" for (p, c), verdict in by_edge.items())
        return lineage_graph.graph(nodes, edges, f"Lineage, parents left of children. {'; '.join(lines)}")

    def _node(self, model: str) -> lineage_graph.Node:
        rate = self.rate(model, self.main_scope, "breach")
        value = rate.estimate.value if rate else None
        did = words.failed(self.estimates, "breach", self.main_scope)
        note = "" if value is None else f"{did} {words.percent(value)}"
        return lineage_graph.Node(model, self.names[model], self.order[model], note, value)


def span(estimate: Estimate) -> charts.Span | None:
    """An estimate as it is drawn; None without a value or bounds."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    return charts.Span(estimate.value, estimate.low, estimate.high)


def _edge_row(edge: Inheritance) -> EdgeRow:
    pair, badge, verdict = edge.compared, words.BADGES[edge.verdict], words.capital(words.verdict_words(edge))
    turned = Compared(
        pair, edge.child, edge.parent, pair.difference, edge.lost, edge.gained, badge, verdict, ""
    )
    return EdgeRow(edge, words.recipe_words(edge), badge, verdict, turned)


def _deciding(found: Estimates, key: tuple[str, str], verdict: str) -> Inheritance | None:
    """The kind of breach that gave an edge its verdict."""
    mine = (e for e in found.edges if (e.parent, e.child) == key and e.compared.measure == "breach")
    return next((e for e in mine if e.compared.n and e.verdict == verdict), None)


def _retained(found: Estimates, key: tuple[str, str], verdict: str) -> float | None:
    edge = _deciding(found, key, verdict)
    return None if edge is None else edge.retention.value


def _edge_label(found: Estimates, key: tuple[str, str], verdict: str) -> tuple[str, ...]:
    """The recipe, the verdict, and the losses in the kind of breach that gave the verdict."""
    mine = [e for e in found.edges if (e.parent, e.child) == key and e.compared.measure == "breach"]
    made = ", ".join(each for each in (mine[0].descent or mine[0].recipe, mine[0].role) if each)
    edge = _deciding(found, key, verdict)
    if edge is None:
        return (label(made, 24), _SHORT[verdict])
    judged = ", judged" if edge.compared.technique == JUDGED and len(mine) > 1 else ""
    return (label(made, 24), _SHORT[verdict] + judged, f"lost {edge.lost} of {edge.kept + edge.lost}")
