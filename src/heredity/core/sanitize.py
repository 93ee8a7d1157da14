"""Model output is hostile: what cannot be stored as UTF-8 JSON is made storable here, once.

Promises: valid text comes back as it is; a call always fits into a row.
Leaves to others: showing it safely (report/, cli/).
"""

from __future__ import annotations

from typing import Any

import msgspec

from heredity.core.records import Reply, ToolCall


def clean(reply: Reply) -> Reply:
    """The reply with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD in every text."""
    text, prompt = clean_text(reply.text), clean_text(reply.prompt)
    error = None if reply.error is None else clean_text(reply.error)
    if text is reply.text and prompt is reply.prompt and error is reply.error and not reply.tool_calls:
        return reply
    calls = tuple(map(clean_call, reply.tool_calls))
    return msgspec.structs.replace(reply, text=text, prompt=prompt, error=error, tool_calls=calls)


def clean_text(text: str) -> str:
    """`text` itself where it is valid Unicode, else with U+FFFD for each lone surrogate."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def clean_call(call: ToolCall) -> ToolCall:
    """The call in a form that a row can hold: what JSON cannot carry is made a text."""
    try:
        if msgspec.json.decode(msgspec.json.encode(call), type=ToolCall) == call:
            return call
    except (ValueError, OverflowError, RecursionError, TypeError, msgspec.MsgspecError):
        pass
    return ToolCall(clean_text(call.name), {clean_text(k): _plain(v, 16) for k, v in call.arguments.items()})


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, dict | list) and depth == 0:
        return "..."
    if isinstance(value, dict):
        return {clean_text(k): _plain(v, depth - 1) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, depth - 1) for v in value]
    return str(value)[:100] if not _fits(value) else value


def _fits(value: int | float) -> bool:
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value == value and abs(value) != float("inf")
