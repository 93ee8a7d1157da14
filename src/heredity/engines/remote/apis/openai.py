"""Chat completions as OpenAI defined them: OpenAI, Mistral, Llama hosts, vLLM, Ollama, llama.cpp.

The API has no beginning of the assistant's answer. Servers that have one each have their own way, which the
model's option `prefill` names:

    continue_final_message   vLLM: the last message is the assistant's and is gone on with
    trailing                 llama.cpp: a last message of the assistant is gone on with as it stands
    prefix                   Mistral: the last message says that it is a prefix

Promises: a parameter is sent or its absence is an option of the model; nothing is dropped quietly. The
shared messages come first and unchanged, which is what makes the service's own prompt cache hit.
Leaves to others: retries and time (_remote_line.py). What a model thinks apart (reasoning_content) is no
part of its answer and is not kept.
"""

from __future__ import annotations

import json
from typing import Any

from openai import AsyncOpenAI

from heredity.core.errors import EngineFailure
from heredity.core.records import Message, Request, Stop, ToolCall
from heredity.core.sanitize import clean_text
from heredity.engines.remote.budget import HOMES, Usage
from heredity.engines.remote.messages import (
    SEEDS,
    Answer,
    Where,
    a_list,
    an_object,
    call_ids,
    count,
    parsed,
    schema,
    without,
    words,
)
from heredity.engines.remote.transport import Broken, Client

PREFILLS = ("continue_final_message", "trailing", "prefix")
_STOPS: dict[str, Stop] = {"length": "length", "content_filter": "filter"}


def open_service(where: Where, key: str, client: Client) -> OpenAI:
    """The service, in the thread of the loop that uses it."""
    return OpenAI(where, key, client)


class OpenAI:
    """An OpenAI-compatible service."""

    def __init__(self, where: Where, key: str, client: Client) -> None:
        self._where, self._prefill = where, where.options.get("prefill", "")
        # Organisation and project are read from the environment by the SDK; they go to their vendor alone.
        own = {} if where.base_url == HOMES["openai"] else {"OpenAI-Organization": "", "OpenAI-Project": ""}
        self._client = AsyncOpenAI(
            api_key=key, base_url=where.base_url, http_client=client, max_retries=0, default_headers=own
        )

    def body(self, request: Request) -> dict[str, Any]:
        where, decoding, extra = self._where, request.decoding, dict(self._where.extra)
        body: dict[str, Any] = {"model": where.model, "messages": self._messages(request, extra)}
        # OpenAI's newer models take only the new name, other servers often only the old one.
        n_most = "max_completion_tokens" if where.base_url == HOMES["openai"] else "max_tokens"
        values: dict[str, tuple[str, float]] = {"max_tokens": (n_most, where.n_most(decoding))}
        values["seed"] = ("seed", request.seed % SEEDS)
        values["temperature"] = ("temperature", decoding.temperature)
        if decoding.top_p != 1.0:
            values["top_p"] = ("top_p", decoding.top_p)
        body |= {name: value for parameter, (name, value) in values.items() if where.sends(parameter)}
        if request.tools:
            body["tools"] = [{"type": "function", "function": schema(tool)} for tool in request.tools]
        if extra:
            body["extra_body"] = extra
        return body

    def _messages(self, request: Request, extra: dict[str, Any]) -> list[dict[str, Any]]:
        messages = [
            _message(message, ids)
            for message, ids in zip(request.messages, call_ids(request.messages), strict=True)
        ]
        if not request.prefill:
            return messages
        begun: dict[str, Any] = {"role": "assistant", "content": clean_text(request.prefill)}
        if self._prefill == "continue_final_message":
            extra |= {"continue_final_message": True, "add_generation_prompt": False}
        elif self._prefill == "prefix":
            begun["prefix"] = True
        elif self._prefill != "trailing":
            raise EngineFailure(
                "chat completions cannot begin the assistant's answer. Where this server can, say how it "
                f"does: {self._where.name}?prefill={'|'.join(PREFILLS)}"
            )
        return [*messages, begun]

    async def send(self, body: dict[str, Any]) -> None:
        await self._client.chat.completions.with_raw_response.create(**body)

    def read(self, found: dict[str, Any], prefill: str) -> Answer:
        choices = a_list(found.get("choices"), "choices")
        if not choices:
            raise Broken("choices is empty")
        choice = an_object(choices[0], "a choice")
        message = an_object(choice.get("message"), "message")
        text = _text(message.get("content"))
        if not text and isinstance(message.get("refusal"), str):
            text = message["refusal"]
        text = without(prefill, text, self._prefill)
        why = words(choice.get("finish_reason"))
        served = words(found.get("model"), found.get("system_fingerprint"))
        return Answer(text, _calls(message), _STOPS.get(why, "end"), why, _usage(found.get("usage")), served)

    async def close(self) -> None:
        await self._client.close()


def _message(message: Message, ids: list[str]) -> dict[str, Any]:
    content = clean_text(message.content)
    if message.role == "tool":
        return {"role": "tool", "content": content, "tool_call_id": ids[0]}
    found: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "id": ident,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call, ident in zip(message.tool_calls, ids, strict=True)
        ]
    return found


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = [part.get("text") for part in a_list(content, "content") if isinstance(part, dict)]
    return "".join(part for part in parts if isinstance(part, str))


def _calls(message: dict[str, Any]) -> tuple[ToolCall, ...]:
    found = []
    for entry in a_list(message.get("tool_calls") or [], "tool_calls"):
        function = an_object(an_object(entry, "a tool call").get("function"), "function")
        if isinstance(name := function.get("name"), str):
            found.append(ToolCall(name, parsed(function.get("arguments"))))
    return tuple(found)


def _usage(found: Any) -> Usage | None:
    if not isinstance(found, dict) or not isinstance(found.get("prompt_tokens"), int):
        return None
    details = found.get("prompt_tokens_details")
    n_cached = count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    return Usage(count(found["prompt_tokens"]), count(found.get("completion_tokens")), n_cached)
