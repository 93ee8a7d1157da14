"""The calls of tools that run, and those that failed, by model.

Promises: the counts are those of the recorded answers, however often the study was stopped and resumed.
Every failed call is counted once, by its error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from heredity.core.records import Record
from heredity.core.sanitize import label, plural
from heredity.core.sections import Section, TextTable
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.plan import Plan
from heredity.study.storage import RawResponse
from heredity.study.wording import names

NAME, ORDER = "tools", 40
_CLAIM = (
    "Calls of tools that run. After a failed call the model read an error instead of a result, and its "
    "trial counts as any other. A result from the record is that of an earlier call with the same "
    "arguments."
)
_ERRORS = {
    "arguments-invalid": "arguments refused",
    "result-too-large": "result too large",
    "tool-died": "process died",
    "tool-raised": "raised an error",
    "tool-timeout": "took too long",
}


class ToolCallCounts(Record, frozen=True):
    """The calls that a model made of tools that run, those that the tool's schema refused among them.

    n_recorded: calls that got a recorded result. n_trials: trials with a failed call. errors: error code ->
    failed calls. A call that a probe's planted result answers is not counted: no tool ran.
    """

    model: str
    n_calls: int
    n_recorded: int
    n_trials: int
    n_failed: int
    errors: dict[str, int]


Row = ToolCallCounts


def compute(evidence: StudyEvidence) -> Iterator[ToolCallCounts]:
    """The counts of each model that called such a tool, in the plan's order; none without such a tool."""
    if not any(tool.runs for tool in evidence.plan.application.tools):
        return iter(())
    counter = _Counter(evidence.plan)
    evidence.watch(counter.see)
    return counter.rows()


class _Counter:
    """Counts by model."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._calls, self._recorded, self._trials = Counter[int](), Counter[int](), Counter[int]()
        self._errors: dict[int, Counter[str]] = {}

    def see(self, response: RawResponse) -> None:
        if calls := [call for exchange in response.exchanges for call in exchange.outcomes]:
            model = response.index // (self._plan.n_trials // len(self._plan.models))
            errors = [call.error_code for call in calls if isinstance(call.error_code, str)]
            self._calls[model] += len(calls)
            self._recorded[model] += sum(call.is_recorded for call in calls)
            self._trials[model] += bool(errors)
            self._errors.setdefault(model, Counter()).update(errors)

    def rows(self) -> Iterator[ToolCallCounts]:
        for m, errors in sorted(self._errors.items()):
            yield ToolCallCounts(
                self._plan.models[m].id, self._calls[m], self._recorded[m], self._trials[m], errors.total(),
                dict(sorted(errors.items())),
            )  # fmt: skip


def show(rows: Sequence[ToolCallCounts], study: RecordedStudy) -> Section | None:
    """A table of all models; a sentence for each with a failed call."""
    if not rows:
        return None
    called, title = names(study.estimates.models), "Calls of tools"
    cells = [
        [
            called[row.model], f"{row.n_calls:,}", f"{row.n_recorded:,}", f"{row.n_failed:,}",
            f"{row.n_trials:,}", _error_words(row) or "none",
        ]
        for row in rows
    ]  # fmt: skip
    head = ["model", "calls", "from the record", "failed", "trials with a failed call", "errors"]
    sentences = tuple(
        f"{called[row.model]}: {row.n_failed:,} of {row.n_calls:,} tool calls failed, in "
        f"{plural(row.n_trials, 'trial')} ({_error_words(row)})."
        for row in rows
        if row.n_failed
    )
    return Section(NAME, title, _CLAIM, (TextTable(title, head, cells),), sentences)


def _error_words(row: ToolCallCounts) -> str:
    """The errors and their calls: `2 took too long, 1 process died`."""
    return ", ".join(f"{n:,} {_ERRORS.get(code, label(code, 40))}" for code, n in row.errors.items())
