"""Tool calls in the formats that models' own templates teach them.

hermes   <tool_call>{"name": ..., "arguments": {...}}</tool_call>            Qwen, Hermes, SmolLM
llama    {"name": ..., "parameters": {...}}, alone or after <|python_tag|>   Llama 3
mistral  [TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]               Mistral

Promises: never raises on any text; a call whose arguments do not parse still counts, with arguments {}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from heredity.core.records import ToolCall

_HERMES = re.compile(r"<tool_call>(.{0,8000}?)(?:</tool_call>|\Z)", re.DOTALL)
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]{1,200})"')
_LONGEST = 100_000  # characters read: an answer past this is not a tool call


def parse(text: str) -> tuple[ToolCall, ...]:
    """The calls in an answer, in order."""
    text = text[:_LONGEST]
    if "<tool_call>" in text:
        return tuple(call for found in _HERMES.finditer(text) for call in _calls(found[1]))
    if "[TOOL_CALLS]" in text:
        return tuple(_calls(text.split("[TOOL_CALLS]", 1)[1]))
    bare = text.strip().removeprefix("<|python_tag|>").strip()
    if bare.startswith("{") and '"name"' in bare and ('"parameters"' in bare or '"arguments"' in bare):
        return tuple(_calls(bare))
    return ()


def _calls(text: str) -> Iterator[ToolCall]:
    try:
        value, _ = json.JSONDecoder().raw_decode(text.strip())
    except (ValueError, RecursionError):
        for found in _NAME.finditer(text):
            yield ToolCall(found[1])
        return
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and isinstance(item.get("name"), str):
            yield ToolCall(item["name"], _arguments(item))


def _arguments(item: dict[str, Any]) -> dict[str, Any]:
    found = item.get("arguments", item.get("parameters", {}))
    if isinstance(found, str):  # some models write the arguments as a JSON string
        try:
            found = json.loads(found)
        except (ValueError, RecursionError):
            return {}
    return found if isinstance(found, dict) else {}
