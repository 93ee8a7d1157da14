"""The lineage of a store: its models as a layered graph, with what studies found along each edge."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from heredity.core.errors import UnknownName, UsageError
from heredity.core.sanitize import label, plural
from heredity.study.report import figures
from heredity.view.lineage import HOPS, MOST, ComparedEdge, Kin, LineageGraph, lineage_of, store_of
from heredity.view.pages.conversations import number
from heredity.view.site import Asked, Site

PATH, MENU, TAB = "/lineage", "3 Lineage", ""
IS_EXPORTED = True
WHOLE = 16  # models up to which the whole lineage is shown first


class LineagePicture(NamedTuple):
    """A figure of a lineage: its models, its edges, and how many models it leaves out."""

    svg: Markup
    edges: list[ComparedEdge]
    n_shown: int
    n_left: int


def render(site: Site, asked: Asked) -> str:
    """The whole lineage if it is small, else the models around the one with most edges."""
    found = lineage_of(site)
    hops = number(asked.query.get("hops"), HOPS)
    centre = found.centre() if len(found.models) > WHOLE and hops else None
    shown = found.around(centre, hops) if centre is not None else list(found.models)
    words = asked.query.get("q", "")[:200].strip().casefold()
    listed = [kin for kin in found.models.values() if words in f"{kin.name} {kin.made} {kin.id}".casefold()]
    return site.html(
        "lineage.html.jinja", asked,
        found=found, picture=picture(site, found, shown, centre), centre=centre, hops=hops, words=words,
        models=sorted(listed, key=lambda kin: kin.name), store=store_of(site), path=PATH,
    )  # fmt: skip


def chosen(site: Site, asked: Asked, part: str) -> tuple[LineageGraph, Kin]:
    """The lineage, and the model that a part of the address names. Raises UnknownName."""
    found, wanted = lineage_of(site), asked.parts[part]
    ident = found.of_form(wanted)
    if ident is None:
        raise UnknownName("model of this lineage", label(wanted), found.models)
    return found, found.models[ident]


def hops_of(asked: Asked) -> int:
    """The edges that a figure reaches from its model. Raises UsageError for less than one."""
    hops = number(asked.query.get("hops"), HOPS)
    if hops < 1:
        raise UsageError("A figure reaches at least one edge from its model.")
    return hops


def picture(site: Site, found: LineageGraph, shown: list[str], centre: str | None) -> LineagePicture | None:
    """The figure of these models, at most MOST; None without one."""
    if not shown:
        return None
    kept = shown[:MOST]
    held = set(kept)
    edges = [edge for edge in found.edges.values() if edge.parent in held and edge.child in held]
    nodes = [_node(site, found.models[i], found.n_hidden(i, held), i == centre) for i in kept]
    drawn = [_drawn(site, found, edge) for edge in edges]
    lines = "; ".join(each.words for each in drawn)
    svg = figures.graph(nodes, drawn, f"Lineage, parents left of children. {lines}", is_scrolled=True)
    return LineagePicture(svg, edges, len(kept), len(found.models) - len(kept))


def _node(site: Site, kin: Kin, n_hidden: int, is_chosen: bool) -> figures.Node:
    n = len(kin.studies)
    asked = plural(n, "study") if n else ""
    hidden = f"{n_hidden} more" if n_hidden else ""
    note = ", ".join(part for part in (kin.format, asked, hidden) if part)
    href = site.link(f"/lineage/{kin.id}")
    return figures.Node(kin.id, kin.name, None, note, href=href, is_chosen=is_chosen)


def _drawn(site: Site, found: LineageGraph, edge: ComparedEdge) -> figures.DrawnEdge:
    href = site.link(f"/lineage/{edge.parent}/{edge.child}")
    called = f"{found.models[edge.child].name} from {found.models[edge.parent].name}, {edge.made}"
    if not edge.found:
        words = f"{called}: not compared"
        return figures.DrawnEdge(edge.parent, edge.child, "none", (edge.made,), None, href, words)
    one = edge.found[0]
    held = one.kept + one.lost
    more = f", +{one.gained}" if one.gained else ""
    counts = f"lost {one.lost} of {held}{more}"
    words = f"{called}: {one.word}, kept {one.kept}, lost {one.lost}, gained {one.gained} of n = {one.n}"
    lines = (edge.made, f"{one.word}, n {one.n}", counts)
    kept = one.kept / held if held else None
    return figures.DrawnEdge(edge.parent, edge.child, one.kind, lines, kept, href, words)
