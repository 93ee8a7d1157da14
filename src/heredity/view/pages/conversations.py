"""Every conversation of a study, searched and filtered."""

from __future__ import annotations

from heredity.core.errors import UsageError
from heredity.core.sanitize import label
from heredity.view.queries import DOUBTS, KINDS, STATES, Search, listed, read_filters, unasked
from heredity.view.site import Asked, Site

PATH, MENU, TAB = "/s/{study}/conversations", "", "2 Conversations"
IS_EXPORTED = True


def render(site: Site, asked: Asked) -> str:
    """A page of the list."""
    study = site.open(asked)
    filters = read_filters(study, dict(asked.query))
    trials = listed(
        study,
        filters,
        number(asked.query.get("after"), -1),
        number(asked.query["before"]) if asked.query.get("before") else None,
    )
    return site.html(
        "conversations.html.jinja", asked, study,
        listed=trials, filters=filters, query=filters.query(study), path=asked.path,
        search=Search(filters.text), states=STATES, kinds=KINDS, doubts=DOUBTS,
        unasked_kinds=sorted({each.check for each in unasked(study)} | {filters.unasked} - {"", "any"}),
    )  # fmt: skip


def number(text: str | None, default: int = 0) -> int:
    """A number of an address; the default for none. Raises UsageError for another text."""
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        raise UsageError(f"'{label(text)}' is not the number of a trial.")
    return int(text)
