"""Label a study's answers in place, with undo: one at a time by doubt, or in pairs, which stay blind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, get_args

from heredity.core.errors import UsageError
from heredity.core.files import Lock, Rows
from heredity.core.records import Estimate
from heredity.core.sanitize import Shown, plural, shown
from heredity.stats.judge_error import FEWEST
from heredity.study import labels, wording
from heredity.study.estimates import ALL, SCOPES, Estimates, Rate
from heredity.study.findings import pairs_read
from heredity.study.labels import Drawn, Label, LabelAnswer
from heredity.study.study import Study
from heredity.study.wording import interval, names, percent, scope_name, title, uncorrected_words
from heredity.view.pages.conversations import number
from heredity.view.places import OpenStudy
from heredity.view.queries import Transcript, board_of, read
from heredity.view.site import Asked, Page, Site


class RateChange(NamedTuple):
    """A rate as the verdicts give it, and as corrected without and with labels. with_labels: "" for none."""

    model: str
    called: str
    judged: str
    without_labels: str
    with_labels: str


def changes(estimates: Estimates) -> list[RateChange]:
    """The rates of each scope, and those of a technique that labels correct; empty without labels."""
    return list(_changes(estimates)) if any(rate.by_labels is not None for rate in estimates.rates) else []


def _changes(estimates: Estimates) -> Iterator[RateChange]:
    called = names(estimates.models)
    for rate in estimates.rates:
        is_scope = rate.technique in SCOPES[rate.measure]
        if rate.attack != ALL or rate.estimate.value is None or not (is_scope or _labelled(rate)):
            continue
        of = scope_name(estimates, rate.technique) if is_scope else title(rate.technique)
        if not is_scope and rate.measure == "over_refusal":
            of += ", harmless twins"
        judged = f"{percent(rate.estimate.value)} ({rate.n_counted} of {rate.estimate.n})"
        yield RateChange(called[rate.model], of, judged, _without(rate), _with(rate))


def _labelled(rate: Rate) -> Estimate | None:
    """The rate by labels, if it has a value."""
    return rate.by_labels if rate.by_labels is not None and rate.by_labels.value is not None else None


def _without(rate: Rate) -> str:
    if rate.corrected is None or rate.corrected.value is None:
        return uncorrected_words(rate.corrected)
    return f"{percent(rate.corrected.value)} ({interval(rate.corrected)}), by labels of other answers"


def _with(rate: Rate) -> str:
    """`39 % (18 to 65 %), by 18 labels`."""
    if (labelled := _labelled(rate)) is not None:
        return f"{percent(labelled.value)} ({interval(labelled)}), by {plural(labelled.n, 'label')}"
    return "" if rate.by_labels is None else f"too few labels here, {rate.by_labels.n}"


MAX_ANSWERS = 200  # answers of one round, as many as a person labels in some hours
N_PAIRS = 100  # pairs of one round
_TASKS: dict[pairs_read.PairsTask, str] = {
    "refusal": "who refuses", "harm": "who helps with harm", "twin": "who refuses benign twins",
}  # fmt: skip
_ANSWERS: tuple[LabelAnswer, ...] = ("yes", "no", "skip")


class ToLabel(NamedTuple):
    """An answer that waits for its label. `place` counts from 1."""

    drawn: Drawn
    place: int
    question: str
    asked_for: str
    asked: Shown
    answer: Shown
    transcript: Transcript | None


def render(site: Site, asked: Asked) -> str:
    """The next answer, or the next pair of the models `parent` and `child` in the query, for its `task`.

    `open` shows the model and the verdict of a single answer.
    """
    study = site.open(asked)
    board, edge, groups = board_of(study), _edge(study, asked.query), _groups(study, asked.query)
    left = labels.unlabelled(study.folder, groups)
    wanted = number(asked.query["index"]) if asked.query.get("index") else left[0][0].index if left else None
    chosen = next((group for group in groups if wanted in [row.index for row in group]), [])
    shown_answers = [_one(study, row, groups.index(chosen) + 1) for row in chosen]
    row = pairs_read.read_differences(board.estimates).get(edge) if edge and board.estimates else None
    called = dict(zip((model.id for model in study.plan.models), study.names, strict=True))
    return site.html(
        "label.html.jinja", asked, study,
        n_drawn=len(groups), n_had=len(groups) - len(left), path=asked.path,
        shown=[one for one in shown_answers if one is not None],
        now=next((row for group in left for row in group if row in chosen), chosen[0] if chosen else None),
        changes=[] if board.estimates is None else changes(board.estimates), why_not=board.why_not,
        fewest=FEWEST, edge=edge, tasks=_TASKS, usual=pairs_read.task_of(study.plan),
        called=called, as_read=row and wording.difference_words(row.estimate),
        is_open=bool(asked.query.get("open")), last=labels.last_label(study.folder), answers=_ANSWERS,
    )  # fmt: skip


def _edge(study: OpenStudy, query: Mapping[str, str]) -> pairs_read.PairsKey | None:
    """The ids of parent and child, and the question, in a query or a form; None without both ids."""
    parent, child, task = (query.get(key, "") for key in ("parent", "child", "task"))
    of = next(
        (each for each in get_args(pairs_read.PairsTask) if each == task), pairs_read.task_of(study.plan)
    )
    return (parent, child, of) if parent and child else None


def _groups(study: OpenStudy, query: Mapping[str, str]) -> list[list[Drawn]]:
    """The answers that were drawn: one by one, or the two of each pair."""
    if edge := _edge(study, query):
        return [
            pairs_read.answers_of(study.plan, row)
            for row in pairs_read.drawn_pairs(study.folder).get(edge, [])
        ]
    return [[row] for row in labels.drawn_answers(study.folder)[:MAX_ANSWERS]]


def _one(study: OpenStudy, row: Drawn, place: int) -> ToLabel | None:
    transcript = read(study, row.index)
    if transcript is None:
        return None
    asked, answer = labels.label_texts(study.plan, row, transcript.response)
    probe = labels.probe_of(study.plan, row.index)
    words = labels.question(probe, row.task)
    wanted = labels.asked_for(probe, row.task)
    return ToLabel(row, place, words, wanted, shown(asked, 20_000), shown(answer, 20_000), transcript)


def act(site: Site, asked: Asked, form: Mapping[str, str]) -> str:
    """Draw the answers, save a label, take the last one back, or estimate again."""
    study = site.open(asked)
    kind, edge = form.get("do", ""), _edge(study, form)
    parent, child, task = edge or ("", "", "")
    address = site.link(asked.path, open=form.get("open", ""), parent=parent, child=child, task=task)
    labels.check_labelable(study.plan)
    if kind == "estimate":
        Study.open(study.folder).estimate()
        return address + "#changed"
    with Lock(study.folder):
        if kind == "draw" and edge:
            pairs_read.draw_pairs(study.folder, study.plan, parent, child, N_PAIRS, edge[2])
        elif kind == "draw":
            labels.draw_answers(study.folder, study.plan)
        elif kind == "undo":
            labels.remove_last_label(study.folder)
        elif kind in _ANSWERS:
            index = number(form.get("index"))
            drawn = (row for group in _groups(study, form) for row in group)
            row = next((row for row in drawn if row.index == index), None)
            if row is None:
                raise UsageError(f"Trial {index} is not among the answers that were drawn.")
            with Rows(study.folder / labels.LABELS, Label) as rows:
                labels.add_label(rows, row, kind)
        else:
            raise UsageError("A label is yes, no or skip.", code="unknown-name")
    return address


PAGES = (Page("/s/{study}/label", render, tab="4 Label", act=act),)
