"""Evaluate models on tasks by prompting: ask, store the answers, score them.

A folder holds `answers.jsonl`, which only grows, and `grades.json`, which the last command wrote. An answer
is keyed by its model and its full prompt. Another model, task or number of examples in the same folder asks
only the missing items. An item with a corrected reference is scored again, not asked again.

Promises: decoding is greedy; nothing is asked twice; a killed run resumes by the same command. A model with
all answers stored is not loaded.
Leaves to others: the prompts (prompting.py), the metrics (metrics/), and the statistics
(scoring.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from heredity import engines
from heredity.core.errors import EngineFailure, NotComparable, UsageError
from heredity.core.files import RESULTS, Lock, Rows, write_atomic
from heredity.core.progress import Progress, Watch
from heredity.core.records import Model, digest, encode
from heredity.engines.protocols import Completer, Engine
from heredity.engines.remote.budget import BYTES_PER_TOKEN, Usage
from heredity.evals import scoring, tasks
from heredity.evals.metrics import load as metric_of
from heredity.evals.prompting import WAYS, Form, RenderedItem, put
from heredity.evals.scoring import AnswerRow, Cell, Grades
from heredity.evals.tasks import EvalTask, TaskItem
from heredity.lineage import graph
from heredity.lineage.speeds import ModelSpeed, speed_seconds, speeds_of
from heredity.lineage.store import Store, load_engine
from heredity.lineage.types import EngineLoader, Grown

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
        self._tasks, self._shots = _loaded(tasks, limit, has_pictures), tuple(dict.fromkeys(shots))
        self.folder = Path(out) if out is not None else RESULTS / "evals"
        _check(self._grown, self._tasks, self._shots)

    def run(self, watch: Watch | None = None, *, retry_errors: bool = False) -> Grades:
        """Ask what is not answered, and grade. `watch` hears of every answer.

        retry_errors: ask failed items again; the later answer counts. Raises EngineFailure if a
        model stops answering; stored answers stay.
        """
        reported = self._store.report.to(watch)
        with reported, Lock(self.folder), Rows(self.folder / ANSWERS, AnswerRow) as rows:
            known = {(row.model, row.asked): row for row in rows}
            for grown in self._grown:
                self._ask(grown, known, rows, watch, retry_errors)
            grades = scoring.grade(
                [one.record for one in self._grown], self._cells(known), self._tasks, self._why_not
            )
            grades = msgspec.structs.replace(grades, limit=self._limit)
            write_atomic(self.folder / GRADES, encode(grades) + b"\n")
        return grades

    def forecast(self, *, retry_errors: bool = False) -> list[ModelForecast]:
        """The items that each model has still to answer. Nothing is loaded, asked or written."""
        known = {(row.model, row.asked): row for row in Rows(self.folder / ANSWERS, AnswerRow)}
        speeds = speeds_of(self._grown, self._store)
        return [self._forecast(each, known, speeds[each.record.id], retry_errors) for each in self._grown]

    def _forecast(
        self, grown: Grown, known: dict[tuple[str, str], AnswerRow], speed: ModelSpeed, again: bool
    ) -> ModelForecast:
        model = grown.record
        earlier = [row for row in known.values() if row.model == model.id]
        questions = self._questions(model, self._form(earlier[-1].is_base) if earlier else "chat")
        open_ = [q for q in questions if _is_open(known.get((model.id, q.asked.key)), again)]
        n_tokens = [_most_tokens(q) for q in open_]
        times = [speed_seconds(n, speed) for n in n_tokens if model.format != "scripted"]
        n_prompt = sum(len(encode(q.asked.request)) for q in open_) // BYTES_PER_TOKEN
        seconds = sum(low for low, _ in times), sum(high for _, high in times)
        used = Usage(n_prompt, sum(n_tokens), is_estimated=True)
        return ModelForecast(grown, len(questions), len(open_), seconds, used)

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
        form = self._form(earlier[-1].is_base) if earlier else None
        questions = self._questions(model, form) if form else []
        open_ = [q for q in questions if _is_open(known.get((model.id, q.asked.key)), again)]
        if form and not open_:
            if watch is not None:
                watch(Progress("ask", model.name, len(questions), len(questions), unit="answers"))
            return
        with self._engine(grown) as engine:
            is_base = self._is_base(engine, model)
            _refuse_other_arithmetic(self.folder, model, engine, earlier)
            form = self._form(is_base)
            questions = self._questions(model, form)
            open_ = [q for q in questions if _is_open(known.get((model.id, q.asked.key)), again)]
            n_there = len(questions) - len(open_)
            if watch is not None:
                watch(Progress("ask", model.name, n_there, len(questions), unit="answers"))
            for row in self._answers(engine, model, open_, form, is_base):
                rows.append(row)
                rows.write()  # to the system: a killed process loses none
                known[model.id, row.asked] = row
                n_there += 1
                if watch is not None:
                    watch(Progress("ask", model.name, n_there, len(questions), unit="answers"))

    def _answers(
        self, engine: Engine, model: Model, open_: Sequence[_Question], form: Form, is_base: bool
    ) -> Iterator[AnswerRow]:
        """By way and number of examples, so that what shares a prefix is asked together."""
        for name, way in WAYS.items():
            some = [q for q in open_ if name == metric_of(q.task.metric).ASKS]
            try:
                for found in way.answers(engine, [q.asked for q in some]) if some else ():
                    yield AnswerRow(
                        model.id, some[found.place].asked.key, some[found.place].task.name,
                        some[found.place].item.id, some[found.place].n_shots, form, is_base, engine.name,
                        engine.numerics, found.text, found.logs, found.n_prompt_tokens, found.n_tokens,
                        found.stop, found.error,
                    )  # fmt: skip
            except EngineFailure as error:
                raise type(error)(
                    f"Model '{model.name}' stopped answering: {error}. "
                    f"Its answers so far are kept in {self.folder}; the same command resumes there.",
                    code=error.code,
                ) from error

    @contextmanager
    def _engine(self, grown: Grown) -> Iterator[Engine]:
        # An encoder gets only tasks that need no generated text.
        load = self._loader or (lambda one: load_engine(one, self._store, needs_text=False))
        engine = load(grown)
        try:
            yield engine
        finally:
            engine.close()

    def _is_base(self, engine: Engine, model: Model) -> bool:
        """Whether the model continues a text and has no chat template."""
        if self._is_plain and not isinstance(engine, Completer):
            raise UsageError(
                f"'{engine.name}' takes conversations only. Leave out --no-chat-template.",
                code="takes-conversations",
            )
        return isinstance(engine, Completer) and (
            engine.is_base or graph.is_base(model, {each.id: each for each in self._store.models()})
        )

    def _form(self, is_base: bool) -> Form:
        return "plain" if is_base or self._is_plain else "chat"

    # --- what is asked ---

    def _why_not(self, model: Model, task: EvalTask) -> str:
        return WAYS[metric_of(task.metric).ASKS].why_not(model)

    def _questions(self, model: Model, form: Form) -> list[_Question]:
        return [
            _Question(task, item, n, put(task, item, n, form))
            for task in self._tasks
            if not self._why_not(model, task)
            for n in self._shots
            for item in task.items
        ]

    def _cells(self, known: dict[tuple[str, str], AnswerRow]) -> list[Cell]:
        """Every answer of the requested tasks, with its item."""
        found: list[Cell] = []
        for grown in self._grown:
            model = grown.record
            earlier = [row for row in known.values() if row.model == model.id]
            if earlier:
                questions = self._questions(model, self._form(earlier[-1].is_base))
                found += [Cell(q.task, q.item, q.n_shots, known[model.id, q.asked.key]) for q in questions]
        return found


def _most_tokens(question: _Question) -> int:
    """The most tokens that an answer takes; of scored options, about as many as their texts have."""
    if metric_of(question.task.metric).ASKS == "reply":
        return question.task.max_tokens
    return max(1, sum(len(each.encode()) for each in question.asked.continuations) // BYTES_PER_TOKEN)


def _is_open(row: AnswerRow | None, again: bool) -> bool:
    return row is None or (again and row.error is not None)


def _loaded(wanted: Sequence[str], limit: int | None, has_pictures: bool) -> list[EvalTask]:
    if limit is not None and limit < 1:
        raise UsageError(f"A limit of {limit} items leaves nothing to ask.", code="nothing-left")
    found = tasks.load(wanted, has_pictures)
    if limit is None:
        return found
    return [msgspec.structs.replace(task, items=_some(task.items, limit)) for task in found]


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
                f"The task '{task.name}' has too few examples: {task.n_shots}, not {max(shots)}.",
                code="too-few-examples",
            )
    for grown in models:
        whys = [WAYS[metric_of(task.metric).ASKS].why_not(grown.record) for task in wanted]
        if all(whys):
            raise UsageError(
                f"'{grown.record.name}' can be put none of these tasks: {whys[0]}.", code="no-task-fits"
            )


def _refuse_other_arithmetic(
    folder: Path, model: Model, engine: Engine, earlier: Sequence[AnswerRow]
) -> None:
    other = {row.numerics for row in earlier} - {engine.numerics}
    if other:
        raise NotComparable(
            f"Model '{model.name}' answered in {folder} as '{other.pop()}' computes, this engine is "
            f"'{engine.numerics}': its answers would not belong together. Ask on the machine and with the "
            "versions of before, or into another folder (--out).",
            code="numerics-differ",
        )
