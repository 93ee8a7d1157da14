"""Every conversation of a study, searched and filtered; and one, with its evidence and the other models."""

from __future__ import annotations

from typing import NamedTuple

from heredity.core.errors import UsageError
from heredity.core.sanitize import label
from heredity.study.labels import drawn_answers
from heredity.view.queries import (
    DOUBTS,
    KINDS,
    STATES,
    Search,
    listed,
    neighbours,
    prompts,
    read,
    read_filters,
    rows_of,
    unasked,
)
from heredity.view.site import Asked, Page, Site


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


class OtherModel(NamedTuple):
    """Another model on the same trial."""

    place: int
    trial: int
    state: str


def render_one(site: Site, asked: Asked) -> str:
    """The page; `raw` in the query shows the whole prompts."""
    study = site.open(asked)
    index = number(asked.parts["index"])
    transcript = read(study, index)
    filters = read_filters(study, dict(asked.query))
    n, m = study.plan.n_per_model, index // study.plan.n_per_model
    indices = {other: index % n + other * n for other in range(len(study.names)) if other != m}
    rows = rows_of(study, list(indices.values())[:50])
    is_raw = bool(asked.query.get("raw")) and transcript is not None
    return site.html(
        "conversation.html.jinja", asked, study,
        transcript=transcript, index=index, trial=study.grid.trial(index), model=m,
        others=[OtherModel(o, i, rows[i].tag) for o, i in indices.items() if i in rows],
        beside=neighbours(study, filters, index), query=filters.query(study),
        raw=prompts(study, transcript.response) if is_raw and transcript is not None else None,
        search=Search(filters.text), place=index % n,
        is_drawn=any(row.index == index for row in drawn_answers(study.folder)),
    )  # fmt: skip


LIST = Page("/s/{study}/conversations", render, tab="2 Conversations", is_exported=True)
ONE = Page("/s/{study}/t/{index}", render_one, is_exported=True)
PAGES = (LIST, ONE)
