"""Google's Gemini, as its Developer API serves it.

A block by the service's safety filter is an answer with stop "filter". The API's documents know no beginning
of the assistant's answer; option `prefill=trailing` sends one as a last message of the model all the same.

Promises: a parameter is sent or its absence is an option of the model; nothing is dropped quietly.
Leaves to others: retries and time (_remote_line.py). What a model thinks apart is no part of its answer.
"""

from __future__ import annotations

from typing import Any

from google import genai

from heredity.core.errors import EngineFailure
from heredity.core.records import Message, Request, Stop, ToolCall
from heredity.core.sanitize import clean_text
from heredity.engines.remote.budget import Usage
from heredity.engines.remote.messages import (
    SEEDS,
    Answer,
    Where,
    a_list,
    an_object,
    count,
    parsed,
    schema,
    without,
    words,
)
from heredity.engines.remote.transport import Broken, Client

_FILTERS = ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "MODEL_ARMOR")
_STOPS: dict[str, Stop] = {"MAX_TOKENS": "length", **dict.fromkeys(_FILTERS, "filter")}


def open_service(where: Where, key: str, client: Client) -> Gemini:
    """The service, in the thread of the loop that uses it."""
    return Gemini(where, key, client)


class Gemini:
    """Google's service."""

    def __init__(self, where: Where, key: str, client: Client) -> None:
        self._where = where
        options: Any = {"base_url": where.base_url, "api_version": "v1beta", "httpx_async_client": client}
        # the environment must not turn this into Vertex, which has other keys and another address
        self._client = genai.Client(api_key=key, vertexai=False, http_options=options)

    def body(self, request: Request) -> dict[str, Any]:
        where, decoding = self._where, request.decoding
        config: dict[str, Any] = {"automatic_function_calling": {"disable": True}}
        values: dict[str, tuple[str, float]] = {"max_tokens": ("max_output_tokens", where.n_most(decoding))}
        values |= {"temperature": ("temperature", decoding.temperature), "top_p": ("top_p", decoding.top_p)}
        values["seed"] = ("seed", request.seed % SEEDS)
        config |= {name: value for parameter, (name, value) in values.items() if where.sends(parameter)}
        if system := [clean_text(m.content) for m in request.messages if m.role == "system" and m.content]:
            config["system_instruction"] = "\n\n".join(system)
        if request.tools:
            declared = [_tool(schema(tool)) for tool in request.tools]
            config["tools"] = [{"function_declarations": declared}]
        if where.extra:
            config["http_options"] = {"extra_body": where.extra}
        return {"model": where.model, "contents": self._contents(request), "config": config}

    def _contents(self, request: Request) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        names: list[str] = []
        for message in request.messages:
            if message.role == "system":
                continue
            names = [call.name for call in message.tool_calls] or names
            role, parts = "model" if message.role == "assistant" else "user", _parts(message, names)
            if found and found[-1]["role"] == role:
                found[-1]["parts"] += parts
            else:
                found.append({"role": role, "parts": parts})
        if request.prefill:
            if self._where.options.get("prefill") != "trailing":
                raise EngineFailure(
                    "Gemini's API does not say that it can begin the assistant's answer. To send a last "
                    f"message of the model all the same: {self._where.name}?prefill=trailing"
                )
            found.append({"role": "model", "parts": [{"text": clean_text(request.prefill)}]})
        return found

    async def send(self, body: dict[str, Any]) -> None:
        await self._client.aio.models.generate_content(**body)

    def read(self, found: dict[str, Any], prefill: str) -> Answer:
        usage = _usage(found.get("usageMetadata"))
        served = words(found.get("modelVersion"))
        blocked = found.get("promptFeedback")
        why = words(blocked.get("blockReason")) if isinstance(blocked, dict) else ""
        if why:
            return Answer("", (), "filter", why, usage, served)
        candidates = a_list(found.get("candidates"), "candidates")
        if not candidates:
            raise Broken("candidates is empty, and no reason is given")
        candidate = an_object(candidates[0], "a candidate")
        why = words(candidate.get("finishReason"))
        content = candidate.get("content")
        if content is None and not why:
            raise Broken("a candidate has neither content nor an end")
        parts = an_object(content or {}, "content").get("parts") or []
        text, calls = _read(a_list(parts, "parts"))
        text = without(prefill, text, str(self._where.options.get("prefill", "")))
        return Answer(text, calls, _STOPS.get(why, "end"), why, usage, served)

    async def close(self) -> None:
        self._client.close()
        await self._client.aio.aclose()


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if not tool["parameters"]["properties"]:
        return {"name": tool["name"], "description": tool["description"]}
    return {
        "name": tool["name"],
        "description": tool["description"],
        "parameters_json_schema": tool["parameters"],
    }


def _parts(message: Message, waiting: list[str]) -> list[dict[str, Any]]:
    content = clean_text(message.content)
    if message.role == "tool":
        name = waiting.pop(0) if waiting else "tool"
        return [{"function_response": {"name": name, "response": {"result": content}}}]
    parts: list[dict[str, Any]] = [{"text": content}] if content or not message.tool_calls else []
    return parts + [
        {"function_call": {"name": call.name, "args": call.arguments}} for call in message.tool_calls
    ]


def _read(parts: list[Any]) -> tuple[str, tuple[ToolCall, ...]]:
    texts, calls = [], []
    for entry in parts:
        part = an_object(entry, "a part")
        if isinstance(part.get("text"), str) and not part.get("thought"):
            texts.append(part["text"])
        if isinstance(call := part.get("functionCall"), dict) and isinstance(call.get("name"), str):
            calls.append(ToolCall(call["name"], parsed(call.get("args"))))
    return "".join(texts), tuple(calls)


def _usage(found: Any) -> Usage | None:
    if not isinstance(found, dict) or not isinstance(found.get("promptTokenCount"), int):
        return None
    n_answer = count(found.get("candidatesTokenCount")) + count(found.get("thoughtsTokenCount"))
    return Usage(count(found["promptTokenCount"]), n_answer, count(found.get("cachedContentTokenCount")))
