"""The training and the questions of a task, and the differences that they can show, before anything is made.

    for line in lines(forecast_task(task, questions, possible)): tell(line)

Promises: the power is that of the exact test on pairs of answers, at the level of Holm's first step over the
ways. The assumptions are part of the lines.
Leaves to others: the power and the time of the probes (study/forecast.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from heredity.core.records import Record
from heredity.core.time_left import time_words
from heredity.lab.adapt.questions import Questions, Scope
from heredity.lab.adapt.task import RECIPES, AdaptTask
from heredity.lab.inheritance.children import Task
from heredity.lineage.speeds import USUAL_BYTES, request_seconds
from heredity.stats.power import ALPHA, POWER, design_effect, paired_power
from heredity.study.forecast import BASELINE, CORRELATION, RELATED, smallest
from heredity.study.wording import plural

TEACHER_TOKENS = 64  # of an answer that is learned, at least
DISCORDANCE = RELATED * 2 * BASELINE * (1 - BASELINE)  # of a way and the untouched model, if both are as good
_IS_SEEN: dict[Scope, tuple[bool | None, ...]] = {
    "all": (True, False, None), "seen": (True,), "new": (False,),
}  # fmt: skip
_TITLES: dict[Scope, str] = {"all": "all questions", "seen": "about seen facts", "new": "about new facts"}


class ScopeForecast(Record, frozen=True):
    """The power of the test questions of one scope. A cluster has the questions about one fact.

    detectable: the smallest difference between a way and the untouched model; None if no difference can be
    shown.
    """

    scope: Scope
    n_questions: int
    n_clusters: int
    detectable: float | None


class TaskForecast(Record, frozen=True):
    """The training of a task, and its answers except those to probes.

    n_trained     models that are trained, each for `steps` of `batch_size` rows; with `minutes`, for so long
    n_answers     to test questions, of all models
    n_lessons     answers of the teacher
    seconds       for all these answers, at best and at worst: a guess
    n_ways        that are compared with the untouched model
    """

    n_trained: int
    steps: int
    batch_size: int
    minutes: float
    n_answers: int
    n_lessons: int
    seconds: tuple[float, float]
    n_ways: int
    scopes: tuple[ScopeForecast, ...]


def forecast_task(
    task: AdaptTask, questions: Questions, possible: Sequence[Task], n_bytes: float = USUAL_BYTES
) -> TaskForecast:
    """The forecast of a task. possible: the models that can be made. n_bytes: of the untouched model."""
    ways = {each.child.name for each in possible}
    n_answers = (1 + len(possible)) * len(questions.test)
    n_lessons = len(questions.train) if "distilled" in ways else 0
    answer = request_seconds(task.answer_tokens, n_bytes)
    lesson = request_seconds(max(TEACHER_TOKENS, task.answer_tokens), n_bytes)
    low, high = (n_answers * a + n_lessons * b for a, b in zip(answer, lesson, strict=True))
    return TaskForecast(
        n_trained=sum(each.child.name in RECIPES for each in possible),
        steps=task.steps,
        batch_size=task.budget.batch_size,
        minutes=task.budget.minutes,
        n_answers=n_answers,
        n_lessons=n_lessons,
        seconds=(round(low, 1), round(high, 1)),
        n_ways=len(ways),
        scopes=tuple(_scope(scope, questions, len(ways)) for scope in _scopes(questions)),
    )


def lines(found: TaskForecast) -> list[str]:
    """The forecast in lines of at most 80 columns."""
    holm = f" (Holm over {found.n_ways:,})" if found.n_ways > 1 else ""
    lessons = f", {found.n_lessons:,} of the teacher" if found.n_lessons else ""
    return [
        *_training(found),
        f"Answers except to probes: {found.n_answers:,} to test questions{lessons}; "
        f"{time_words(found.seconds)}.",
        f"What they can show of a way with {100 * POWER:g} % power{holm}:",
        *map(_scope_line, found.scopes),
        f"Guessed: equal ways differ on {100 * DISCORDANCE:.0f} % of the questions, and the time.",
    ]


def _training(found: TaskForecast) -> list[str]:
    if not found.n_trained:
        return []
    models = plural(found.n_trained, "model")
    if found.minutes:
        return [f"Training: {models}, {found.minutes:g} min each."]
    n_rows = found.n_trained * found.steps * found.batch_size
    return [
        f"Training: {models}, {plural(found.steps, 'step')} of {plural(found.batch_size, 'row')} each, "
        f"{plural(n_rows, 'row')}."
    ]


def _scope_line(each: ScopeForecast) -> str:
    n = f"{each.n_questions:,} about {plural(each.n_clusters, 'fact')}"
    shown = "no difference"
    if each.detectable is not None:
        shown = f"better or worse by {100 * each.detectable:.0f} points"
    return f"  {_TITLES[each.scope]:<17} {n:<24} {shown}"


def _scopes(questions: Questions) -> list[Scope]:
    """All questions, and those about seen and new facts, as far as there are any."""
    there = {each.is_seen for each in questions.test}
    return [scope for scope, kinds in _IS_SEEN.items() if there.intersection(kinds)]


def _scope(scope: Scope, questions: Questions, n_ways: int) -> ScopeForecast:
    mine = ((n, each) for n, each in enumerate(questions.test) if each.is_seen in _IS_SEEN[scope])
    sizes = Counter(each.fact or f"{n:05d}" for n, each in mine)
    n = sum(sizes.values())
    n_pairs = int(n / design_effect(sum(size * size for size in sizes.values()) / n, CORRELATION))
    alpha = ALPHA / n_ways

    def is_shown(difference: float) -> bool:
        return paired_power(n_pairs, min(1.0, DISCORDANCE + difference), difference, alpha) >= POWER

    return ScopeForecast(scope, n, len(sizes), smallest(is_shown))
