"""Chat completions as OpenAI defined them: OpenAI, Mistral, Llama hosts, vLLM, Ollama, llama.cpp.

The API has no prefill. Servers that support one differ; the option `prefill` of the model names the way:

    continue_final_message   vLLM: the last message is the assistant's, and the server continues it
    trailing                 llama.cpp: a last message of the assistant is continued as it is
    prefix                   Mistral: the last message is marked as a prefix

Promises: a parameter is sent, or its absence is an option of the model; nothing is dropped quietly. The
shared messages come first and unchanged, so that the prompt cache of the service hits.
`reasoning_content` is not part of an answer and is not kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from msgspec import UnsetType

from heredity.core.errors import EngineFailure
from heredity.core.records import Message, Request, Stop, ToolCall
from heredity.core.sanitize import clean_text
from heredity.engines.remote.apis import (
    SEED_BOUND,
    ApiAnswer,
    Endpoint,
    JsonObject,
    MalformedAnswer,
    PrefillRemover,
    as_list,
    as_object,
    call_ids,
    label_of,
    parse_arguments,
    repeated_prefill,
    schema,
    token_count,
)
from heredity.engines.remote.services import HOMES, Usage

PREFILLS = ("continue_final_message", "trailing", "prefix")
_STOPS: dict[str, Stop] = {"length": "length", "content_filter": "filter"}
_ACCOUNT = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}


def open_api(endpoint: Endpoint, key: str) -> ChatCompletions:
    """Return the API of a model."""
    return ChatCompletions(endpoint, key)


class ChatCompletions:
    """An OpenAI-compatible service."""

    holds_schemas = True

    def __init__(self, endpoint: Endpoint, key: str) -> None:
        self._endpoint, self._prefill = endpoint, endpoint.prefill_option
        self.url = self.stream_url = f"{endpoint.base_url.rstrip('/')}/chat/completions"
        self.headers = {"Authorization": f"Bearer {key}"}
        if endpoint.base_url == HOMES["openai"]:  # organization and project go to their vendor only
            named = {header: os.environ.get(variable, "") for header, variable in _ACCOUNT.items()}
            self.headers |= {header: value for header, value in named.items() if value}

    def body(self, request: Request) -> JsonObject:
        endpoint, decoding, extra = self._endpoint, request.decoding, dict(self._endpoint.extra)
        body: JsonObject = {"model": endpoint.model, "messages": self._messages(request, extra)}
        # OpenAI's newer models accept only the new name, other servers often only the old one.
        is_home = endpoint.base_url == HOMES["openai"]
        limit = "max_completion_tokens" if is_home else "max_tokens"
        values: dict[str, tuple[str, float]] = {"max_tokens": (limit, endpoint.token_limit(decoding))}
        values["seed"] = ("seed", request.seed % SEED_BOUND)
        values["temperature"] = ("temperature", decoding.temperature)
        if decoding.top_p != 1.0:
            values["top_p"] = ("top_p", decoding.top_p)
        body |= {name: value for parameter, (name, value) in values.items() if endpoint.sends(parameter)}
        if not isinstance(decoding.json_schema, UnsetType):
            form = {"name": "answer", "schema": json.loads(decoding.json_schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        if request.tools:
            body["tools"] = [{"type": "function", "function": schema(tool)} for tool in request.tools]
        return body | extra

    def as_stream(self, body: JsonObject) -> JsonObject:
        return {**body, "stream": True, "stream_options": {"include_usage": True}}

    def open_stream(self, prefill: str) -> ChunkJoiner:
        return ChunkJoiner(repeated_prefill(prefill, self._prefill))

    def _messages(self, request: Request, extra: JsonObject) -> list[JsonObject]:
        messages = [
            _message(message, ids)
            for message, ids in zip(request.messages, call_ids(request.messages), strict=True)
        ]
        if not request.prefill:
            return messages
        prefill: JsonObject = {"role": "assistant", "content": clean_text(request.prefill)}
        if self._prefill == "continue_final_message":
            extra |= {"continue_final_message": True, "add_generation_prompt": False}
        elif self._prefill == "prefix":
            prefill["prefix"] = True
        elif self._prefill != "trailing":
            raise EngineFailure(
                "chat completions cannot begin the assistant's answer. If this server can, say how it does: "
                f"{self._endpoint.name}?prefill={'|'.join(PREFILLS)}"
            )
        return [*messages, prefill]

    def read(self, answer: JsonObject, prefill: str) -> ApiAnswer:
        choices = as_list(answer.get("choices"), "choices")
        if not choices:
            raise MalformedAnswer("choices is empty")
        choice = as_object(choices[0], "a choice")
        message = as_object(choice.get("message"), "message")
        text = _text(message.get("content"))
        if not text and isinstance(refusal := message.get("refusal"), str):
            text = refusal
        text = text.removeprefix(repeated_prefill(prefill, self._prefill))
        reason = label_of(choice.get("finish_reason"))
        served = label_of(answer.get("model"), answer.get("system_fingerprint"))
        stop, usage = _STOPS.get(reason, "end"), _usage(answer.get("usage"))
        return ApiAnswer(text, _calls(message), stop, reason, usage, served)


class ChunkJoiner:
    """The chunks of one stream, joined. prefill: the beginning that the server repeats; "" if it does not."""

    def __init__(self, prefill: str) -> None:
        self.is_ended, self._without_prefill = False, PrefillRemover(prefill)
        self._pieces: list[str] = []
        self._refusals: list[str] = []
        self._calls: dict[int, dict[str, list[object]]] = {}  # the parts of each value, joined at the end
        self._reason: object = None
        self._rest: JsonObject = {}  # model, system_fingerprint, usage

    def feed(self, event: JsonObject) -> str:
        self._rest |= {key: event[key] for key in ("model", "system_fingerprint", "usage") if event.get(key)}
        return "".join(map(self._feed_choice, as_list(event.get("choices") or [], "choices")))

    def end(self) -> None:
        self.is_ended = True

    def _feed_choice(self, entry: object) -> str:
        choice = as_object(entry, "a choice")
        if choice.get("index") not in (None, 0):
            return ""
        self._reason = choice.get("finish_reason") or self._reason
        delta = as_object(choice.get("delta") or {}, "delta")
        for call in as_list(delta.get("tool_calls") or [], "tool_calls"):
            self._feed_call(as_object(call, "a tool call"))
        if isinstance(refusal := delta.get("refusal"), str):
            self._refusals.append(refusal)
        content = delta.get("content")
        if not isinstance(content, str) or not content:
            return ""
        self._pieces.append(content)
        return self._without_prefill(content)

    def _feed_call(self, call: JsonObject) -> None:
        index = call.get("index")
        fields = self._calls.setdefault(index if isinstance(index, int) else len(self._calls), {})
        for key, value in as_object(call.get("function") or {}, "function").items():
            parts = fields.setdefault(key, [])
            if not (isinstance(value, str) and parts and isinstance(parts[-1], str)):
                parts.clear()
            parts.append(value)

    def answer(self) -> JsonObject:
        """Return the whole answer. A service names the reason of every end: one without it was cut off."""
        if not self.is_ended:
            raise MalformedAnswer("the stream ended without its end marker")
        if self._reason is None:
            raise MalformedAnswer("the stream ended without a finish_reason")
        message: JsonObject = {"content": "".join(self._pieces), "refusal": "".join(self._refusals) or None}
        message["tool_calls"] = [
            {"function": {key: _joined(parts) for key, parts in call.items()}}
            for _, call in sorted(self._calls.items())
        ]
        return {**self._rest, "choices": [{"message": message, "finish_reason": self._reason}]}


def _joined(parts: Sequence[object]) -> object:
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if texts else parts[0]


def _message(message: Message, ids: list[str]) -> JsonObject:
    content = clean_text(message.content)
    if message.role == "tool":
        return {"role": "tool", "content": content, "tool_call_id": ids[0]}
    json_object: JsonObject = {"role": message.role, "content": content}
    if message.tool_calls:
        json_object["tool_calls"] = [
            {
                "id": ident,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call, ident in zip(message.tool_calls, ids, strict=True)
        ]
    return json_object


def _text(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = [part.get("text") for part in as_list(content, "content") if isinstance(part, dict)]
    return "".join(part for part in parts if isinstance(part, str))


def _calls(message: JsonObject) -> tuple[ToolCall, ...]:
    calls = []
    for entry in as_list(message.get("tool_calls") or [], "tool_calls"):
        function = as_object(as_object(entry, "a tool call").get("function"), "function")
        if isinstance(name := function.get("name"), str):
            calls.append(ToolCall(name, parse_arguments(function.get("arguments"))))
    return tuple(calls)


def _usage(usage: object) -> Usage | None:
    if not isinstance(usage, dict) or not isinstance(usage.get("prompt_tokens"), int):
        return None
    details = usage.get("prompt_tokens_details")
    n_cached = token_count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    return Usage(token_count(usage["prompt_tokens"]), token_count(usage.get("completion_tokens")), n_cached)
