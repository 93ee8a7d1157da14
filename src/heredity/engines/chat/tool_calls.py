"""The tool calls in a model's answer, in the formats of the families' chat templates.

    hermes   <tool_call>{"name": ..., "arguments": {...}}</tool_call>            Qwen, Hermes, SmolLM
    llama    {"name": ..., "parameters": {...}}, by itself or after <|python_tag|>   Llama 3
    mistral  [TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]               Mistral

Promises: reading never raises. A call whose arguments cannot be parsed is a call still.
Leaves to others: rendering tools and calls (codec.py), and what a call does (application/).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from heredity.core.records import ToolCall

MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")  # what announces calls
FENCE = re.compile(
    r"```(?:json)?\s*"
)  # in which some models put a call, although their template has another form
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_LONGEST_CALL = 8_000  # characters of one call between its marks
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]{1,200})"')
_ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*:\s*')
_LONGEST = 100_000  # characters that are read: a longer answer is not a tool call


class WrittenCall(NamedTuple):
    """A tool call with its arguments as text: JSON if the model wrote JSON, else its own words."""

    name: str
    arguments: str


class DividedAnswer(NamedTuple):
    """An answer, divided into the text before its tool calls and the calls."""

    text: str
    calls: tuple[WrittenCall, ...]


def parse_tool_calls(text: str) -> tuple[ToolCall, ...]:
    """Return the tool calls in an answer, in order. Arguments that are not a JSON object are {}."""
    return tuple(ToolCall(call.name, _object(call.arguments)) for call in _calls(text))


def divide_answer(text: str, names: Sequence[str]) -> DividedAnswer:
    """Divide an answer into text and calls.

    names: the tools. A JSON object by itself, or in a code block, is a call if it names one of them. Behind a
    mark of the format any name is.
    """
    starts = [at for mark in MARKS if (at := text.find(mark)) >= 0]
    read = text if starts else _unfenced(text)
    calls = tuple(call for call in _calls(read) if starts or call.name in names)
    if not calls:
        return DividedAnswer(text, ())
    before = text[: min(starts)] if starts else ""
    return DividedAnswer(before if before.strip() else "", calls)


def _unfenced(text: str) -> str:
    """The content of a text that is one code block; another text itself."""
    match = FENCE.match(bare := text.strip())
    return text if match is None else bare[match.end() :].removesuffix("```")


def _calls(text: str) -> Iterator[WrittenCall]:
    text = text[:_LONGEST]
    if _OPEN in text:
        for inside in _between_marks(text):
            yield from _read(inside)
        return
    if "[TOOL_CALLS]" in text:
        yield from _read(text.split("[TOOL_CALLS]", 1)[1])
        return
    bare = text.strip().removeprefix("<|python_tag|>").strip()
    if bare.startswith("{") and '"name"' in bare and ('"parameters"' in bare or '"arguments"' in bare):
        yield from _read(bare)


def _between_marks(text: str) -> Iterator[str]:
    """Yield what each call has between its marks; the last one may lack the second. In linear time."""
    at, end = text.find(_OPEN), -1
    while at >= 0:
        start = at + len(_OPEN)
        if end < start:
            end = text.find(_CLOSE, start)
            end = len(text) if end < 0 else end
        is_call = end - start <= _LONGEST_CALL
        if is_call:
            yield text[start:end]
        at = text.find(_OPEN, end if is_call else start)


def _read(text: str) -> Iterator[WrittenCall]:
    try:
        value, _ = json.JSONDecoder().raw_decode(text.strip())
    except (ValueError, RecursionError):
        yield from _unparsed(text)
        return
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and isinstance(item.get("name"), str):
            yield WrittenCall(item["name"], _arguments(item))


def _unparsed(text: str) -> Iterator[WrittenCall]:
    """Yield the calls in text that is not JSON, each with the text from its arguments to the next call."""
    names = list(_NAME.finditer(text))
    for number, match in enumerate(names, 1):
        end = names[number].start() if number < len(names) else len(text)
        given = _ARGUMENTS.search(text, match.end(), end)
        words = text[given.end() : end].strip() if given is not None else ""
        yield WrittenCall(match[1], words.removesuffix("}").strip() if end == len(text) else words)


def _arguments(item: Mapping[str, object]) -> str:
    arguments = item.get("arguments", item.get("parameters", {}))
    # Some models write the arguments as a JSON string.
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _object(arguments: str) -> dict[str, object]:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
