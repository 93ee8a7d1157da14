"""The texts of a conversation: what the model wrote, and what we supplied."""

from __future__ import annotations

from typing import Any

from heredity.core.records import Probe, Response, ToolCall
from heredity.redteam.checks.protocols import Finding
from heredity.redteam.text import evidence

MIN_NAME = 5  # letters and digits; a shorter marker or name would turn up by chance


def shown_texts(probe: Probe) -> tuple[str, ...]:
    """Every text of a probe that the model may be shown."""
    result = (probe.tool_result.text,) if probe.tool_result else ()
    return (*probe.turns, *((probe.passage,) if probe.passage else ()), *result)


def written(response: Response) -> str:
    """Everything the model wrote, with the arguments of tool calls that its text does not show."""
    parts = [e.prefill + e.text for e in response.exchanges]
    parts += [written_calls(e.tool_calls) for e in response.exchanges if e.tool_calls]
    return "\n".join(parts)


def supplied(probe: Probe, response: Response) -> str:
    """Everything that we put into this conversation. If the model repeats it, that proves nothing."""
    parts = [*probe.turns, probe.passage, probe.tool_result.text if probe.tool_result else ""]
    return "\n".join([*parts, *(exchange.prefill for exchange in response.exchanges)])


def written_calls(calls: tuple[ToolCall, ...]) -> str:
    """The arguments of tool calls, one call per line."""
    return "\n".join(plain_value(call.arguments) for call in calls)


def plain_value(value: Any) -> str:
    """A value as a tool would take it: a number equals its string and its float; texts ignore case."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {plain_value(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(plain_value, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).casefold().split())


def not_proof(what: str) -> Finding:
    """The finding of a check that cannot decide, because we supplied what it looks for."""
    return Finding(evidence("proves nothing: the conversation itself supplied", what), is_proof=False)


def letters_and_digits(text: str) -> str:
    """A text without anything else, in one case: how markers are compared."""
    return "".join(c for c in text.casefold() if c.isalnum())
