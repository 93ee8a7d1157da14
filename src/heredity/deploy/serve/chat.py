"""POST /v1/chat/completions: the body, and the format of its answers.

Promises: OpenAI's format, in one body or as chunks; a tool call arrives in one chunk. If passages were
retrieved, `citations` has their places, as in some other services.
Leaves to others: the shared fields (schema.py), messages (conversation.py), and sending (answers.py).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence

import msgspec
from msgspec import UnsetType

from heredity.core.errors import UsageError
from heredity.core.records import Reply
from heredity.deploy.serve import schema
from heredity.deploy.serve.answers import FinishedAnswer, ServedAnswer, sent
from heredity.deploy.serve.conversation import (
    ChatMessage,
    OfferedTool,
    check_tools,
    converse,
    read_tools,
)
from heredity.deploy.serve.schema import CallReading, ParsedRequest, Refusal, Rules
from heredity.deploy.serve.structured import demanded_call, read_schema
from heredity.engines.protocols import TokenLog

_UNREAD = {"name", "annotations", "audio", "refusal", "reasoning_content", "parsed"}  # of a message


class ChatBody(schema.Body, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage]
    tools: list[OfferedTool] = msgspec.field(default_factory=list)
    tool_choice: str | dict[str, object] = "auto"
    parallel_tool_calls: bool = True
    logprobs: bool = False
    top_logprobs: int | None = None
    response_format: dict[str, object] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


def parse(given: Mapping[str, object], rules: Rules) -> ParsedRequest:
    """Parse a body of /v1/chat/completions. Raises UsageError."""
    fields, ignored = schema.select_fields(given, ChatBody.__struct_fields__, rules.ignores)
    if isinstance(messages := fields.get("messages"), list):
        fields["messages"] = [_without_empty(each) for each in messages]
    body = schema.convert(fields, ChatBody)
    tools = read_tools(body.tools)
    check_tools(tools, rules)
    call = demanded_call(body.tool_choice, tools, rules)
    is_off = body.tool_choice == "none"
    _check_prefill(body)
    if body.top_logprobs and not body.logprobs:
        raise UsageError("top_logprobs needs logprobs: true", code="bad-setting", key="top_logprobs")
    n_top = (body.top_logprobs or 0) if body.logprobs else None
    schema.check_logs(n_top, rules)
    decoding, held = schema.read_decoding(body, rules)
    output = read_schema(body.response_format, rules, bool(tools) and not is_off)
    output = call if isinstance(output, UnsetType) else output
    if not isinstance(output, UnsetType):
        decoding = msgspec.structs.replace(decoding, json_schema=output)
    request = converse(body.messages, () if is_off else tools, rules, decoding, body.seed or 0)
    # Inside an application its own descriptions hold, and the caller's only repeat the names.
    repeated = ("tools",) if tools and rules.application is not None else ()
    return ParsedRequest(
        schema.several(body, [request]),
        schema.stop_texts(body),
        body.stream,
        schema.with_usage(body),
        CallReading(tuple(tool.name for tool in tools), is_off, body.parallel_tool_calls),
        (*held, *ignored, *repeated),
        n_top,
    )


def _check_prefill(body: ChatBody) -> None:
    """Raise UsageError if vLLM's fields ask for another end of the prompt than the messages give it."""
    is_begun = bool(body.messages) and body.messages[-1].role == "assistant"
    if body.continue_final_message not in (None, is_begun):
        raise UsageError(
            "a last message of the assistant is continued, and no other one is",
            code="nothing-to-answer",
            key="continue_final_message",
        )
    if body.add_generation_prompt not in (None, not is_begun):
        raise UsageError(
            "the assistant's turn is opened, unless the last message is a part of it",
            code="nothing-to-answer",
            key="add_generation_prompt",
        )


def _without_empty(message: object) -> object:
    """Drop fields of a message that are empty or change nothing, because clients send back what they
    received."""
    if not isinstance(message, dict):
        return message
    kept = {key: value for key, value in message.items() if value not in (None, []) and key not in _UNREAD}
    if isinstance(calls := kept.get("tool_calls"), list):
        kept["tool_calls"] = [_without_parsed(call) for call in calls]
    return kept


def _without_parsed(call: object) -> object:
    """Drop the arguments that OpenAI's client parsed, which it sends back next to their text."""
    if not isinstance(call, dict) or not isinstance(function := call.get("function"), dict):
        return call
    return call | {"function": {key: value for key, value in function.items() if key != "parsed_arguments"}}


class ChatFormat:
    """Formats answers for /v1/chat/completions."""

    kind, chunk = "chat.completion", "chat.completion.chunk"

    def __init__(self, name: str, fingerprint: str, asked: ParsedRequest) -> None:
        self._ident = f"chatcmpl-{secrets.token_hex(12)}"
        self._with_usage = asked.with_usage
        self._head = {
            "id": self._ident,
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": fingerprint,
        }
        self._cited = schema.cited(asked.requests[0])

    def whole(self, answers: Sequence[ServedAnswer], replies: Sequence[Reply]) -> dict[str, object]:
        """Return all answers in one body."""
        choices = [self._choice(a.number, a.finished(r)) for a, r in zip(answers, replies, strict=True)]
        usage = schema.usage(replies)
        return {"object": self.kind, **self._head, "choices": choices, "usage": usage, **self._cited}

    def begun(self) -> Iterator[bytes]:
        """Yield the events before the first answer."""
        return iter(())

    def piece(self, number: int, text: str, is_first: bool) -> Iterator[bytes]:
        """Yield the next part of an answer."""
        yield self._event(self._piece(number, text, is_first))

    def last(self, number: int, answer: FinishedAnswer, reply: Reply) -> Iterator[bytes]:  # noqa: ARG002
        """Yield the end of an answer: its calls and its finish reason."""
        yield self._event(self._last(number, answer), **self._cited)

    def ended(self, replies: Sequence[Reply]) -> Iterator[bytes]:
        """Yield the events after the last answer."""
        if self._with_usage:
            yield self._event(usage=schema.usage(replies))
        yield b"data: [DONE]\n\n"

    def failed(self, error: Refusal) -> Iterator[bytes]:
        """Yield the event of a failure."""
        yield sent(error.body)

    def _event(self, *choices: dict[str, object], **more: object) -> bytes:
        return sent({"object": self.chunk, **self._head, "choices": list(choices), **more})

    def _piece(self, number: int, text: str, is_first: bool) -> dict[str, object]:
        delta = {"role": "assistant", "content": text} if is_first else {"content": text}
        return {"index": number, "delta": delta, "finish_reason": None}

    def _last(self, number: int, answer: FinishedAnswer) -> dict[str, object]:
        calls = [{"index": i, **each} for i, each in enumerate(self._calls(number, answer))]
        return {
            "index": number,
            "delta": {"tool_calls": calls} if calls else {},
            "logprobs": _logprobs(answer.logs),
            "finish_reason": answer.reason,
        }

    def _choice(self, number: int, answer: FinishedAnswer) -> dict[str, object]:
        content = answer.text if answer.text or not answer.calls else None
        message: dict[str, object] = {"role": "assistant", "content": content, "refusal": None}
        if answer.calls:
            message["tool_calls"] = self._calls(number, answer)
        logs = _logprobs(answer.logs)
        return {"index": number, "message": message, "logprobs": logs, "finish_reason": answer.reason}

    def _calls(self, number: int, answer: FinishedAnswer) -> list[dict[str, object]]:
        ident = f"{self._ident[-8:]}_{number}"
        return [
            {
                "id": f"call_{ident}_{i}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for i, call in enumerate(answer.calls)
        ]


def _logprobs(logs: Sequence[TokenLog] | None) -> dict[str, object] | None:
    if logs is None:
        return None
    content = [
        _token(each.text, each.log) | {"top_logprobs": [_token(text, log) for text, log in each.top]}
        for each in logs
    ]
    return {"content": content, "refusal": None}


def _token(text: str, log: float | None) -> dict[str, object]:
    is_part = "\ufffd" in text  # of a character: its bytes are not in the text
    return {"token": text, "logprob": log, "bytes": None if is_part else list(text.encode())}
