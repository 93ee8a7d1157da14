"""A table and sentences about the calls of tools that run, and about those that failed.

Promises: every failed call is counted once, by its error.
Leaves to others: the numbers (tool_calls.py), and the pages (report/, cli/).
"""

from __future__ import annotations

from heredity.core.sanitize import label
from heredity.study.estimates import Estimates, ToolCallCounts
from heredity.study.wording import TextTable, names, plural

CLAIM = (
    "Calls of tools that run. After a failed call the model read an error instead of a result, and its trial "
    "counts as any other. A result from the record is that of an earlier call with the same arguments."
)
_HEAD = ["model", "calls", "from the record", "failed", "trials with a failed call", "errors"]
_WORDS = {
    "arguments-invalid": "arguments refused",
    "result-too-large": "result too large",
    "tool-died": "process died",
    "tool-raised": "raised an error",
    "tool-timeout": "took too long",
}


def tool_tables(found: Estimates) -> list[TextTable]:
    """The table of all models; [] if no tool ran."""
    rows = [
        [
            names(found.models)[each.model], f"{each.n_calls:,}", f"{each.n_recorded:,}",
            f"{each.n_failed:,}", f"{each.n_trials:,}", _errors(each) or "none",
        ]
        for each in found.tool_calls
    ]  # fmt: skip
    return [TextTable("Calls of tools", _HEAD, rows)] if rows else []


def tool_lines(found: Estimates) -> list[str]:
    """The failed calls of each model as sentences; [] if none failed."""
    return [
        f"{names(found.models)[each.model]}: {each.n_failed:,} of {each.n_calls:,} tool calls failed, in "
        f"{plural(each.n_trials, 'trial')} ({_errors(each)})."
        for each in found.tool_calls
        if each.n_failed
    ]


def _errors(each: ToolCallCounts) -> str:
    """The errors and their calls: `2 took too long, 1 process died`."""
    return ", ".join(f"{n:,} {_WORDS.get(code, label(code, 40))}" for code, n in each.errors.items())
