"""POST /v1/messages: Anthropic's Messages API, as another form of a chat completion.

Promises: a body is turned into that of /v1/chat/completions, so that the same messages give the same answer.
Errors have Anthropic's form.
Leaves to others: messages, tools and settings (chat.py), and sending (answers.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import msgspec

from heredity.core.errors import UsageError
from heredity.core.records import Reply, encode
from heredity.deploy.serve import chat, schema
from heredity.deploy.serve.answers import FinishedAnswer, ServedAnswer, named_event
from heredity.deploy.serve.schema import ParsedRequest, Refusal, Rules
from heredity.engines.chat import WrittenCall

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_ERRORS = {
    400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip

# Anthropic's client sends `thread` unasked when it runs tools. After these words it goes on without.
_NO_THREADS = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}


class ContentBlock(msgspec.Struct):
    """A block of content. Hints such as `cache_control` are not read."""

    type: str
    text: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, object] = msgspec.field(default_factory=dict)
    tool_use_id: str = ""
    content: str | list[ContentBlock] = ""


class AnthropicTurn(msgspec.Struct):
    """A message of a request body."""

    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


class AnthropicTool(msgspec.Struct):
    """A tool that a caller offers."""

    name: str
    type: str = "custom"
    description: str = ""
    input_schema: dict[str, object] = msgspec.field(default_factory=dict)


class AnthropicToolChoice(msgspec.Struct):
    """Whether the model may call tools."""

    type: str
    name: str = ""
    disable_parallel_tool_use: bool = False


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True):
    """The form of the answer. `effort` is a hint: no model here reads it."""

    effort: str | None = None
    format: dict[str, object] | None = None


class MessagesBody(msgspec.Struct, kw_only=True):
    """The body of POST /v1/messages."""

    model: str
    max_tokens: int
    messages: list[AnthropicTurn]
    system: str | list[ContentBlock] = ""
    stop_sequences: list[str] = msgspec.field(default_factory=list)
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    tools: list[AnthropicTool] = msgspec.field(default_factory=list)
    tool_choice: AnthropicToolChoice | None = None
    thinking: dict[str, object] | None = None
    output_config: OutputConfig | None = None


def parse(given: Mapping[str, object], rules: Rules) -> ParsedRequest:
    """Parse a body of /v1/messages. Raises UsageError."""
    if given.get("thread") is not None:
        raise UsageError(
            "no conversation is kept here: send all its messages, without `thread`", key="thread"
        )
    fields, ignored = schema.select_fields(given, MessagesBody.__struct_fields__, rules.ignores)
    body = schema.convert(fields, MessagesBody)
    if body.thinking is not None and body.thinking.get("type") != "disabled":
        ignored = (*ignored, "thinking")  # a hint: no model here reads it
    output = body.output_config or OutputConfig()
    if output.effort is not None:
        ignored = (*ignored, "output_config.effort")
    messages: list[dict[str, object]] = []
    if text := _text(body.system):
        messages.append({"role": "system", "content": text})
    for turn in body.messages:
        messages += _messages(turn)
    choice = body.tool_choice or AnthropicToolChoice("auto")
    demanded = {"type": "function", "function": {"name": choice.name}}
    same = {
        "model": body.model,
        "messages": messages,
        "tools": [_tool(number, each) for number, each in enumerate(body.tools)],
        "tool_choice": demanded
        if choice.type == "tool"
        else "required"
        if choice.type == "any"
        else choice.type,
        "parallel_tool_calls": not choice.disable_parallel_tool_use,
        "max_tokens": body.max_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "stop": body.stop_sequences,
        "stream": body.stream,
        "response_format": chat.nested(output.format),
    }
    asked = chat.parse(same, rules)
    return replace(asked, ignored=(*asked.ignored, *ignored))


def _text(content: str | Sequence[ContentBlock]) -> str:
    if isinstance(content, str):
        return content
    if (other := next((each.type for each in content if each.type != "text"), None)) is not None:
        raise UsageError(f"a block of type '{other[:80]}' is not supported here", key="messages")
    return "\n".join(each.text for each in content)


def _messages(turn: AnthropicTurn) -> Iterator[dict[str, object]]:
    """Yield the messages of a turn: results of tools first, then its text with its calls."""
    blocks = [ContentBlock("text", turn.content)] if isinstance(turn.content, str) else turn.content
    for each in blocks:
        if each.type == "tool_result":
            yield {"role": "tool", "tool_call_id": each.tool_use_id, "content": _text(each.content)}
    calls = [
        {"id": each.id, "function": {"name": each.name, "arguments": encode(each.input).decode()}}
        for each in blocks
        if each.type == "tool_use"
    ]
    skipped = ("tool_result", "tool_use", "thinking", "redacted_thinking")
    texts = [each for each in blocks if each.type not in skipped]
    if texts or calls or not blocks:
        yield {"role": turn.role, "content": _text(texts), "tool_calls": calls}


def _tool(number: int, given: AnthropicTool) -> dict[str, object]:
    if given.type != "custom":
        raise UsageError(
            f"a tool of type '{given.type[:80]}' is not supported: only custom tools are",
            key=f"tools[{number}].type",
        )
    function = {"name": given.name, "description": given.description, "parameters": given.input_schema}
    return {"type": "function", "function": function}


def error_body(error: Refusal) -> dict[str, object]:
    """Return an error in Anthropic's form."""
    kind = _ERRORS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    body: dict[str, object] = {"type": kind, "message": str(error), "reason": error.reason or error.code}
    if error.param == "thread":
        body["details"] = _NO_THREADS
    return {"type": "error", "error": body}


class MessagesFormat:
    """Formats an answer for /v1/messages."""

    def __init__(self, name: str, fingerprint: str, asked: ParsedRequest) -> None:  # noqa: ARG002
        self._ident, self._name, self._cited = secrets.token_hex(12), name, schema.cited(asked.requests[0])
        self._n_blocks, self._is_open = 0, False

    def whole(self, answers: Sequence[ServedAnswer], replies: Sequence[Reply]) -> dict[str, object]:
        """Return the answer in one body."""
        (answer,) = (a.finished(r) for a, r in zip(answers, replies, strict=True))
        text: list[dict[str, object]] = [{"type": "text", "text": answer.text}] if answer.text else []
        calls = [self._call(number, call) for number, call in enumerate(answer.calls)]
        end = {"stop_reason": _reason(answer), "stop_sequence": answer.cut_at or None}
        return self._message([*text, *calls]) | end | {"usage": _usage(replies)} | self._cited

    def begun(self) -> Iterator[bytes]:
        """Yield the events before the answer. The prompt is not counted yet."""
        yield _event("message_start", message=self._message([]) | {"usage": _usage(())})

    def piece(self, number: int, text: str, is_first: bool) -> Iterator[bytes]:  # noqa: ARG002
        """Yield the next part of the answer."""
        if not text:
            return
        if not self._is_open:
            self._is_open = True
            yield self._block("start", content_block={"type": "text", "text": ""})
        yield self._block("delta", delta={"type": "text_delta", "text": text})

    def last(self, number: int, answer: FinishedAnswer, reply: Reply) -> Iterator[bytes]:  # noqa: ARG002
        """Yield the end of the answer: its calls and its stop reason."""
        if self._is_open:
            yield self._closed()
        for at, call in enumerate(answer.calls):
            block = self._call(at, call)
            yield self._block("start", content_block=block | {"input": {}})
            written = encode(_input(call)).decode()
            yield self._block("delta", delta={"type": "input_json_delta", "partial_json": written})
            yield self._closed()
        end = {"stop_reason": _reason(answer), "stop_sequence": answer.cut_at or None}
        yield _event("message_delta", delta=end, usage=_usage([reply]), **self._cited)

    def ended(self, replies: Sequence[Reply]) -> Iterator[bytes]:  # noqa: ARG002
        """Yield the event after the answer."""
        yield _event("message_stop")

    def failed(self, error: Refusal) -> Iterator[bytes]:
        """Yield the event of a failure."""
        yield named_event("error", error_body(error))

    def _message(self, content: Sequence[object]) -> dict[str, object]:
        return {
            "id": f"msg_{self._ident}",
            "type": "message",
            "role": "assistant",
            "model": self._name,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _call(self, number: int, call: WrittenCall) -> dict[str, object]:
        ident = f"toolu_{self._ident[-8:]}_{number}"
        return {"type": "tool_use", "id": ident, "name": call.name, "input": _input(call)}

    def _block(self, kind: str, **fields: object) -> bytes:
        return _event(f"content_block_{kind}", index=self._n_blocks, **fields)

    def _closed(self) -> bytes:
        event = self._block("stop")
        self._n_blocks += 1
        return event


def _event(kind: str, **fields: object) -> bytes:
    return named_event(kind, {"type": kind, **fields})


def _input(call: WrittenCall) -> dict[str, object]:
    """Return the arguments of a call. Text that is not a JSON object becomes the only one: this API has no
    text."""
    try:
        return msgspec.json.decode(call.arguments, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError):
        return {"arguments": call.arguments}


def _reason(answer: FinishedAnswer) -> str:
    return "stop_sequence" if answer.cut_at and not answer.calls else _REASONS[answer.reason]


def _usage(replies: Sequence[Reply]) -> dict[str, int]:
    counted = schema.usage(replies)
    return {"input_tokens": counted["prompt_tokens"], "output_tokens": counted["completion_tokens"]}
