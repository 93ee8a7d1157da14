"""Anthropic's Messages.

The application's shared messages are marked for the prompt cache of the service. A prefill is a last message
of the assistant; models without prefill refuse it in their own words. There is no seed. API version
2026-10-21 removed temperature and top_p: the service samples as it likes. For older models that still accept
them, the option `anthropic_version=2023-06-01` uses the older version and sends them.

Promises: the account of the engine and the report name what is not sent; nothing is dropped quietly.
Thinking blocks are not part of an answer.
"""

from __future__ import annotations

from heredity.core.errors import EngineFailure
from heredity.core.records import Message, Request, Stop, ToolCall
from heredity.core.sanitize import clean_text
from heredity.engines.remote.apis import (
    ApiAnswer,
    Endpoint,
    JsonObject,
    MalformedAnswer,
    as_list,
    as_object,
    call_ids,
    label_of,
    parse_arguments,
    token_count,
)
from heredity.engines.remote.services import Usage

_STOPS: dict[str, Stop] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "filter",
}
_VERSION = "2026-10-21"
_CACHED = {"type": "ephemeral"}
_GROWING = {"text": "text", "tool_use": "partial_json"}  # kind of block -> the field of its deltas


def open_api(endpoint: Endpoint, key: str) -> AnthropicMessages:
    """Return the API of a model."""
    return AnthropicMessages(endpoint, key)


class AnthropicMessages:
    """Anthropic's service."""

    holds_schemas = False

    def __init__(self, endpoint: Endpoint, key: str) -> None:
        self._endpoint = endpoint
        self.url = self.stream_url = f"{endpoint.base_url.rstrip('/')}/v1/messages"
        version = str(endpoint.options.get("anthropic_version") or _VERSION)
        self.headers = {"Authorization": f"Bearer {key}", "anthropic-version": version}

    def body(self, request: Request) -> JsonObject:
        endpoint, decoding, extra = self._endpoint, request.decoding, dict(self._endpoint.extra)
        body: JsonObject = {
            "model": endpoint.model,
            "max_tokens": endpoint.token_limit(decoding),
            "messages": _messages(request),
        }
        text = "\n\n".join(
            clean_text(m.content) for m in request.messages if m.role == "system" and m.content
        )
        if text:
            body["system"] = [{"type": "text", "text": text, "cache_control": _CACHED}]
        if endpoint.sends("temperature"):
            extra["temperature"] = decoding.temperature
        if decoding.top_p != 1.0 and endpoint.sends("top_p"):
            extra["top_p"] = decoding.top_p
        if request.tools:
            body["tools"] = [
                (
                    {
                        "name": tool.name,
                        "description": tool.description,
                        "input_schema": tool.arguments_schema,
                    }
                )
                for tool in request.tools
            ]
        return body | extra

    def as_stream(self, body: JsonObject) -> JsonObject:
        return {**body, "stream": True}

    def open_stream(self, prefill: str) -> EventJoiner:  # noqa: ARG002 (never repeated)
        return EventJoiner()

    def read(self, answer: JsonObject, prefill: str) -> ApiAnswer:  # noqa: ARG002 (never repeated)
        texts, calls = [], []
        for entry in as_list(answer.get("content"), "content"):
            block = as_object(entry, "a block of content")
            texts.append(_text(block))
            if block.get("type") == "tool_use" and isinstance(name := block.get("name"), str):
                calls.append(ToolCall(name, parse_arguments(block.get("input"))))
        reason = label_of(answer.get("stop_reason"))
        stop = _STOPS.get(reason, "end")
        if isinstance(details := answer.get("stop_details"), dict):
            reason = label_of(reason, details.get("category"))
        usage = _usage(answer.get("usage"))
        return ApiAnswer("".join(texts), tuple(calls), stop, reason, usage, label_of(answer.get("model")))


class EventJoiner:
    """The events of one stream, joined. Events of unknown kinds are skipped: the service adds some."""

    def __init__(self) -> None:
        self.is_ended = False
        self._message: JsonObject = {}
        self._usage: JsonObject = {}
        self._blocks: dict[str, JsonObject] = {}  # of content, by index
        self._grown: dict[str, list[str]] = {}  # the parts of each

    def feed(self, event: JsonObject) -> str:
        kind = event.get("type")
        if kind == "message_start":
            message = as_object(event.get("message"), "message")
            self._update(message, message.get("usage"))
        elif kind == "message_delta":
            self._update(as_object(event.get("delta") or {}, "delta"), event.get("usage"))
        elif kind == "content_block_start":
            index = str(event.get("index"))
            block = as_object(event.get("content_block"), "a block")
            if index in self._blocks:
                raise MalformedAnswer("a block began twice")
            self._blocks[index], self._grown[index] = block, []
            return _text(block)
        elif kind == "content_block_delta":
            return self._grow(str(event.get("index")), as_object(event.get("delta"), "delta"))
        elif kind == "message_stop":
            self.end()
        return ""

    def end(self) -> None:
        self.is_ended = True

    def _update(self, more: JsonObject, usage: object) -> None:
        """Note fields of the message. Usage is that of the whole message so far."""
        self._message |= more
        if isinstance(usage, dict):
            self._usage |= {name: n for name, n in usage.items() if n is not None}

    def _grow(self, index: str, delta: JsonObject) -> str:
        """Add a delta to its block; return the text that the answer grows by. Thoughts are not part of it."""
        if index not in self._blocks:
            raise MalformedAnswer("a part of a block came before its start")
        kind = self._blocks[index].get("type")
        more = delta.get(_GROWING.get(str(kind), ""))
        if not isinstance(more, str):
            return ""
        self._grown[index].append(more)
        return more if kind == "text" else ""

    def answer(self) -> JsonObject:
        """Return the whole answer. A service names the reason of every end: one without it was cut off."""
        if not self.is_ended:
            raise MalformedAnswer("the stream ended without message_stop")
        if self._message.get("stop_reason") is None:
            raise MalformedAnswer("the stream ended without a stop_reason")
        content = [_grown(block, "".join(self._grown[index])) for index, block in self._blocks.items()]
        return {**self._message, "usage": self._usage, "content": content}


def _grown(block: JsonObject, more: str) -> JsonObject:
    """A block with the parts that followed its start."""
    if block.get("type") == "text":
        return {**block, "text": _text(block) + more}
    return {**block, "input": more or block.get("input")}


def _text(block: JsonObject) -> str:
    """The text of the answer in a block; "" in one of another kind."""
    text = block.get("text")
    return text if block.get("type") == "text" and isinstance(text, str) else ""


def _messages(request: Request) -> list[JsonObject]:
    turns: list[tuple[str, list[JsonObject]]] = []
    ids = call_ids(request.messages)
    for number, (message, own) in enumerate(zip(request.messages, ids, strict=True), 1):
        if message.role == "system":
            if number > 1 and turns:
                raise EngineFailure("Anthropic's Messages accept a system message only at the start")
            continue
        blocks = _blocks(message, own)
        if number == request.n_shared and blocks:
            blocks[-1]["cache_control"] = _CACHED  # the shared messages end here
        role = "assistant" if message.role == "assistant" else "user"
        if turns and turns[-1][0] == role:  # results of several calls form one message
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    if request.prefill:
        turns.append(("assistant", [{"type": "text", "text": clean_text(request.prefill)}]))
    return [{"role": role, "content": blocks} for role, blocks in turns]


def _blocks(message: Message, ids: list[str]) -> list[JsonObject]:
    content = clean_text(message.content)
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": ids[0], "content": content}]
    # an empty text is refused: it is left out beside calls; alone it is sent, and the service refuses it
    blocks: list[JsonObject] = (
        [{"type": "text", "text": content}] if content or not message.tool_calls else []
    )
    return blocks + [
        {"type": "tool_use", "id": ident, "name": call.name, "input": call.arguments}
        for call, ident in zip(message.tool_calls, ids, strict=True)
    ]


def _usage(usage: object) -> Usage | None:
    if not isinstance(usage, dict) or not isinstance(usage.get("input_tokens"), int):
        return None
    n_cached, n_written = (
        token_count(usage.get(f"cache_{what}_input_tokens")) for what in ("read", "creation")
    )
    n_prompt = token_count(usage["input_tokens"]) + n_cached + n_written
    return Usage(n_prompt, token_count(usage.get("output_tokens")), n_cached, n_written)
