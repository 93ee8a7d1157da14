"""Two models on the same trials: those that only one of them broke, both, or neither; and one trial."""

from __future__ import annotations

from typing import NamedTuple

from heredity.core.errors import UsageError
from heredity.view.pages.conversations import number
from heredity.view.pairs import WHICH, Shared, Which, beside, is_edge, page_of, pairs, shared
from heredity.view.places import OpenStudy
from heredity.view.queries import KINDS, Filters, ListedRow, board_of, place_of, read, read_filters, rows_of
from heredity.view.site import Asked, Page, Site


class PairOfRows(NamedTuple):
    """A trial of both models."""

    place: int
    a: ListedRow
    b: ListedRow


class Chosen(NamedTuple):
    """The two models of an address, and which of their trials it asks for."""

    a: int
    b: int
    which: Which
    filters: Filters

    def query(self, study: OpenStudy) -> dict[str, str]:
        """The same as the query of an address."""
        own = {"a": study.names[self.a], "b": study.names[self.b], "which": self.which}
        return own | {
            k: v
            for k, v in self.filters.query(study).items()
            if k in ("technique", "attack", "kind", "scope")
        }


def chosen(study: OpenStudy, asked: Asked) -> Chosen:
    """The two models and the sort of trial: by default a parent and its child, and what only the child broke.

    Raises UsageError for a study of one model, and UnknownName for a model that it lacks.
    """
    first = next(pairs(study), None)
    if first is None:
        raise UsageError("This study has one model: there is nothing to put beside it.")
    query = asked.query
    a = place_of("model", query["a"], study.names) if query.get("a") else first[0]
    b = place_of("model", query["b"], study.names) if query.get("b") else first[1]
    which = query.get("which") or "only-b"
    sort = WHICH[place_of("sort of trial", which, WHICH)]
    return Chosen(a, b, sort, read_filters(study, {**query, "model": "", "outcome": "", "q": ""}))


def render(site: Site, asked: Asked) -> str:
    """A page of the list."""
    study = site.open(asked)
    wanted = chosen(study, asked)
    both = shared(study, board_of(study), wanted.a, wanted.b, wanted.filters)
    places, after = page_of(both.places(wanted.which), number(asked.query.get("after"), -1))
    return site.html(
        "pairs.html.jinja", asked, study,
        chosen=wanted, both=both, sorts=WHICH, rows=_rows(study, both, places), after=after,
        query=wanted.query(study), kinds=KINDS, is_edge=is_edge(study, wanted.a, wanted.b), path=asked.path,
        scopes=board_of(study).outcomes.breach_scopes,
    )  # fmt: skip


def _rows(study: OpenStudy, both: Shared, places: list[int]) -> list[PairOfRows]:
    n = study.plan.n_per_model
    rows = rows_of(study, [place + m * n for place in places for m in (both.a, both.b)])
    return [PairOfRows(p, rows[p + both.a * n], rows[p + both.b * n]) for p in places]


def render_trial(site: Site, asked: Asked) -> str:
    """The page."""
    study = site.open(asked)
    wanted, n = chosen(study, asked), study.plan.n_per_model
    place = number(asked.parts["place"])
    if place >= n:
        raise UsageError(f"Each model has the trials 0 to {n - 1}.")
    both = shared(study, board_of(study), wanted.a, wanted.b, wanted.filters)
    sort = int(both.sorts[place])
    if sort and "which" not in asked.query:
        wanted = wanted._replace(which=WHICH[sort - 1])
    before, after = beside(both.places(wanted.which), place)
    indices = [place + m * n for m in (wanted.a, wanted.b)]
    return site.html(
        "pair.html.jinja", asked, study,
        chosen=wanted, place=place, trial=study.grid.trial(indices[0]), before=before, after=after,
        sides=[(m, i, read(study, i)) for m, i in zip((wanted.a, wanted.b), indices, strict=True)],
        query=wanted.query(study), n=both.n(wanted.which), is_edge=is_edge(study, wanted.a, wanted.b),
        at=int((both.sorts[: place + 1] == sort).sum()) if sort == WHICH.index(wanted.which) + 1 else 0,
    )  # fmt: skip


PAIRS = Page("/s/{study}/pairs", render, tab="3 Two models", is_exported=True)
PAIR = Page("/s/{study}/pair/{place}", render_trial, is_exported=True)
PAGES = (PAIRS, PAIR)
