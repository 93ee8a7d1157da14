"""The lineage of a store: its models as a layered graph, with what studies found along each edge.

A model has a page with its files and studies; an edge has tables of two by two whose counts open the pairs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
from markupsafe import Markup
from msgspec import UNSET

from heredity.core.errors import HeredityError, UnknownName, UsageError
from heredity.core.files import stamp_file
from heredity.core.records import Model
from heredity.core.sanitize import label, plural
from heredity.lineage import catalog, graph
from heredity.lineage.catalog import how
from heredity.lineage.store import read_record
from heredity.stats import inherited, tabulate
from heredity.study import figures
from heredity.study.estimates import ALL, Estimates, Inheritance, ModelCard
from heredity.study.findings.edge_verdicts import EdgeVerdict, edge_verdicts
from heredity.study.outcomes import BROKE, Outcomes, is_decided
from heredity.study.wording import BADGES, capital, names, retention_words, scope_name
from heredity.view.pages.conversations import number
from heredity.view.pages.studies import planned_at
from heredity.view.pairs import WHICH, Shared, shared
from heredity.view.places import OpenStudy
from heredity.view.queries import Filters, ShownRate, board_of
from heredity.view.site import Asked, Page, Site

# --- the models and edges of a place ------------------------------------------------------------------
# An edge is a parent and its child as their records or a study's plan have them. Its verdict and its counts
# are those of a study's own comparison. A study that runs decides nothing.

HOPS = 2  # that a figure shows around a model
MAX_MODELS = 80  # models of a figure; more are not legible
_SECONDS = 1.0  # that reading new rows may take, of all studies together
_GUARDED = "behind_guards"  # such a child inherits nothing

_read: dict[Path, tuple[list[int], Model | str]] = {}  # records and errors, by file and its stamp


class Kin(NamedTuple):
    """A model. record: None if the store does not have it. forms: the same model in other forms."""

    id: str
    name: str
    made: str
    licence: str
    format: str
    record: Model | None
    studies: tuple[OpenStudy, ...]
    forms: tuple[Model, ...]


class EdgeStudy(NamedTuple):
    """The result of a study on a parent and its child.

    row           None before it has a verdict
    kept          breach trials that both held; lost: only the parent; gained: only the child; never: neither.
                  They are those of the main scope that both decided, as in study/estimates.py, Inheritance
    both          the trials of that scope, on which only a breach counts as broken; a: the parent
    """

    study: OpenStudy
    at: str
    row: EdgeVerdict | None
    kept: int
    lost: int
    gained: int
    never: int
    both: Shared

    @property
    def n(self) -> int:
        """The trials that both decided."""
        return self.kept + self.lost + self.gained + self.never

    @property
    def words(self) -> str:
        """The verdict, with its reason."""
        return self.row.words if self.row else "undecided so far"

    @property
    def kind(self) -> str:
        """The verdict's class in the style sheet."""
        return BADGES[self.row.word] if self.row else "unknown"


class ComparedEdge(NamedTuple):
    """A parent and its child. studies: the studies that compared them; the first one colours the edge."""

    parent: str
    child: str
    made: str
    studies: tuple[EdgeStudy, ...]

    @property
    def kind(self) -> str:
        """The class of the edge: a verdict's, or "none" if it has no verdict of any study."""
        return self.studies[0].kind if self.studies else "none"


class LineageGraph:
    """The models and edges of a place. problems: errors of records. is_whole: whether all rows are read."""

    def __init__(
        self,
        models: Mapping[str, Kin],
        edges: Mapping[tuple[str, str], ComparedEdge],
        problems: list[str],
        is_whole: bool,
    ) -> None:
        self.models, self.edges, self.problems, self.is_whole = models, edges, problems, is_whole
        self._near: dict[str, list[str]] = {ident: [] for ident in models}
        for parent, child in edges:
            self._near[parent].append(child)
            self._near[child].append(parent)

    def around(self, ident: str, hops: int) -> list[str]:
        """The models at most `hops` edges away, the nearest first."""
        relatives, newest = {ident: None}, [ident]
        for _ in range(hops):
            newest = [each for at in newest for each in self._near[at] if each not in relatives]
            relatives |= dict.fromkeys(newest)
        return list(relatives)

    def n_hidden(self, ident: str, shown: set[str]) -> int:
        """The neighbours of a model that are not shown."""
        return len({*self._near[ident]} - shown)

    def centre(self) -> str | None:
        """The model with most edges; None without a model."""
        return max(self._near, key=lambda ident: len(self._near[ident]), default=None)

    def of_form(self, ident: str) -> str | None:
        """The model with this id, or the one of which this id is another form; None if there is neither."""
        if ident in self.models:
            return ident
        return next((kin.id for kin in self.models.values() for form in kin.forms if form.id == ident), None)

    def edges_of(self, ident: str) -> list[ComparedEdge]:
        """The edges of a model: to its parents, then to its children."""
        edges = [edge for edge in self.edges.values() if ident in (edge.parent, edge.child)]
        return sorted(edges, key=lambda edge: edge.child != ident)


def store_of(site: Site) -> Path | None:
    """The store whose models are shown. A page that is sent to others shows none but those of its place."""
    held = site.place.models
    return held if site.is_live or held == site.place.root else None


def records(store: Path | None) -> tuple[list[Model], list[str]]:
    """Every record of a store that can be read, and the errors of the others."""
    models, problems = [], []
    for path in sorted(store.glob("models/*/model.json")) if store is not None else ():
        stamp = stamp_file(path)
        if path not in _read or _read[path][0] != stamp:
            try:
                _read[path] = stamp, read_record(path)
            except (HeredityError, OSError) as error:
                _read[path] = stamp, str(error)
        records = _read[path][1]
        if isinstance(records, str):
            problems.append(records)
        else:
            models.append(records)
    return models, problems


def lineage_of(site: Site) -> LineageGraph:
    """The lineage of the site's store and studies."""
    held, problems = records(store_of(site))
    studies, is_whole = _studies(site)
    known = {model.id: model for model in held}
    asked = {model.id for study in studies for model in study.plan.models}
    own = [
        model
        for model in held
        if model.id in asked
        or not (model.recipe.kind in graph.FORMS and bool(model.parents) and model.parents[0] in known)
    ]
    studied = _edge_studies(studies)
    edges = {(edge.parent, edge.child): edge for edge in graph.edges(own, known)}
    for study in studies:
        edges = {(edge.parent, edge.child): edge for edge in _own_edges(study)} | edges
    for model in own:  # a parent that is not there is named nevertheless
        for parent in model.parents:
            if parent not in known and parent not in asked:
                edges.setdefault((parent, model.id), graph.Edge(parent, model.id, model.recipe.kind))
    compared = {
        key: ComparedEdge(*key, _made(edge), tuple(studied.get(key, ()))) for key, edge in edges.items()
    }
    return LineageGraph(_kin(own, held, known, studies, compared), compared, problems, is_whole)


def _studies(site: Site) -> tuple[list[OpenStudy], bool]:
    """The studies of the place that can be read, with the rows that came; whether all rows are in."""
    end, opened, is_whole = time.monotonic() + _SECONDS, [], True
    for each in site.place.studies():
        try:
            study = site.place.open(each.key)
        except (HeredityError, OSError):
            continue  # the list of studies shows its error
        if any(_own_edges(study)):
            study.refresh(max(end - time.monotonic(), 0.02))
            is_whole = is_whole and study.is_whole
        opened.append(study)
    return opened, is_whole


def _own_edges(study: OpenStudy) -> Iterator[graph.Edge]:
    for edge in () if study.plan.edges is None else study.plan.edges:
        if edge.recipe != _GUARDED and edge.parent in study.places and edge.child in study.places:
            yield edge


def _root(model: Model, known: Mapping[str, Model], own: set[str]) -> str:
    """The model that a form stands for."""
    seen: set[str] = set()
    while model.id not in own and model.id not in seen and model.parents and model.parents[0] in known:
        seen.add(model.id)
        model = known[model.parents[0]]
    return model.id


def _edge_studies(studies: Iterable[OpenStudy]) -> dict[tuple[str, str], list[EdgeStudy]]:
    """The results of the studies, by edge: those that decided before the others, the newest first."""
    by_edge: dict[tuple[str, str], list[EdgeStudy]] = {}
    for study in studies:
        edges = list(_own_edges(study))
        if not edges:
            continue
        board = board_of(study)
        rows = {} if board.estimates is None else edge_verdicts(board.estimates)
        at = planned_at(study)
        for edge in edges:
            key = edge.parent, edge.child
            a, b = study.places[edge.parent], study.places[edge.child]
            counts = decided(board.outcomes, a, b, board.main_scope)
            both = shared(study, board, a, b, Filters(scope=board.main_scope))
            by_edge.setdefault(key, []).append(EdgeStudy(study, at, rows.get(key), *counts, both))
    for each in by_edge.values():
        each.sort(key=lambda one: (bool(one.row and one.row.word != "cannot tell"), one.at), reverse=True)
    return by_edge


def decided(outcomes: Outcomes, a: int, b: int, scope: str) -> tuple[int, int, int, int]:
    """How many trials of a scope both held, only the parent, only the child and neither, if both decided."""
    probes = outcomes.probes(scope, "breach")
    parent, child = (outcomes.scored_of(m, ALL, probes) for m in (a, b))
    both = is_decided(parent) & is_decided(child)
    result = inherited(tabulate(parent[both] == BROKE, child[both] == BROKE))
    return result.kept, result.lost, result.gained, result.never


def _made(edge: graph.Edge) -> str:
    made = edge.recipe if edge.descent is UNSET else str(edge.descent)
    return f"{made}, {edge.role}" if edge.role else made


def _kin(
    own: list[Model],
    held: list[Model],
    known: Mapping[str, Model],
    studies: list[OpenStudy],
    edges: Mapping[tuple[str, str], ComparedEdge],
) -> dict[str, Kin]:
    """The models: those of the store, then those that only studies have, then parents that are only named."""
    cards = {m.id: ModelCard(m.id, m.name, m.family, m.licence, m.format) for m in own}
    were_in: dict[str, list[OpenStudy]] = {}
    for study in studies:
        for m in study.plan.models:
            if m.guards is None:
                cards.setdefault(m.id, ModelCard(m.id, m.name, m.family, m.licence, m.format))
                were_in.setdefault(m.id, []).append(study)
    for ident in dict.fromkeys(ident for key in edges for ident in key):
        cards.setdefault(ident, ModelCard(ident, ident[:12], "", "", ""))
    called, ids = names(tuple(cards.values())), {model.id for model in own}
    forms: dict[str, list[Model]] = {}
    for model in held:
        if model.id not in ids:
            forms.setdefault(_root(model, known, ids), []).append(model)
    made = {edge.child: edge.made for edge in edges.values()}
    return {
        ident: Kin(
            ident, called[ident], label(how(known[ident]) if ident in known else made.get(ident, ""), 60),
            card.licence, card.format, known.get(ident), tuple(were_in.get(ident, ())),
            tuple(forms.get(ident, ())),
        )
        for ident, card in cards.items()
    }  # fmt: skip


WHOLE = 16  # models up to which the whole lineage is shown first


class LineagePicture(NamedTuple):
    """A figure of a lineage: its models, its edges, and how many models it leaves out."""

    svg: Markup
    edges: list[ComparedEdge]
    n_shown: int
    n_left: int


def render(site: Site, asked: Asked) -> str:
    """The whole lineage if it is small, else the models around the one with most edges."""
    graph = lineage_of(site)
    hops = number(asked.query.get("hops"), HOPS)
    centre = graph.centre() if len(graph.models) > WHOLE and hops else None
    shown = graph.around(centre, hops) if centre is not None else list(graph.models)
    words = asked.query.get("q", "")[:200].strip().casefold()
    listed = [kin for kin in graph.models.values() if words in f"{kin.name} {kin.made} {kin.id}".casefold()]
    return site.html(
        "lineage.html.jinja", asked,
        graph=graph, picture=picture(site, graph, shown, centre), centre=centre, hops=hops, words=words,
        models=sorted(listed, key=lambda kin: kin.name), store=store_of(site), path=asked.path,
    )  # fmt: skip


def chosen(site: Site, asked: Asked, part: str) -> tuple[LineageGraph, Kin]:
    """The lineage, and the model that a part of the address names. Raises UnknownName."""
    graph, wanted = lineage_of(site), asked.parts[part]
    ident = graph.of_form(wanted)
    if ident is None:
        raise UnknownName("model of this lineage", label(wanted), graph.models)
    return graph, graph.models[ident]


def picture(
    site: Site, lineage_graph: LineageGraph, shown: list[str], centre: str | None
) -> LineagePicture | None:
    """The figure of these models, at most MAX_MODELS; None without one."""
    if not shown:
        return None
    kept = shown[:MAX_MODELS]
    held = set(kept)
    edges = [edge for edge in lineage_graph.edges.values() if edge.parent in held and edge.child in held]
    nodes = [_node(site, lineage_graph.models[i], lineage_graph.n_hidden(i, held), i == centre) for i in kept]
    drawn = [_drawn(site, lineage_graph, edge) for edge in edges]
    lines = "; ".join(each.words for each in drawn)
    svg = figures.graph(nodes, drawn, f"Lineage, parents left of children. {lines}", is_scrolled=True)
    return LineagePicture(svg, edges, len(kept), len(lineage_graph.models) - len(kept))


def _node(site: Site, kin: Kin, n_hidden: int, is_chosen: bool) -> figures.Node:
    n = len(kin.studies)
    asked = plural(n, "study") if n else ""
    hidden = f"{n_hidden} more" if n_hidden else ""
    note = ", ".join(part for part in (kin.format, asked, hidden) if part)
    href = site.link(f"/lineage/{kin.id}")
    return figures.Node(kin.id, kin.name, None, note, href=href, is_chosen=is_chosen)


def _drawn(site: Site, graph: LineageGraph, edge: ComparedEdge) -> figures.DrawnEdge:
    href = site.link(f"/lineage/{edge.parent}/{edge.child}")
    called = f"{graph.models[edge.child].name} from {graph.models[edge.parent].name}, {edge.made}"
    if not edge.studies:
        words = f"{called}: not compared"
        return figures.DrawnEdge(edge.parent, edge.child, "none", (edge.made,), None, href, words)
    one = edge.studies[0]
    held = one.kept + one.lost
    more = f", +{one.gained}" if one.gained else ""
    counts = f"lost {one.lost} of {held}{more}"
    words = f"{called}: {one.words}; kept {one.kept}, lost {one.lost}, gained {one.gained} of n = {one.n}"
    lines = (edge.made, f"{one.row.word if one.row else one.words}, n {one.n}", counts)
    kept = one.kept / held if held else None
    return figures.DrawnEdge(edge.parent, edge.child, one.kind, lines, kept, href, words)


_MAX_STUDIES = 50  # studies whose rates are shown


class ModelInStudy(NamedTuple):
    """A study that a model was in, with the model's breach rate under each scope."""

    study: OpenStudy
    state: str
    rates: list[tuple[str, ShownRate]]


def render_model(site: Site, asked: Asked) -> str:
    """The page; `hops` in the query: the edges that its figure reaches."""
    graph, kin = chosen(site, asked, "model")
    hops = number(asked.query.get("hops"), HOPS)
    if hops < 1:
        raise UsageError("A figure reaches at least one edge from its model.")
    shown = graph.around(kin.id, hops)
    return site.html(
        "lineage_model.html.jinja", asked,
        graph=graph, kin=kin, hops=hops, picture=picture(site, graph, shown, kin.id),
        facts=[] if kin.record is None else list(_facts(kin.record)), edges=graph.edges_of(kin.id),
        studies=[_in_study(study, kin) for study in kin.studies[:_MAX_STUDIES]], path=asked.path,
    )  # fmt: skip


def _facts(model: Model) -> Iterator[tuple[str, str]]:
    """The record in words. Files are a table of their own."""
    yield from (("family", model.family), ("licence", model.licence), ("format", model.format))
    for name, value in (("architecture", model.architecture), ("quantization", model.quantization)):
        if isinstance(value, str):
            yield name, value
    yield "recipe", model.recipe.kind
    for name, value in model.recipe.settings.items():
        yield name, value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if model.made.at:
        device = "" if isinstance(model.made.device, msgspec.UnsetType) else f" on {model.made.device}"
        yield "made", f"{model.made.at[:16].replace('T', ' ')} in {model.made.seconds:,.0f} s{device}"
    yield from model.notes.items()
    yield from catalog.facts(model)


def _in_study(study: OpenStudy, kin: Kin) -> ModelInStudy:
    study.refresh(0.02)
    board = board_of(study)
    studies = [
        (scope, board.rate(study.places[kin.id], scope, "breach")) for scope in board.outcomes.breach_scopes
    ]
    return ModelInStudy(study, study.progress().state, [(scope, rate) for scope, rate in studies if rate])


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


def render_edge(site: Site, asked: Asked) -> str:
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


PAGES = (
    Page("/lineage", render, menu="3 Lineage", is_exported=True),
    Page("/lineage/{model}", render_model, is_exported=True),
    Page("/lineage/{parent}/{child}", render_edge, is_exported=True),
)
