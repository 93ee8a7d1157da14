"""Score answers: a value with n, interval and method for each model, task and number of examples.

A share has Wilson's interval; a mean of chrF or ROUGE-L a percentile bootstrap with a generator seeded 0.
Each model is compared with the first one, item by item. Shares use the exact McNemar test and Tango's
interval; means use a bootstrap over pairs and sign flips. All p-values are adjusted by Holm's method.

Promises: errors are counted and enter no score; an unclear answer scores 0 and is counted. Two models are
compared on the items that both answered.
Leaves to others: asking (run.py), the score of one answer (metrics/).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from heredity import stats
from heredity.core.records import SCHEMA, Estimate, Model, Record, Stop
from heredity.evals.metrics import ItemAnswer
from heredity.evals.metrics import load as metric_of
from heredity.evals.prompting import Form, said
from heredity.evals.tasks import EvalTask, TaskItem
from heredity.stats import means

ALPHA = 0.05
WhyNot = Callable[[Model, EvalTask], str]


class AnswerRow(Record, frozen=True):
    """A row of answers.jsonl: the answer of a model to one item, or an error."""

    model: str
    asked: str  # RenderedItem.key
    task: str
    item: str
    shots: int
    form: Form
    is_base: bool
    engine: str
    numerics: str  # the arithmetic; answers under another one are not mixed with these
    text: str
    logs: tuple[float, ...]  # natural-log probability of each option, if options were scored
    n_prompt_tokens: int
    n_tokens: int
    stop: Stop
    error: str | None = None
    schema: int = SCHEMA


class Cell(NamedTuple):
    """An answer with its item."""

    task: EvalTask
    item: TaskItem
    n_shots: int
    row: AnswerRow


class EvaluatedModel(Record, frozen=True):
    """An evaluated model; `form` is the prompt form, "" if it was asked nothing."""

    id: str
    name: str
    form: str
    engine: str


class TaskCard(Record, frozen=True):
    """A task that was put; `unit` is that of 100 times a score."""

    name: str
    title: str
    edition: str
    digest: str
    metric: str
    metric_title: str
    unit: str
    n_items: int
    floor: float  # what is expected of an answer that knows nothing


class Grade(Record, frozen=True):
    """A model's score in a task. `refused` is the reason if there is no score."""

    model: str
    task: str
    shots: int
    score: Estimate
    n_unclear: int = 0  # of n: nothing of the form asked for was there; they score 0
    n_cut: int = 0  # of n: the answer ran into the token limit
    n_error: int = 0  # beside n
    refused: str = ""


class Difference(Record, frozen=True):
    """b's score minus a's over the items that both answered."""

    a: str
    b: str
    task: str
    shots: int
    difference: Estimate
    p_value: float
    p_holm: float
    test: str
    verdict: str  # of b: better, worse, or not shown


class Grades(Record, frozen=True):
    """All of grades.json."""

    models: tuple[EvaluatedModel, ...]
    tasks: tuple[TaskCard, ...]
    grades: tuple[Grade, ...]
    differences: tuple[Difference, ...]
    limit: int | None = None  # items of each task that were asked at most; None: all of them
    schema: int = SCHEMA


class _Mark(NamedTuple):
    """One answer's score; None for an error."""

    score: float | None
    is_unclear: bool
    is_cut: bool


def grade(
    models: Sequence[Model], cells: Sequence[Cell], wanted: Sequence[EvalTask], why_not: WhyNot
) -> Grades:
    """Everything that the answers come to."""
    by_place: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in cells:
        by_place.setdefault((cell.row.model, cell.task.name, cell.n_shots), []).append(cell)
    shots = list(dict.fromkeys(cell.n_shots for cell in cells))
    grades = [
        _grade(model, task, n, by_place.get((model.id, task.name, n), ()), why_not(model, task))
        for task in wanted
        for n in shots
        for model in models
    ]
    raw = [
        _compared(models[0], other, task, n, by_place)
        for other in models[1:]
        for task in wanted
        for n in shots
    ]
    cards = tuple(_model_card(model, cells) for model in models)
    return Grades(cards, tuple(map(_task_card, wanted)), tuple(grades), _with_holm([d for d in raw if d]))


def _grade(model: Model, task: EvalTask, n_shots: int, cells: Sequence[Cell], refused: str) -> Grade:
    marks = [_mark(cell) for cell in cells]
    scores = [mark.score for mark in marks if mark.score is not None]
    decided = [mark for mark in marks if mark.score is not None]
    return Grade(
        model.id, task.name, n_shots, _estimate(task, scores), sum(m.is_unclear for m in decided),
        sum(m.is_cut for m in decided), len(marks) - len(decided), refused,
    )  # fmt: skip


def _estimate(task: EvalTask, scores: Sequence[float]) -> Estimate:
    if metric_of(task.metric).IS_SHARE:
        return stats.wilson(int(sum(scores)), len(scores))
    return means.bootstrap_mean(scores, np.random.default_rng(0))


def _mark(cell: Cell) -> _Mark:
    row = cell.row
    if row.error is not None:
        return _Mark(None, False, False)
    text = said(row.text, row.form)
    found = metric_of(cell.task.metric).score(cell.item, ItemAnswer(text, row.logs))
    # A base model continues after its answer: it was cut only if its first line has no end.
    is_cut = row.stop == "length" and (row.form == "chat" or "\n" not in row.text.lstrip())
    return _Mark(found or 0.0, found is None, is_cut)


def _compared(
    first: Model, other: Model, task: EvalTask, n_shots: int, by_place: dict[tuple[str, str, int], list[Cell]]
) -> Difference | None:
    a, b = (
        {cell.item.id: mark.score for cell in by_place.get((model.id, task.name, n_shots), ())
         if (mark := _mark(cell)).score is not None}
        for model in (first, other)
    )  # fmt: skip
    both = [ident for ident in a if ident in b]
    if not both:
        return None
    pairs = [a[ident] for ident in both], [b[ident] for ident in both]
    if metric_of(task.metric).IS_SHARE:
        found = stats.compare([x == 1 for x in pairs[0]], [x == 1 for x in pairs[1]])
        compared = means.MeanDifference(found.difference, found.p_value, found.test)
    else:
        compared = means.compare_means(*pairs, np.random.default_rng(0))
    d, p, test = compared
    return Difference(first.id, other.id, task.name, n_shots, d, p, p, test, "not shown")


def _with_holm(found: Sequence[Difference]) -> tuple[Difference, ...]:
    adjusted = stats.holm([one.p_value for one in found]) if found else []
    return tuple(
        msgspec.structs.replace(one, p_holm=p, verdict=_verdict(one, p))
        for one, p in zip(found, adjusted, strict=True)
    )


def _verdict(one: Difference, p: float) -> str:
    if p >= ALPHA:
        return "not shown"
    return "better" if (one.difference.value or 0.0) > 0 else "worse"


def _model_card(model: Model, cells: Sequence[Cell]) -> EvaluatedModel:
    own = [cell.row for cell in cells if cell.row.model == model.id]
    return EvaluatedModel(model.id, model.name, own[-1].form if own else "", own[-1].engine if own else "")


def _task_card(task: EvalTask) -> TaskCard:
    metric = metric_of(task.metric)
    floor = sum(metric.floor(item) for item in task.items) / len(task.items)
    return TaskCard(
        task.name, task.title, task.edition, task.digest, task.metric, metric.TITLE, metric.UNIT,
        len(task.items), floor,
    )  # fmt: skip
