"""One conversation: every turn and call, with the evidence marked, and the other models on the same trial."""

from __future__ import annotations

from typing import NamedTuple

from heredity.study.labels import drawn_answers
from heredity.view.pages.conversations import number
from heredity.view.queries import Search, neighbours, prompts, read, read_filters, rows_of
from heredity.view.site import Asked, Site

PATH, MENU, TAB = "/s/{study}/t/{index}", "", ""
IS_EXPORTED = True


class OtherModel(NamedTuple):
    """Another model on the same trial."""

    place: int
    trial: int
    state: str


def render(site: Site, asked: Asked) -> str:
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
