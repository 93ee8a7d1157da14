"""A parent and its child: what each study found, as a table of two by two whose counts open the pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from heredity.core.errors import UnknownName
from heredity.study.estimates import Estimates, Inheritance
from heredity.study.wording import capital, retention_words, scope_name
from heredity.view.pages.lineage import EdgeStudy, chosen
from heredity.view.pairs import WHICH, shared
from heredity.view.queries import Filters
from heredity.view.rates import board_of
from heredity.view.site import Asked, Site

PATH, MENU, TAB = "/lineage/{parent}/{child}", "", ""
IS_EXPORTED = True


class EdgeTechnique(NamedTuple):
    """A technique, or the harmless twins: how many trials there are of each sort. `query` opens them."""

    technique: str  # "" for the twins of all techniques
    counts: dict[str, int]
    n: int
    query: dict[str, str]


class EdgeResult(NamedTuple):
    """The result of one study. lines: its own comparisons in words, by kind of rate; [] before it has any."""

    one: EdgeStudy
    query: dict[str, str]
    scope: str
    lines: list[str]
    rows: list[EdgeTechnique]


def render(site: Site, asked: Asked) -> str:
    """The page."""
    graph, child = chosen(site, asked, "child")
    _, parent = chosen(site, asked, "parent")
    edge = graph.edges.get((parent.id, child.id))
    if edge is None:
        raise UnknownName("parent of this model", parent.name, [b.parent for b in graph.edges_of(child.id)])
    return site.html(
        "lineage_edge.html.jinja", asked,
        edge=edge, parent=parent, child=child, results=[_result(one) for one in edge.studies],
    )  # fmt: skip


def _result(one: EdgeStudy) -> EdgeResult:
    study, board = one.study, board_of(one.study)
    estimates = board.estimates
    ids = tuple(study.plan.models[m].id for m in (one.both.a, one.both.b))
    held = () if estimates is None else estimates.edges
    inherited = [edge for edge in held if (edge.parent, edge.child) == ids and edge.compared.n]
    query = {"a": study.names[one.both.a], "b": study.names[one.both.b]}
    lines = [] if estimates is None else [_line(estimates, edge) for edge in inherited]
    return EdgeResult(one, query, board.main_scope, lines, list(_rows(one, query)))


def _line(estimates: Estimates, edge: Inheritance) -> str:
    is_twins = edge.compared.measure == "over_refusal"
    of = "harmless twins" if is_twins else scope_name(estimates, edge.compared.technique)
    held = "answered by the parent" if is_twins else "held by the parent"
    return f"{capital(of)}: {edge.verdict}. Kept of those {held}: {retention_words(edge)}."


def _rows(one: EdgeStudy, query: dict[str, str]) -> Iterator[EdgeTechnique]:
    study, board = one.study, board_of(one.study)
    wanted = [(name, Filters(technique=t)) for t, name in enumerate(study.techniques)]
    for name, filters in (*wanted, ("", Filters(kind="benign"))):
        both = shared(study, board, one.both.a, one.both.b, filters)
        if both.n_all:
            more = {"technique": name} if name else {"kind": "benign"}
            yield EdgeTechnique(name, {which: both.n(which) for which in WHICH}, both.n_all, query | more)
