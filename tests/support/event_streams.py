"""Answers in parts, as the services of the fault server stream them, and how a stream goes wrong."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

Event = dict[str, Any]
NO_END_MARKER = "gemini"  # its streams end with the connection
EVENTS = (
    "ok", "finish", "stream-unended", "stream-unreasoned", "stream-error", "stream-error-first",
    "stream-torn", "stream-stalls", "stream-echo", "stream-call", "stream-crlf", "stream-thinks",
    "stream-mixed",
)  # fmt: skip


class _Stream(NamedTuple):
    """The events of a stream. `reason` says why it ends; `end` is the marker, or what comes with it."""

    begin: list[Event]
    parts: list[Event]
    reason: list[Event]
    end: list[Event | str]


def events(good: Event, api: str, text: str, mode: str, key: str) -> list[bytes]:
    """The events of a stream of pieces of two characters. good: the answer that would come whole."""
    name = mode.partition("=")[0]
    texts = [text[i : i + 2] for i in range(0, len(text), 2)]
    if name == "stream-echo":
        texts += ["key ", key[:9], key[9:20], key[20:], "."]
    stream = _OF_APIS[api](good, texts, name)
    if name in ("stream-error", "stream-error-first"):
        stream.parts[0 if name == "stream-error-first" else 2 :] = [_ERRORS[api]]
    found = [*stream.begin, *stream.parts]
    found += [] if name in ("stream-unreasoned", "stream-stalls") else stream.reason
    data = [json.dumps(event) for event in found]
    if name not in ("stream-unended", "stream-stalls"):
        data += [each if isinstance(each, str) else json.dumps(each) for each in stream.end]
    line = b"\r\n" if name == "stream-crlf" else b"\n"
    written = [b": hello" + 2 * line, *(b"data: " + each.encode() + 2 * line for each in data)]
    n_whole = 1 + len(stream.begin) + 2
    return [*written[:n_whole], written[n_whole][:9]] if name == "stream-torn" else written


def _openai(good: Event, texts: list[str], name: str) -> _Stream:
    named = {name: good[name] for name in ("model", "system_fingerprint")}
    reason = good["choices"][0]["finish_reason"]

    def chunk(delta: Event, finish: str | None = None) -> Event:
        return {**named, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    parts = [chunk({"content": each}) for each in texts]
    if name == "stream-thinks":
        parts.insert(0, chunk({"reasoning_content": "hidden"}))
    if name == "stream-call":
        call = {"index": 0, "id": "c1", "function": {"name": "find_order", "arguments": ""}}
        given = [{"index": 0, "function": {"arguments": part}} for part in ('{"order": ', '"A1"}')]
        parts = [chunk({"tool_calls": [each]}) for each in (call, *given)]
    usage = {**named, "choices": [], "usage": good["usage"]}
    return _Stream([], parts, [chunk({}, reason)], [usage, "[DONE]"])


def _anthropic(good: Event, texts: list[str], name: str) -> _Stream:
    n = good["usage"]["output_tokens"]
    message = {**good, "content": [], "stop_reason": None, "usage": {**good["usage"], "output_tokens": 1}}
    begin: list[Event] = [{"type": "message_start", "message": message}, {"type": "ping"}]
    if name == "stream-thinks":
        thoughts = [
            {"type": "thinking_delta", "thinking": "hidden"},
            {"type": "signature_delta", "signature": "s"},
        ]
        begin += _block(0, {"type": "thinking", "thinking": "", "signature": ""}, thoughts)
    block: Event = {"type": "text", "text": ""}
    deltas: list[Event] = [{"type": "text_delta", "text": each} for each in texts]
    if name == "stream-call":
        block = {"type": "tool_use", "id": "c1", "name": "find_order", "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in ("", '{"order": ', '"A1"}')]
    start, *parts, stop = _block(1, block, deltas)
    if name == "stream-mixed":  # a block that began first grows after another
        other, grown, end = _block(2, block, deltas[:1])
        parts = [other, grown, *parts, end]
    end = {"stop_reason": good["stop_reason"], "stop_sequence": None}
    reason = {"type": "message_delta", "delta": end, "usage": {"input_tokens": None, "output_tokens": n}}
    return _Stream([*begin, start], parts, [stop, reason], [{"type": "message_stop"}])


def _block(index: int, block: Event, deltas: list[Event]) -> list[Event]:
    return [
        {"type": "content_block_start", "index": index, "content_block": block},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def _gemini(good: Event, texts: list[str], name: str) -> _Stream:
    if "promptFeedback" in good:
        return _Stream([], [good], [], [])
    parts: list[Event] = [{"text": each} for each in texts]
    if name == "stream-thinks":
        parts.insert(0, {"text": "hidden", "thought": True})
    if name == "stream-call":
        parts = [{"functionCall": {"name": "find_order", "args": {"order": "A1"}}}]
    rest = {"usageMetadata": {"promptTokenCount": 20}, "modelVersion": good["modelVersion"]}
    content = [{"content": {"role": "model", "parts": [part]}, "index": 0} for part in parts]
    end = {"finishReason": good["candidates"][0]["finishReason"], "index": 0}
    return _Stream(
        [], [{"candidates": [each], **rest} for each in content], [{**good, "candidates": [end]}], []
    )


_OF_APIS = {"openai": _openai, "anthropic": _anthropic, "gemini": _gemini}
_ERRORS: dict[str, Event] = {
    "openai": {"error": {"message": "out of luck", "code": "error", "type": "error"}},
    "anthropic": {"type": "error", "error": {"type": "overloaded_error", "message": "out of luck"}},
    "gemini": {"error": {"code": 503, "message": "out of luck", "status": "UNAVAILABLE"}},
}
