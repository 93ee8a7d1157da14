"""Evaluate models on tasks by prompting: ask, store the answers, score them.

A folder holds `answers.jsonl`, which only grows, and `grades.json`, which the last command wrote. An answer
is keyed by its model and its full prompt. Another model, task or number of examples in the same folder asks
only the missing items. An item with a corrected reference is scored again, not asked again.

Promises: decoding is greedy; nothing is asked twice; a killed run resumes by the same command. A model with
all answers stored is not loaded. A form that a model does not support is refused before it is loaded, and a
failed item is an answer with an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import msgspec

from heredity import engines, stats
from heredity.core.errors import ContextOverflow, EngineFailure, NotComparable, UsageError
from heredity.core.files import RESULTS, Lock, Rows, write_atomic
from heredity.core.progress import Progress, Watch
from heredity.core.records import (
    SCHEMA,
    Decoding,
    Estimate,
    Message,
    Model,
    Record,
    Request,
    Stop,
    digest,
    encode,
    why_not_generative,
)
from heredity.core.sanitize import clean_text
from heredity.engines import Engine, capabilities
from heredity.engines.remote.services import BYTES_PER_TOKEN, Usage
from heredity.evals import tasks as task_files
from heredity.evals.metrics import LETTERS, ItemAnswer
from heredity.evals.metrics import load as metric_of
from heredity.evals.tasks import EvalTask, TaskItem
from heredity.lineage import graph
from heredity.lineage.store import Store, load_engine, speed_seconds, speeds_of
from heredity.lineage.types import EngineLoader, Grown
from heredity.stats.means import compare_scores, estimate_scores

if TYPE_CHECKING:
    from heredity.engines.dual import DualEngine

# --- the forms in which items are asked ---------------------------------------------------------------
# A metric names the form that it needs (`ASKS`):
#
#     reply   the model answers in its own words, greedily
#     score   the log-probability of each option after the same prompt; an encoder scores options, too
#     match   the similarity of each option, between an image and a caption, by a dual encoder

Form = Literal["chat", "plain"]


class RenderedItem(Record, frozen=True):
    """A rendered item. `key` is a digest over all of it; the model is not part of it."""

    key: str
    request: Request
    continuations: tuple[str, ...]  # the options to score: each continues the prompt, or is a text of its own


def put(task: EvalTask, item: TaskItem, n_shots: int, form: Form) -> RenderedItem:
    """The item after its first `n_shots` examples, to be decoded greedily."""
    shots = [shot for shot in task.shots if shot.group == item.group][:n_shots]
    decoding = Decoding(max_tokens=task.max_tokens)
    if form == "plain":
        blocks = [
            _filled(task.plain, task, shot) + _gap(task.plain) + _answer(task, shot) + "\n\n"
            for shot in shots
        ]
        text = "".join(blocks) + _filled(task.plain, task, item)
        request = Request(0, (), decoding, prefill=text)
    else:
        examples = []
        for shot in shots:
            answer = _filled(task.begin, task, shot) + _gap(task.begin) + _answer(task, shot)
            examples += [Message("user", _filled(task.prompt, task, shot)), Message("assistant", answer)]
        asked, begin = Message("user", _filled(task.prompt, task, item)), _filled(task.begin, task, item)
        request = Request(0, (*examples, asked), decoding, prefill=begin, n_shared=len(examples))
    way, gap = metric_of(task.metric).ASKS, _gap(task.plain if form == "plain" else task.begin)
    gap = "" if way == "match" else gap
    continuations = () if way == "reply" else tuple(gap + option for option in item.options)
    return RenderedItem(digest([request, continuations]), request, continuations)


def answer_text(text: str, form: Form) -> str:
    """The answer in a model's output; in a plain continuation, the first line with a word."""
    if form == "chat":
        return text.strip()
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _gap(before: str) -> str:
    """The space between a template and the answer after it; "" if a turn or a line begins there."""
    return "" if not before or before.endswith("\n") else " "


def _answer(task: EvalTask, item: TaskItem) -> str:
    """The right answer in the form that the metric asks for."""
    if metric_of(task.metric).SHOWS_LETTERS:
        return LETTERS[item.options.index(item.references[0])]
    return item.references[0]


def _filled(template: str, task: EvalTask, item: TaskItem) -> str:
    """The template with its slots filled, in one pass: braces in an item stay text."""
    values = {
        **task.groups.get(item.group, {}),
        "input": item.input,
        "options": "\n".join(
            f"{letter}. {text}" for letter, text in zip(LETTERS, item.options, strict=False)
        ),
    }
    parts = template.split("{")
    filled = parts[0]
    for part in parts[1:]:
        name, closed, rest = part.partition("}")
        filled += values[name] + rest if closed and name in values else "{" + part
    return filled


class ItemResponse(NamedTuple):
    """The response to the item at `place`."""

    place: int
    text: str = ""
    logs: tuple[float, ...] = ()  # natural-log probability of each option, over all of its tokens
    n_prompt_tokens: int = 0
    n_tokens: int = 0
    stop: Stop = "end"
    error: str | None = None


# One way of asking each. `why_not` is why a model cannot be asked so, "" if it can. `answers` yields an
# answer to each item, in any order, and raises EngineFailure if the engine fails as a whole.
class _Reply:
    def why_not(self, model: Model) -> str:
        return why_not_generative(model)

    def answers(self, engine: Engine, asked: Sequence[RenderedItem]) -> Iterator[ItemResponse]:
        requests = (msgspec.structs.replace(one.request, key=i) for i, one in enumerate(asked))
        for reply in engine.reply(requests):
            error = None if reply.error is None else clean_text(reply.error)
            yield ItemResponse(
                reply.key, clean_text(reply.text), (), reply.n_prompt_tokens, reply.n_answer_tokens,
                reply.stop, error,
            )  # fmt: skip


class _Score:
    def why_not(self, model: Model) -> str:
        engine = engines.choose(model)
        if engine in ("torch", "encoder", engines.GENERAL):
            return ""
        if why := why_not_generative(model):
            return why
        return f"the engine '{engine}' tells no log-probabilities of given texts; torch does"

    def answers(self, engine: Engine, asked: Sequence[RenderedItem]) -> Iterator[ItemResponse]:
        if (scorer := capabilities(engine).scorer) is None:
            raise UsageError(f"'{engine.name}' tells no log-probabilities of given texts; torch does.")
        for place, one in enumerate(asked):
            try:
                logs = [each.logs for each in scorer.score(one.request, one.continuations)]
            except ContextOverflow as error:
                yield ItemResponse(place, stop="error", error=f"context overflow: {error}")
                continue
            yield ItemResponse(place, logs=tuple(map(sum, logs)), n_tokens=sum(map(len, logs)))


class _Match:
    def why_not(self, model: Model) -> str:
        return "" if engines.choose(model) == "dual" else "it matches no pictures with texts"

    def answers(self, engine: Engine, asked: Sequence[RenderedItem]) -> Iterator[ItemResponse]:
        dual = cast("DualEngine", engine)  # see `why_not`
        for place, one in enumerate(asked):
            try:
                yield ItemResponse(place, logs=tuple(_similar(dual, one.request.prefill, one.continuations)))
            except UsageError as error:
                yield ItemResponse(place, stop="error", error=str(error))


def _similar(engine: DualEngine, shown: str, options: Sequence[str]) -> list[float]:
    """Similarities of an image to each caption, or of a caption to each image."""
    if (picture := task_files.bytes_of(shown)) is not None:
        return engine.match([picture], options)[0]
    pictures = [read for option in options if (read := task_files.bytes_of(option)) is not None]
    return [row[0] for row in engine.match(pictures, [shown])]


WAYS: dict[str, _Reply | _Score | _Match] = {"reply": _Reply(), "score": _Score(), "match": _Match()}


# --- scores -------------------------------------------------------------------------------------------
# Errors are counted and enter no score; an unclear answer scores 0 and is counted. A model is compared with
# the first one, on the items that both answered. All p-values are adjusted by Holm's method.

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
    differences = [each for each in raw if each is not None]
    adjusted = stats.holm([each.p_value for each in differences]) if differences else []
    compared = tuple(
        msgspec.structs.replace(each, p_holm=p, verdict=each.verdict if p < ALPHA else "not shown")
        for each, p in zip(differences, adjusted, strict=True)
    )
    last = {cell.row.model: cell.row for cell in cells}
    cards = tuple(
        EvaluatedModel(m.id, m.name, last[m.id].form, last[m.id].engine)
        if m.id in last
        else EvaluatedModel(m.id, m.name, "", "")
        for m in models
    )
    return Grades(cards, tuple(map(_task_card, wanted)), tuple(grades), compared)


def _grade(model: Model, task: EvalTask, n_shots: int, cells: Sequence[Cell], refused: str) -> Grade:
    marks = [_mark(cell) for cell in cells]
    scores = [mark.score for mark in marks if mark.score is not None]
    decided = [mark for mark in marks if mark.score is not None]
    estimate = estimate_scores(scores, are_shares=metric_of(task.metric).IS_SHARE)
    return Grade(
        model.id, task.name, n_shots, estimate, sum(m.is_unclear for m in decided),
        sum(m.is_cut for m in decided), len(marks) - len(decided), refused,
    )  # fmt: skip


def _mark(cell: Cell) -> _Mark:
    row = cell.row
    if row.error is not None:
        return _Mark(None, False, False)
    text = answer_text(row.text, row.form)
    score = metric_of(cell.task.metric).score(cell.item, ItemAnswer(text, row.logs))
    # A base model continues after its answer: it was cut only if its first line has no end.
    is_cut = row.stop == "length" and (row.form == "chat" or "\n" not in row.text.lstrip())
    return _Mark(score or 0.0, score is None, is_cut)


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
    d, p, test = compare_scores(*pairs, are_shares=metric_of(task.metric).IS_SHARE)
    direction = "better" if (d.value or 0.0) > 0 else "worse"
    return Difference(first.id, other.id, task.name, n_shots, d, p, p, test, direction)


def _task_card(task: EvalTask) -> TaskCard:
    metric = metric_of(task.metric)
    floor = sum(metric.floor(item) for item in task.items) / len(task.items)
    return TaskCard(
        task.name, task.title, task.edition, task.digest, task.metric, metric.TITLE, metric.UNIT,
        len(task.items), floor,
    )  # fmt: skip


ANSWERS, GRADES = "answers.jsonl", "grades.json"


class _Question(NamedTuple):
    """An item of a task after `n_shots` examples, rendered."""

    task: EvalTask
    item: TaskItem
    n_shots: int
    asked: RenderedItem


class ModelForecast(NamedTuple):
    """The items that a model has still to answer, and their time and tokens at most.

    seconds: at best and at worst. used: the tokens that a service would count, about.
    """

    grown: Grown
    n_items: int
    n_open: int
    seconds: tuple[float, float]
    used: Usage


class Evaluation:
    """An evaluation of models on tasks, in a folder.

    models    names, targets or Grown values; from `store` (None: the default one)
    tasks     names or .toml files; see tasks.load. None: all; image tasks only if a model matches images
    shots     how many examples come first; each number is a column of its own
    is_plain  send items as plain texts, as to a base model, also to a model with a chat template
    limit     at most this many items of each task, always the same ones
    out       the folder; None: evals under the current one

    Raises UsageError for an unknown name or a setting that does not fit.
    """

    def __init__(
        self,
        models: Sequence[str | Grown],
        tasks: Sequence[str] = (),
        shots: Sequence[int] = (0,),
        *,
        is_plain: bool = False,
        limit: int | None = None,
        store: Store | None = None,
        out: Path | str | None = None,
        engine_loader: EngineLoader | None = None,
    ) -> None:
        self._store = store if store is not None else Store()
        self._loader, self._is_plain, self._limit = engine_loader, is_plain, limit
        grown = [one if isinstance(one, Grown) else self._store.get(one) for one in models]
        self._grown = list({one.record.id: one for one in grown}.values())
        has_pictures = any(engines.choose(one.record) == "dual" for one in self._grown)
        if limit is not None and limit < 1:
            raise UsageError(f"A limit of {limit} items leaves nothing to ask.")
        loaded = task_files.load(tasks, has_pictures)
        self._tasks = [
            each if limit is None else msgspec.structs.replace(each, items=_some(each.items, limit))
            for each in loaded
        ]
        self._shots = tuple(dict.fromkeys(shots))
        self.folder = Path(out) if out is not None else RESULTS / "evals"
        _check(self._grown, self._tasks, self._shots)

    def run(self, watch: Watch | None = None, *, retry_errors: bool = False) -> Grades:
        """Answer the remaining items and score all. `watch` is called for each answer.

        retry_errors: ask failed items again; the later answer counts. Raises EngineFailure if a
        model stops answering; stored answers stay.
        """
        reported = self._store.report.to(watch)
        with reported, Lock(self.folder), Rows(self.folder / ANSWERS, AnswerRow) as rows:
            known = {(row.model, row.asked): row for row in rows}
            for grown in self._grown:
                self._ask(grown, known, rows, watch, retry_errors)
            grades = grade(
                [one.record for one in self._grown], self._cells(known), self._tasks, self._why_not
            )
            grades = msgspec.structs.replace(grades, limit=self._limit)
            write_atomic(self.folder / GRADES, encode(grades) + b"\n")
        return grades

    def forecast(self, *, retry_errors: bool = False) -> list[ModelForecast]:
        """The items that each model has still to answer. Nothing is loaded, asked or written."""
        known = {(row.model, row.asked): row for row in Rows(self.folder / ANSWERS, AnswerRow)}
        speeds = speeds_of(self._grown, self._store)
        forecasts = []
        for grown in self._grown:
            model = grown.record
            earlier = [row for row in known.values() if row.model == model.id]
            form = self._form(earlier[-1].is_base) if earlier else "chat"
            questions, open_ = self._left(model, form, known, retry_errors)
            n_tokens = [_most_tokens(q) for q in open_]
            times = [speed_seconds(n, speeds[model.id]) for n in n_tokens if model.format != "scripted"]
            n_prompt = sum(len(encode(q.asked.request)) for q in open_) // BYTES_PER_TOKEN
            seconds = sum(low for low, _ in times), sum(high for _, high in times)
            used = Usage(n_prompt, sum(n_tokens), is_estimated=True)
            forecasts.append(ModelForecast(grown, len(questions), len(open_), seconds, used))
        return forecasts

    # --- asking ---

    def _ask(
        self,
        grown: Grown,
        known: dict[tuple[str, str], AnswerRow],
        rows: Rows[AnswerRow],
        watch: Watch | None,
        again: bool,
    ) -> None:
        """Ask one model the items that it has not answered yet."""
        model = grown.record
        earlier = [row for row in known.values() if row.model == model.id]

        def show(n_done: int) -> None:
            if watch is not None:
                watch(Progress("ask", model.name, n_done, len(questions), unit="answers"))

        if earlier:
            questions, open_ = self._left(model, self._form(earlier[-1].is_base), known, again)
            if not open_:
                show(len(questions))
                return
        # An encoder gets only tasks that need no generated text.
        load = self._loader or (lambda one: load_engine(one, self._store, needs_text=False))
        with closing(load(grown)) as engine:
            is_base = self._is_base(engine, model)
            if other := {row.numerics for row in earlier} - {engine.numerics}:
                raise NotComparable(
                    f"Model '{model.name}' answered in {self.folder} as '{other.pop()}' computes, this engine"
                    f" is '{engine.numerics}': its answers would not belong together. Ask on the machine and"
                    " with the versions of before, or into another folder (--out)."
                )
            questions, open_ = self._left(model, form := self._form(is_base), known, again)
            show(n_there := len(questions) - len(open_))
            for n, row in enumerate(self._answers(engine, model, open_, form, is_base), n_there + 1):
                rows.append(row)
                rows.write()  # to the system: a killed process loses none
                known[model.id, row.asked] = row
                show(n)

    def _is_base(self, engine: Engine, model: Model) -> bool:
        is_base = capabilities(engine).is_base
        if self._is_plain and is_base is None:
            raise UsageError(f"'{engine.name}' takes conversations only. Leave out --no-chat-template.")
        return is_base is not None and (
            is_base or graph.is_base(model, {each.id: each for each in self._store.models()})
        )

    def _left(
        self, model: Model, form: Form, known: Mapping[tuple[str, str], AnswerRow], again: bool
    ) -> tuple[list[_Question], list[_Question]]:
        """All questions to a model, and those that it has still to answer."""
        questions = [
            _Question(task, item, n, put(task, item, n, form))
            for task in self._tasks
            if not self._why_not(model, task)
            for n in self._shots
            for item in task.items
        ]
        rows = ((each, known.get((model.id, each.asked.key))) for each in questions)
        return questions, [q for q, row in rows if row is None or (again and row.error is not None)]

    def _answers(
        self, engine: Engine, model: Model, open_: Sequence[_Question], form: Form, is_base: bool
    ) -> Iterator[AnswerRow]:
        """By way and number of examples, so that what shares a prefix is asked together."""
        for name, way in WAYS.items():
            some = [q for q in open_ if name == metric_of(q.task.metric).ASKS]
            try:
                for answer in way.answers(engine, [q.asked for q in some]) if some else ():
                    yield AnswerRow(
                        model.id, some[answer.place].asked.key, some[answer.place].task.name,
                        some[answer.place].item.id, some[answer.place].n_shots, form, is_base, engine.name,
                        engine.numerics, answer.text, answer.logs, answer.n_prompt_tokens, answer.n_tokens,
                        answer.stop, answer.error,
                    )  # fmt: skip
            except EngineFailure as error:
                raise type(error)(
                    f"Model '{model.name}' stopped answering: {error}. "
                    f"Its answers so far are kept in {self.folder}; the same command resumes there.",
                    code=error.code,
                ) from error

    def _form(self, is_base: bool) -> Form:
        return "plain" if is_base or self._is_plain else "chat"

    # --- what is asked ---

    def _why_not(self, model: Model, task: EvalTask) -> str:
        return WAYS[metric_of(task.metric).ASKS].why_not(model)

    def _cells(self, known: dict[tuple[str, str], AnswerRow]) -> list[Cell]:
        """Every answer of the requested tasks, with its item."""
        cells: list[Cell] = []
        for grown in self._grown:
            model = grown.record
            earlier = [row for row in known.values() if row.model == model.id]
            if earlier:
                questions, _ = self._left(model, self._form(earlier[-1].is_base), known, again=False)
                cells += [Cell(q.task, q.item, q.n_shots, known[model.id, q.asked.key]) for q in questions]
        return cells


def _most_tokens(question: _Question) -> int:
    """The most tokens that an answer takes; of scored options, about as many as their texts have."""
    if metric_of(question.task.metric).ASKS == "reply":
        return question.task.max_tokens
    return max(1, sum(len(each.encode()) for each in question.asked.continuations) // BYTES_PER_TOKEN)


def _some(items: Sequence[TaskItem], n: int) -> tuple[TaskItem, ...]:
    """n of the items, as if drawn and always the same; every second one might be all of one label."""
    drawn = {item.id for item in sorted(items, key=lambda item: digest(item.id))[:n]}
    return tuple(item for item in items if item.id in drawn)


def _check(models: Sequence[Grown], wanted: Sequence[EvalTask], shots: Sequence[int]) -> None:
    """Raise UsageError, before anything is loaded, for what cannot be asked of any model."""
    if not models:
        raise UsageError("Name a model to put the tasks to. List them: heredity models")
    if not shots or min(shots) < 0:
        raise UsageError("--shots are numbers of examples, from 0 on, e.g. 0,3.")
    for task in wanted:
        if max(shots) > task.n_shots:
            raise UsageError(
                f"The task '{task.name}' has too few examples: {task.n_shots}, not {max(shots)}."
            )
    for grown in models:
        whys = [WAYS[metric_of(task.metric).ASKS].why_not(grown.record) for task in wanted]
        if all(whys):
            raise UsageError(f"'{grown.record.name}' can be put none of these tasks: {whys[0]}.")
