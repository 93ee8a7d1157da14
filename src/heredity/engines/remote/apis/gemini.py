"""Google's Gemini, as its Developer API serves it.

A block by the safety filter of the service is an answer with stop "filter". The documents of the API know no
prefill; the option `prefill=trailing` sends one as a last message of the model.

Promises: a parameter is sent, or its absence is an option of the model; nothing is dropped quietly.
Thoughts of the model are not part of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from heredity.core.errors import EngineFailure
from heredity.core.records import Message, Request, Stop, Tool, ToolCall
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
    label_of,
    parse_arguments,
    repeated_prefill,
    token_count,
)
from heredity.engines.remote.services import Usage

_FOLDERS = ("models/", "tunedModels/")  # a model whose name has one of them is sent as it is
_FILTERS = ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "MODEL_ARMOR")
_STOPS: dict[str, Stop] = {"MAX_TOKENS": "length", **dict.fromkeys(_FILTERS, "filter")}


def open_api(endpoint: Endpoint, key: str) -> Gemini:
    """Return the API of a model."""
    return Gemini(endpoint, key)


class Gemini:
    """Google's service."""

    holds_schemas = False

    def __init__(self, endpoint: Endpoint, key: str) -> None:
        self._endpoint = endpoint
        model = endpoint.model if endpoint.model.startswith(_FOLDERS) else f"models/{endpoint.model}"
        at = f"{endpoint.base_url.rstrip('/')}/v1beta/{quote(model, safe='/:@')}"
        self.url, self.stream_url = f"{at}:generateContent", f"{at}:streamGenerateContent?alt=sse"
        self.headers = {"x-goog-api-key": key}

    def body(self, request: Request) -> JsonObject:
        endpoint, decoding = self._endpoint, request.decoding
        values: dict[str, tuple[str, float]] = {
            "max_tokens": ("maxOutputTokens", endpoint.token_limit(decoding)),
            "temperature": ("temperature", decoding.temperature),
            "top_p": ("topP", decoding.top_p),
            "seed": ("seed", request.seed % SEED_BOUND),
        }
        config = {name: value for parameter, (name, value) in values.items() if endpoint.sends(parameter)}
        turns: list[tuple[str, list[JsonObject]]] = []
        names: list[str] = []
        for message in request.messages:
            if message.role == "system":
                continue
            names = [call.name for call in message.tool_calls] or names
            role, parts = "model" if message.role == "assistant" else "user", _parts(message, names)
            if turns and turns[-1][0] == role:
                turns[-1][1].extend(parts)
            else:
                turns.append((role, parts))
        if request.prefill:
            if self._endpoint.prefill_option != "trailing":
                raise EngineFailure(
                    "Gemini's API does not document that it can begin the assistant's answer. To send a "
                    f"last message of the model nevertheless: {self._endpoint.name}?prefill=trailing"
                )
            turns.append(("model", [{"text": clean_text(request.prefill)}]))
        body: JsonObject = {
            "contents": [{"role": role, "parts": parts} for role, parts in turns],
            "generationConfig": config,
        }
        if system := [clean_text(m.content) for m in request.messages if m.role == "system" and m.content]:
            body["systemInstruction"] = {"role": "user", "parts": [{"text": "\n\n".join(system)}]}
        if request.tools:
            declared = [_tool(tool) for tool in request.tools]
            body["tools"] = [{"functionDeclarations": declared}]
        return _merge(body, endpoint.extra)

    def as_stream(self, body: JsonObject) -> JsonObject:
        return body

    def open_stream(self, prefill: str) -> ResponseJoiner:
        return ResponseJoiner(repeated_prefill(prefill, self._endpoint.prefill_option))

    def read(self, answer: JsonObject, prefill: str) -> ApiAnswer:
        usage = _usage(answer.get("usageMetadata"))
        served = label_of(answer.get("modelVersion"))
        if reason := _block_reason(answer):
            return ApiAnswer("", (), "filter", reason, usage, served)
        candidates = as_list(answer.get("candidates"), "candidates")
        if not candidates:
            raise MalformedAnswer("candidates is empty, and no reason is given")
        candidate = as_object(candidates[0], "a candidate")
        reason = label_of(candidate.get("finishReason"))
        content = candidate.get("content")
        if content is None and not reason:
            raise MalformedAnswer("a candidate has neither content nor an end")
        parts = as_object(content or {}, "content").get("parts") or []
        text, calls = _read(as_list(parts, "parts"))
        text = text.removeprefix(repeated_prefill(prefill, self._endpoint.prefill_option))
        return ApiAnswer(text, calls, _STOPS.get(reason, "end"), reason, usage, served)


class ResponseJoiner:
    """The responses of one stream, joined: each has more parts of the answer.

    No marker ends a stream: the connection does, and the last parts come with the reason of the end.
    prefill: the beginning that the server repeats; "" if it does not.
    """

    def __init__(self, prefill: str) -> None:
        self.is_ended, self._without_prefill = False, PrefillRemover(prefill)
        self._parts: list[object] = []
        self._reason: object = None
        self._rest: JsonObject = {}  # modelVersion, promptFeedback
        self._usage: JsonObject = {}

    def feed(self, event: JsonObject) -> str:
        self._rest |= {key: event[key] for key in ("modelVersion", "promptFeedback") if event.get(key)}
        if isinstance(usage := event.get("usageMetadata"), dict):  # of the whole answer so far
            self._usage |= usage
        return "".join(map(self._feed_candidate, as_list(event.get("candidates") or [], "candidates")))

    def end(self) -> None:
        self.is_ended = True

    def _feed_candidate(self, entry: object) -> str:
        candidate = as_object(entry, "a candidate")
        if candidate.get("index") not in (None, 0):
            return ""
        content = as_object(candidate.get("content") or {}, "content")
        parts = as_list(content.get("parts") or [], "parts")
        text, calls = _read(parts)
        # Some services name a reason before the end: then it counts only if nothing of the answer follows.
        self._reason = candidate.get("finishReason") or (None if text or calls else self._reason)
        self._parts += parts
        return self._without_prefill(text)

    def answer(self) -> JsonObject:
        """Return the whole answer. A service names the reason of every end: one without it was cut off."""
        whole = {**self._rest, "usageMetadata": self._usage}
        if _block_reason(whole):
            return whole
        if not self._reason:
            raise MalformedAnswer("the stream ended without a finishReason")
        return {
            **whole,
            "candidates": [{"content": {"parts": self._parts}, "finishReason": self._reason}],
        }


def _block_reason(answer: JsonObject) -> str:
    """The reason for which the prompt was blocked; "" if it was not."""
    feedback = answer.get("promptFeedback")
    return label_of(feedback.get("blockReason")) if isinstance(feedback, dict) else ""


def _merge(body: Mapping[str, object], extra: Mapping[str, object]) -> JsonObject:
    """Add extra fields; objects of one name are merged, so that an option can extend `generationConfig`."""
    merged = dict(body)
    for name, value in extra.items():
        there = merged.get(name)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            merged[name] = _merge(there, value)
        else:
            merged[name] = value
    return merged


def _tool(tool: Tool) -> JsonObject:
    json_object: JsonObject = {"name": tool.name, "description": tool.description}
    if tool.arguments_schema.get("properties"):
        json_object["parametersJsonSchema"] = tool.arguments_schema
    return json_object


def _parts(message: Message, waiting: list[str]) -> list[JsonObject]:
    content = clean_text(message.content)
    if message.role == "tool":
        name = waiting.pop(0) if waiting else "tool"
        return [{"functionResponse": {"name": name, "response": {"result": content}}}]
    parts: list[JsonObject] = [{"text": content}] if content or not message.tool_calls else []
    return parts + [
        {"functionCall": {"name": call.name, "args": call.arguments}} for call in message.tool_calls
    ]


def _read(parts: list[object]) -> tuple[str, tuple[ToolCall, ...]]:
    texts, calls = [], []
    for entry in parts:
        part = as_object(entry, "a part")
        if isinstance(text := part.get("text"), str) and not part.get("thought"):
            texts.append(text)
        if isinstance(call := part.get("functionCall"), dict) and isinstance(call.get("name"), str):
            calls.append(ToolCall(call["name"], parse_arguments(call.get("args"))))
    return "".join(texts), tuple(calls)


def _usage(usage: object) -> Usage | None:
    if not isinstance(usage, dict) or not isinstance(usage.get("promptTokenCount"), int):
        return None
    n_answer = token_count(usage.get("candidatesTokenCount")) + token_count(usage.get("thoughtsTokenCount"))
    return Usage(
        token_count(usage["promptTokenCount"]), n_answer, token_count(usage.get("cachedContentTokenCount"))
    )
