"""Counts of the calls of tools that run, and of those that failed, from the rows of a study.

Promises: the counts are those of the recorded answers, however often the study was stopped and resumed.
Leaves to others: running tools (application/toolbox.py), and the words (tool_words.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from heredity.study.estimands import ToolCallCounts
from heredity.study.plan import Plan
from heredity.study.storage import RawResponse


class ToolCallCounter:
    """Counts of a stream of responses, by model."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._calls, self._recorded, self._trials = Counter[int](), Counter[int](), Counter[int]()
        self._errors: dict[int, Counter[str]] = {}

    def watch(self, responses: Iterable[RawResponse]) -> Iterator[RawResponse]:
        """The same responses, counted."""
        n_each = self._plan.n_trials // len(self._plan.models)
        for response in responses:
            if calls := [call for exchange in response.exchanges for call in exchange.outcomes]:
                model = response.index // n_each
                errors = [call.error_code for call in calls if isinstance(call.error_code, str)]
                self._calls[model] += len(calls)
                self._recorded[model] += sum(call.is_recorded for call in calls)
                self._trials[model] += bool(errors)
                self._errors.setdefault(model, Counter()).update(errors)
            yield response

    def found(self) -> tuple[ToolCallCounts, ...]:
        """The counts of each model that called such a tool, in the plan's order."""
        return tuple(
            ToolCallCounts(
                self._plan.models[m].id, self._calls[m], self._recorded[m], self._trials[m],
                dict(sorted(errors.items())),
            )
            for m, errors in sorted(self._errors.items())
        )  # fmt: skip
