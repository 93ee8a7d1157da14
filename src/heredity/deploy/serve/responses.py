"""POST /v1/responses: OpenAI's Responses API, as another form of a chat completion.

Promises: a body is turned into that of /v1/chat/completions, so that the same messages give the same answer.
Nothing is stored: a body that refers to an earlier response is refused by name.
Leaves to others: messages, tools and settings (chat.py), and sending (answers.py).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import msgspec

from heredity.core.errors import UsageError
from heredity.core.records import Reply
from heredity.deploy.serve import chat, schema
from heredity.deploy.serve.answers import FinishedAnswer, ServedAnswer, named_event
from heredity.deploy.serve.schema import ParsedRequest, Refusal, Rules

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_REFERRING = ("previous_response_id", "conversation", "prompt", "background")


class InputPart(msgspec.Struct):
    """A part of a message: text in, or text out that comes back."""

    type: str
    text: str = ""


class InputItem(msgspec.Struct):
    """An item of the input: a message, a call that comes back, or its result."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] = "user"
    content: str | list[InputPart] = ""
    call_id: str = ""
    name: str = ""
    arguments: str = "{}"
    output: str | list[InputPart] = ""


class ResponsesTool(msgspec.Struct):
    """A tool that a caller offers."""

    type: str
    name: str = ""
    description: str | None = None
    parameters: dict[str, object] | None = None


class ResponsesBody(msgspec.Struct, kw_only=True):
    """The body of POST /v1/responses."""

    model: str
    input: str | list[InputItem]
    instructions: str = ""
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool = False
    stream_options: dict[str, object] | None = None
    tools: list[ResponsesTool] = msgspec.field(default_factory=list)
    tool_choice: str | dict[str, object] = "auto"
    parallel_tool_calls: bool = True
    text: dict[str, object] = msgspec.field(default_factory=dict)
    reasoning: dict[str, object] = msgspec.field(default_factory=dict)
    include: list[str] = msgspec.field(default_factory=list)
    truncation: str = "disabled"
    max_tool_calls: int | None = None


# Fields of /v1/chat/completions that have another name here.
_HERE = {chat.FIELD: "text", "messages": "input", "max_tokens": "max_output_tokens"}


def parse(given: Mapping[str, object], rules: Rules) -> ParsedRequest:
    """Parse a body of /v1/responses. Raises UsageError."""
    if (key := next((key for key in _REFERRING if given.get(key)), "")) != "":
        raise UsageError(
            f"'{key}' is not supported: nothing is stored here. Send the whole conversation as `input`",
            key=key,
        )
    kept = {key: value for key, value in given.items() if key not in _REFERRING}
    fields, ignored = schema.select_fields(kept, ResponsesBody.__struct_fields__, rules.ignores)
    body = schema.convert(fields, ResponsesBody)
    if body.truncation != "disabled":
        raise UsageError("a conversation is never truncated here", key="truncation")
    hints = [key for key in ("reasoning", "include") if getattr(body, key)]
    messages: list[dict[str, object]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    items = [InputItem(content=body.input)] if isinstance(body.input, str) else body.input
    for number, item in enumerate(items):
        _add(messages, item, number)
    same = {
        "model": body.model,
        "messages": messages,
        "tools": [_tool(each) for each in body.tools],
        "tool_choice": _choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "max_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "stream": body.stream,
        "response_format": chat.nested(body.text.get("format")),
    }
    try:
        asked = chat.parse(same, rules)
    except UsageError as error:
        raise UsageError(str(error), code=error.code, key=_HERE.get(error.key, error.key)) from None
    return replace(asked, ignored=(*asked.ignored, *ignored, *hints))


def _choice(given: str | dict[str, object]) -> object:
    """The choice as /v1/chat/completions takes it."""
    if isinstance(given, dict) and given.get("type") == "function":
        return {"type": "function", "function": {"name": given.get("name")}}
    return given


def _add(messages: list[dict[str, object]], item: InputItem, number: int) -> None:
    """Append an item to the messages; a call belongs to the assistant's message before it."""
    if item.type == "message":
        messages.append({"role": item.role, "content": _text(item.content, number)})
    elif item.type == "function_call_output":
        output = _text(item.output, number)
        messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
    elif item.type == "function_call":
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        call = {"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments}}
        calls = messages[-1].setdefault("tool_calls", [])
        assert isinstance(calls, list)
        calls.append(call)
    elif item.type != "reasoning":  # of another model, sent back
        raise UsageError(f"an item of type '{item.type[:80]}' is not supported", key=f"input[{number}]")


def _text(content: str | Sequence[InputPart], number: int) -> str:
    if isinstance(content, str):
        return content
    kinds = ("input_text", "output_text", "text")
    if (other := next((each.type for each in content if each.type not in kinds), None)) is not None:
        raise UsageError(
            f"a part of type '{other[:80]}' is not supported: only text is", key=f"input[{number}].content"
        )
    return "".join(each.text for each in content)


def _tool(given: ResponsesTool) -> dict[str, object]:
    function = {"name": given.name, "description": given.description, "parameters": given.parameters}
    return {"type": given.type, "function": function}


class ResponsesFormat:
    """Formats an answer for /v1/responses."""

    def __init__(self, name: str, fingerprint: str, asked: ParsedRequest) -> None:  # noqa: ARG002
        self._ident, self._n_events, self._is_open = secrets.token_hex(12), 0, False
        first = asked.requests[0]
        self._cited = schema.cited(first)
        self._head: dict[str, object] = {
            "id": f"resp_{self._ident}",
            "object": "response",
            "created_at": int(time.time()),
            "model": name,
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            "instructions": None,
            "metadata": {},
            "parallel_tool_calls": asked.calls.is_parallel,
            "temperature": first.decoding.temperature,
            "top_p": first.decoding.top_p,
            "max_output_tokens": first.decoding.max_tokens,
            "tool_choice": "none" if asked.calls.is_off else "auto",
            "tools": [
                {"type": "function", "name": tool.name, "parameters": tool.arguments_schema, "strict": False}
                for tool in first.tools
            ],
            "previous_response_id": None,
            "store": False,
            "text": {"format": {"type": "text"}},
            "truncation": "disabled",
        }

    def whole(self, answers: Sequence[ServedAnswer], replies: Sequence[Reply]) -> dict[str, object]:
        """Return the answer in one body."""
        (answer,) = (a.finished(r) for a, r in zip(answers, replies, strict=True))
        return self._response(answer, replies[0])

    def begun(self) -> Iterator[bytes]:
        """Yield the events before the answer."""
        started = {
            **self._head,
            "status": "in_progress",
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }
        yield self._event("response.created", response=started)
        yield self._event("response.in_progress", response=started)

    def piece(self, number: int, text: str, is_first: bool) -> Iterator[bytes]:  # noqa: ARG002
        """Yield the next part of the answer."""
        if not text:
            return
        yield from self._opened()
        yield self._of_text("response.output_text.delta", delta=text, logprobs=[])

    def _opened(self) -> Iterator[bytes]:
        """Yield the events before a text, once."""
        if self._is_open:
            return
        self._is_open = True
        item = self._message("", "in_progress") | {"content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._of_text("response.content_part.added", part=_part(""))

    def last(self, number: int, answer: FinishedAnswer, reply: Reply) -> Iterator[bytes]:  # noqa: ARG002
        """Yield the end of the answer: its text as a whole, its calls and its state."""
        if answer.text or not answer.calls:
            yield from self._opened()
            yield self._of_text("response.output_text.done", text=answer.text, logprobs=[])
            yield self._of_text("response.content_part.done", part=_part(answer.text))
        done = self._response(answer, reply)
        output = done["output"]
        assert isinstance(output, list)
        for at, item in enumerate(output):
            if item["type"] == "function_call":
                yield from self._call_events(at, item)
            yield self._event("response.output_item.done", output_index=at, item=item)
        yield self._event(f"response.{done['status']}", response=done)

    def ended(self, replies: Sequence[Reply]) -> Iterator[bytes]:  # noqa: ARG002
        """Yield no event: the state of the response is the last one."""
        return iter(())

    def failed(self, error: Refusal) -> Iterator[bytes]:
        """Yield the event of a failure."""
        failure = {"code": error.code, "message": str(error)}
        response = {
            **self._head,
            "status": "failed",
            "error": failure,
            "incomplete_details": None,
            "output": [],
        }
        yield self._event("response.failed", response=response)

    def _call_events(self, at: int, item: dict[str, object]) -> Iterator[bytes]:
        added = item | {"arguments": "", "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=at, item=added)
        of = {"item_id": item["id"], "output_index": at}
        written = item["arguments"]
        yield self._event("response.function_call_arguments.delta", **of, delta=written)
        yield self._event("response.function_call_arguments.done", **of, name=item["name"], arguments=written)

    def _response(self, answer: FinishedAnswer, reply: Reply) -> dict[str, object]:
        why = _INCOMPLETE.get(answer.reason)
        status = "incomplete" if why else "completed"
        output = [self._message(answer.text, status)] if answer.text or not answer.calls else []
        ident = f"{self._ident[-8:]}"
        output += [
            {
                "type": "function_call",
                "id": f"fc_{ident}_{i}",
                "call_id": f"call_{ident}_{i}",
                "name": call.name,
                "arguments": call.arguments,
                "status": "completed",
            }
            for i, call in enumerate(answer.calls)
        ]
        counted = schema.usage([reply])
        usage = {
            "input_tokens": counted["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": counted["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counted["total_tokens"],
        }
        details = {"reason": why} if why else None
        return {
            **self._head,
            "status": status,
            "incomplete_details": details,
            "output": output,
            "usage": usage,
            **self._cited,
        }

    def _message(self, text: str, status: str) -> dict[str, object]:
        content = [_part(text)]
        ident = f"msg_{self._ident[-8:]}"
        return {"type": "message", "id": ident, "status": status, "role": "assistant", "content": content}

    def _of_text(self, kind: str, **fields: object) -> bytes:
        return self._event(kind, item_id=f"msg_{self._ident[-8:]}", output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: object) -> bytes:
        self._n_events += 1
        return named_event(kind, {"type": kind, "sequence_number": self._n_events - 1, **fields})


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
