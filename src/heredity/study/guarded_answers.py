"""Counts of the findings of guards in the answers of a study, from its rows.

Promises: the counts are those of the recorded answers, however often the study was stopped and resumed.
Leaves to others: the guards (application/guarded.py), and the words (guard_words.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from heredity.application.guards.protocols import FAILED, FAILED_OPEN
from heredity.study.estimands import GuardedAnswers
from heredity.study.plan import Plan
from heredity.study.storage import RawResponse


class GuardCounts:
    """Counts of a stream of responses, by model."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._answers, self._touched = Counter[int](), Counter[int]()
        self._failed_open, self._failed_closed = Counter[int](), Counter[int]()
        self._by_guard: dict[int, Counter[str]] = {}

    def watch(self, responses: Iterable[RawResponse]) -> Iterator[RawResponse]:
        """The same responses, counted."""
        n_each = self._plan.n_trials // len(self._plan.models)
        for response in responses:
            model = response.index // n_each
            self._answers[model] += len(response.exchanges)
            for exchange in response.exchanges:
                if exchange.guarded:
                    self._count(model, exchange.guarded)
            yield response

    def _count(self, model: int, notes: list[str]) -> None:
        found = {note.partition(": ")[0] for note in notes if FAILED_OPEN not in note}
        self._touched[model] += bool(found)
        self._failed_open[model] += any(FAILED_OPEN in note for note in notes)
        self._failed_closed[model] += any(FAILED in note for note in notes)
        self._by_guard.setdefault(model, Counter()).update(found)

    def found(self) -> tuple[GuardedAnswers, ...]:
        """The counts of each model whose answers have notes of guards, in the plan's order."""
        return tuple(
            GuardedAnswers(
                self._plan.models[m].id, self._answers[m], self._touched[m], dict(sorted(by.items())),
                self._failed_open[m], self._failed_closed[m],
            )
            for m, by in sorted(self._by_guard.items())
        )  # fmt: skip
