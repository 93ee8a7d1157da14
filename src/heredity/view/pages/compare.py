"""Two runs: what differs between their plans, and each model that both asked."""

from __future__ import annotations

from heredity.view.pairs import WHICH, TwoRuns
from heredity.view.site import Asked, Site

PATH, MENU, TAB = "/compare", "", ""
IS_EXPORTED = False


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
