"""Two models side by side on one trial."""

from __future__ import annotations

from heredity.core.errors import UsageError
from heredity.view.pages.conversations import number
from heredity.view.pages.pairs import chosen
from heredity.view.pairs import WHICH, beside, is_edge, shared
from heredity.view.queries import read
from heredity.view.rates import board_of
from heredity.view.site import Asked, Site

PATH, MENU, TAB = "/s/{study}/pair/{place}", "", ""
IS_EXPORTED = True


def render(site: Site, asked: Asked) -> str:
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
