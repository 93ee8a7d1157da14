"""Two runs: what differs between their plans, and each model that both asked; and one trial side by side."""

from __future__ import annotations

from heredity.core.errors import UsageError
from heredity.view.pages.conversations import number
from heredity.view.pairs import WHICH, TwoRuns, beside
from heredity.view.queries import place_of, read
from heredity.view.site import Asked, Page, Site


def render(site: Site, asked: Asked) -> str:
    """The page; without two runs in the address only the form that chooses them."""
    a, b = (asked.query.get(name, "") for name in ("a", "b"))
    runs = chosen(site, asked) if a and b and a != b else None
    compared = [runs.compared(model) for model in runs.models] if runs and runs.scope else []
    return site.html(
        "compare.html.jinja", asked,
        runs=runs, compared=compared, a=a, b=b, studies=site.place.studies(), sorts=WHICH,
    )  # fmt: skip


def chosen(site: Site, asked: Asked) -> TwoRuns:
    """The two runs of an address, with the rows that came. Raises UnknownName."""
    keys = (asked.query.get(name, "") for name in ("a", "b"))
    return TwoRuns(*(site.open(asked._replace(parts={"study": key})) for key in keys))


def render_trial(site: Site, asked: Asked) -> str:
    """The page of a trial of one sort: that at `place`, or the first.

    Raises UnknownName, and UsageError for a trial that is not of this sort.
    """
    runs, query = chosen(site, asked), asked.query
    names = tuple(runs.first.names[each.a] for each in runs.models)
    model = runs.models[place_of("model", query.get("model", ""), names)]
    which = WHICH[place_of("sort of trial", query.get("which", ""), WHICH)]
    technique = query.get("technique", "") or runs.scope
    places = runs.shared(model, technique).places(which)
    place = number(query.get("place"), int(places[0]) if places.size else 0)
    if place not in places:
        raise UsageError("No trial of this sort counts in both runs here.")
    before, after = beside(places, place)
    indices = runs.indices(model, place)
    return site.html(
        "compare_trial.html.jinja", asked,
        runs=runs, called=runs.first.names[model.a], which=which, before=before, after=after,
        trial=runs.first.grid.trial(indices[0]), at=int((places < place).sum()) + 1, n=places.size,
        sides=[(s, i, read(s, i)) for s, i in zip((runs.first, runs.second), indices, strict=True)],
        query={k: v for k, v in query.items() if k in ("a", "b", "model", "which", "technique")},
    )  # fmt: skip


PAGES = (
    Page("/compare", render),
    Page("/compare/trial", render_trial),
)
