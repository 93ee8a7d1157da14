"""Label a study's answers in place: one at a time by doubt, blind or not, with undo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from heredity.core.errors import UsageError
from heredity.core.files import Lock, Rows
from heredity.core.sanitize import Shown, shown
from heredity.stats.ppi import FEWEST
from heredity.study import labels
from heredity.study.labels import Drawn, Label, LabelAnswer
from heredity.study.study import Study
from heredity.view.changes import changes
from heredity.view.pages.conversations import number
from heredity.view.places import OpenStudy
from heredity.view.rates import board_of
from heredity.view.site import Asked, Site
from heredity.view.transcript import Transcript, read

PATH, MENU, TAB = "/s/{study}/label", "", "4 Label"
IS_EXPORTED = False
MOST = 200  # answers of one round, as many as a person labels in some hours
_ANSWERS: tuple[LabelAnswer, ...] = ("yes", "no", "skip")


class ToLabel(NamedTuple):
    """An answer that waits for its label. `place` counts from 1."""

    drawn: Drawn
    place: int
    question: str
    asked_for: str
    asked: Shown
    said: Shown
    found: Transcript | None


def render(site: Site, asked: Asked) -> str:
    """The next answer; `open` in the query shows its model and its verdict."""
    study = site.open(asked)
    board = board_of(study)
    drawn, had = labels.drawn_answers(study.folder)[:MOST], labels.read_labels(study.folder)
    wanted = number(asked.query["index"]) if asked.query.get("index") else None
    left = [row for row in drawn if row.index not in had]
    chosen = next(
        (row for row in (drawn if wanted is not None else left) if wanted in (None, row.index)), None
    )
    return site.html(
        "label.html.jinja", asked, study,
        drawn=drawn, n_had=sum(row.index in had for row in drawn), path=asked.path,
        one=None if chosen is None else _one(study, drawn, chosen),
        changes=[] if board.estimates is None else changes(board.estimates), why_not=board.why_not,
        fewest=FEWEST,
        is_open=bool(asked.query.get("open")), last=labels.last_label(study.folder), answers=_ANSWERS,
    )  # fmt: skip


def _one(study: OpenStudy, drawn: list[Drawn], row: Drawn) -> ToLabel | None:
    found = read(study, row.index)
    if found is None:
        return None
    asked, said = labels.label_texts(study.plan, row, found.response)
    probe = labels.probe_of(study.plan, row.index)
    words = labels.question(probe, row.task)
    wanted = labels.asked_for(probe, row.task)
    return ToLabel(row, drawn.index(row) + 1, words, wanted, shown(asked, 20_000), shown(said, 20_000), found)


def act(site: Site, asked: Asked, form: Mapping[str, str]) -> str:
    """Draw the answers, save a label, take the last one back, or estimate again."""
    study = site.open(asked)
    kind = form.get("do", "")
    labels.check_labelable(study.plan)
    if kind == "estimate":
        Study.open(study.folder).estimate()
        return site.link(asked.path, open=form.get("open", "")) + "#changed"
    with Lock(study.folder):
        if kind == "draw":
            labels.draw_answers(study.folder, study.plan)
        elif kind == "undo":
            labels.remove_last_label(study.folder)
        elif kind in _ANSWERS:
            _save(study, number(form.get("index")), kind)
        else:
            raise UsageError("A label is yes, no or skip.", code="label-unknown")
    return site.link(asked.path, open=form.get("open", ""))


def _save(study: OpenStudy, index: int, said: LabelAnswer) -> None:
    drawn = labels.drawn_answers(study.folder)
    row = next((row for row in drawn if row.index == index), None)
    if row is None:
        raise UsageError(f"Trial {index} is not among the answers that were drawn.", code="trial-not-drawn")
    with Rows(study.folder / labels.LABELS, Label) as rows:
        labels.add_label(rows, row, said)
