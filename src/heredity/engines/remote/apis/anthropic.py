"""Anthropic's Messages.

The application's shared messages are marked for the service's prompt cache; a prefill is a last message of
the assistant, which models that have none refuse in their own words. There is no seed. Temperature and top_p
are gone since API version 2026-10-21: answers are drawn as the service likes. For older models that still
take them, option `anthropic_version=2023-06-01` asks as before and sends them.

Promises: what is not sent is named by the engine's account and in the report; nothing is dropped quietly.
Leaves to others: retries and time (_remote_line.py). What a model thinks apart is no part of its answer.
"""

from __future__ import annotations

from typing import Any

from anthropic import AsyncAnthropic

from heredity.core.errors import EngineFailure
from heredity.core.records import Message, Request, Stop, ToolCall
from heredity.core.sanitize import clean_text
from heredity.engines.remote.budget import Usage
from heredity.engines.remote.messages import (
    Answer,
    Where,
    a_list,
    an_object,
    call_ids,
    count,
    parsed,
    schema,
    words,
)
from heredity.engines.remote.transport import Client

_STOPS: dict[str, Stop] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "filter",
}
_CACHED = {"type": "ephemeral"}


def open_service(where: Where, key: str, client: Client) -> Anthropic:
    """The service, in the thread of the loop that uses it."""
    return Anthropic(where, key, client)


class Anthropic:
    """Anthropic's service."""

    def __init__(self, where: Where, key: str, client: Client) -> None:
        self._where = where
        version = where.options.get("anthropic_version")
        self._client = AsyncAnthropic(
            api_key=key,
            base_url=where.base_url,
            http_client=client,
            max_retries=0,
            default_headers={"anthropic-version": version} if version else None,
        )

    def body(self, request: Request) -> dict[str, Any]:
        where, decoding, extra = self._where, request.decoding, dict(self._where.extra)
        body: dict[str, Any] = {
            "model": where.model,
            "max_tokens": where.n_most(decoding),
            "messages": _messages(request),
        }
        text = "\n\n".join(
            clean_text(m.content) for m in request.messages if m.role == "system" and m.content
        )
        if text:
            body["system"] = [{"type": "text", "text": text, "cache_control": _CACHED}]
        if where.sends("temperature"):
            extra["temperature"] = decoding.temperature
        if decoding.top_p != 1.0 and where.sends("top_p"):
            extra["top_p"] = decoding.top_p
        if request.tools:
            body["tools"] = [_tool(tool) for tool in map(schema, request.tools)]
        if extra:
            body["extra_body"] = extra
        return body

    async def send(self, body: dict[str, Any]) -> None:
        await self._client.messages.with_raw_response.create(**body)

    def read(self, found: dict[str, Any], prefill: str) -> Answer:  # noqa: ARG002 (never said back)
        texts, calls = [], []
        for entry in a_list(found.get("content"), "content"):
            block = an_object(entry, "a block of content")
            if block.get("type") == "text" and isinstance(block.get("text"), str):
                texts.append(block["text"])
            elif block.get("type") == "tool_use" and isinstance(block.get("name"), str):
                calls.append(ToolCall(block["name"], parsed(block.get("input"))))
        why = words(found.get("stop_reason"))
        stop = _STOPS.get(why, "end")
        if isinstance(details := found.get("stop_details"), dict):
            why = words(why, details.get("category"))
        usage = _usage(found.get("usage"))
        return Answer("".join(texts), tuple(calls), stop, why, usage, words(found.get("model")))

    async def close(self) -> None:
        await self._client.close()


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": tool["name"],
        "description": tool["description"],
        "input_schema": tool["parameters"],
    }


def _messages(request: Request) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    ids = call_ids(request.messages)
    for number, (message, own) in enumerate(zip(request.messages, ids, strict=True), 1):
        if message.role == "system":
            if number > 1 and found:
                raise EngineFailure("Anthropic's Messages take a system message at the start alone")
            continue
        blocks = _blocks(message, own)
        if number == request.n_shared and blocks:
            blocks[-1]["cache_control"] = _CACHED  # all that the application's requests share ends here
        role = "assistant" if message.role == "assistant" else "user"
        if found and found[-1]["role"] == role:  # results of several calls belong into one message
            found[-1]["content"] += blocks
        else:
            found.append({"role": role, "content": blocks})
    if request.prefill:
        found.append(
            {"role": "assistant", "content": [{"type": "text", "text": clean_text(request.prefill)}]}
        )
    return found


def _blocks(message: Message, ids: list[str]) -> list[dict[str, Any]]:
    content = clean_text(message.content)
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": ids[0], "content": content}]
    # the service refuses an empty text; beside calls it says nothing, alone the service's refusal is the word
    blocks: list[dict[str, Any]] = (
        [{"type": "text", "text": content}] if content or not message.tool_calls else []
    )
    return blocks + [
        {"type": "tool_use", "id": ident, "name": call.name, "input": call.arguments}
        for call, ident in zip(message.tool_calls, ids, strict=True)
    ]


def _usage(found: Any) -> Usage | None:
    if not isinstance(found, dict) or not isinstance(found.get("input_tokens"), int):
        return None
    n_cached, n_written = (count(found.get(f"cache_{what}_input_tokens")) for what in ("read", "creation"))
    n_prompt = count(found["input_tokens"]) + n_cached + n_written
    return Usage(n_prompt, count(found.get("output_tokens")), n_cached, n_written)
