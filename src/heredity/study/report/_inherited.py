"""Inheritance for the HTML page: rows with their bars, and the figure of the lineage.

Promises: shows what estimates.json holds; a child is always compared with its parent.
Leaves to others: the words (study/wording.py), the figure (figures/lineage_graph.py), the page
(_inherited.html.jinja).
"""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from heredity.core.sanitize import label
from heredity.study import wording as words
from heredity.study.estimates import JUDGED, Estimates, Inheritance, Measure
from heredity.study.report._view import Compared, View, span
from heredity.study.report.figures import charts, lineage_graph

_SHORT = {"worse": "worse", "not worse": "not worse", "not enough evidence": "undecided"}


class EdgeRow(NamedTuple):
    """An edge as a row; the difference of `compared` is the child's rate minus the parent's."""

    edge: Inheritance
    how: str
    badge: str
    verdict: str
    compared: Compared


def rows(view: View, measure: Measure, scope: str | None = None, exploratory: bool = False) -> list[EdgeRow]:
    """The edges of one measure, in one scope or in all."""
    held = view.estimates.technique_edges if exploratory else view.estimates.edges
    return [_row(e) for e in held if e.compared.measure == measure and scope in (None, e.compared.technique)]


def _row(edge: Inheritance) -> EdgeRow:
    pair, badge, verdict = edge.compared, words.BADGES[edge.verdict], words.capital(edge.verdict)
    turned = Compared(
        pair, edge.child, edge.parent, pair.difference, edge.lost, edge.gained, badge, verdict, ""
    )
    return EdgeRow(edge, words.recipe_words(edge), badge, verdict, turned)


def retention_bar(view: View, edge: Inheritance) -> Markup:
    """The retention's interval on a line from 0 to 100 %."""
    return charts.interval_bar(
        span(edge.retention), view.order.get(edge.child, 0), words.retention_words(edge)
    )


def figure(view: View) -> Markup:
    """The figure of the lineage, each edge with its verdict."""
    found, by_edge = view.estimates, words.edge_verdicts(view.estimates)
    in_it = {ident for key in by_edge for ident in key}
    nodes = [
        lineage_graph.Node(card.id, view.names[card.id], view.order[card.id], _broke(view, card.id))
        for card in found.models
        if card.id in in_it
    ]
    edges = [
        lineage_graph.Arrow(*key, words.BADGES[verdict], _edge_label(found, key, verdict))
        for key, verdict in by_edge.items()
    ]
    lines = (f"{view.names[c]} from {view.names[p]}: {verdict}" for (p, c), verdict in by_edge.items())
    return lineage_graph.graph(nodes, edges, f"Lineage, parents above children. {'; '.join(lines)}")


def _broke(view: View, model: str) -> str:
    rate = view.rate(model, view.estimates.main_scope(), "breach")
    value = rate.estimate.value if rate else None
    return "" if value is None else f"broke {words.percent(value)}"


def _edge_label(found: Estimates, key: tuple[str, str], verdict: str) -> tuple[str, ...]:
    """The recipe, the verdict, and the losses in the kind of breach that gave the verdict."""
    mine = [e for e in found.edges if (e.parent, e.child) == key and e.compared.measure == "breach"]
    made = f"{mine[0].recipe}, {mine[0].role}" if mine[0].role else mine[0].recipe
    edge = next((e for e in mine if e.compared.n and e.verdict == verdict), None)
    if edge is None:
        return (label(made, 24), _SHORT[verdict])
    judged = ", judged" if edge.compared.technique == JUDGED and len(mine) > 1 else ""
    return (label(made, 24), _SHORT[verdict] + judged, f"lost {edge.lost} of {edge.kept + edge.lost}")
