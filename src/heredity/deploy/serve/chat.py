"""POST /v1/chat/completions and /v1/completions: their bodies, with messages, tools and schemas, and answers.

Promises: OpenAI's format, in one body or as chunks; a tool call arrives in one chunk. If passages were
retrieved, `citations` has their places, as in some other services. Inside an application the model sees what
it sees in a study, and nothing of the caller's replaces that. A caller's tools go through the model's own
template, with their JSON schemas as they were sent. A schema that the engine cannot hold answers to is
refused, with the reason. A plain text is continued as it is, without a chat template. With `echo` it comes
back with the answer, and with `logprobs` every token of both has its log-probability, as lm-eval needs it.
Leaves to others: the shared fields (schema.py), sending answers and reading their calls (answers.py), and the
tokens that may come next (engines/torch/sampling.py).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from heredity.application.conversation import ApplicationSession
from heredity.application.retrieval import user_message
from heredity.application.spec import Application
from heredity.core.errors import BadArgument, ContextOverflow, UsageError
from heredity.core.records import Decoding, Message, Reply, Request, Retrieved, Tool, ToolCall, encode
from heredity.deploy.serve import schema
from heredity.deploy.serve.answers import FinishedAnswer, ServedAnswer, sent
from heredity.deploy.serve.schema import (
    MAX_VALUES,
    CallReading,
    Echo,
    ParsedRequest,
    Refusal,
    Rules,
    n_values,
)
from heredity.engines import TokenLog
from heredity.engines.chat import parse_tool_calls

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
            "a last message of the assistant is continued, and no other one is", key="continue_final_message"
        )
    if body.add_generation_prompt not in (None, not is_begun):
        raise UsageError(
            "the assistant's turn is opened, unless the last message is a part of it",
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


MAX_TOOLS = 128


class MessagePart(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a message. Only text is supported; the content of other types is not read."""

    type: str
    text: str = ""
    image_url: object = None
    input_audio: object = None
    file: object = None


class Called(msgspec.Struct, forbid_unknown_fields=True):
    """The name and the arguments of a tool call, as JSON text."""

    name: str
    arguments: str = "{}"


class AssistantToolCall(msgspec.Struct, forbid_unknown_fields=True):
    """A tool call of the assistant."""

    id: str
    function: Called
    type: str = "function"
    index: int = 0  # its number in a stream


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A message of a request body."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[MessagePart] | None = None
    tool_calls: list[AssistantToolCall] | None = None
    tool_call_id: str = ""

    @property
    def text(self) -> str:
        """The text of the message. Raises UsageError if a part is not text."""
        if isinstance(self.content, str) or self.content is None:
            return self.content or ""
        if other := next((part.type for part in self.content if part.type != "text"), None):
            raise UsageError(f"a part of type '{other[:80]}' is not supported: only text is", key="messages")
        return "".join(part.text for part in self.content)


class FunctionTool(msgspec.Struct):
    """A function that a caller offers. `strict` and other hints are not read."""

    name: str
    description: str | None = None
    parameters: dict[str, object] | None = None


class OfferedTool(msgspec.Struct):
    """A tool that a caller offers."""

    type: str
    function: FunctionTool | None = None


def read_tools(given: Sequence[OfferedTool]) -> tuple[Tool, ...]:
    """Return the tools that a caller offers. Raises UsageError for other kinds than functions."""
    tools = []
    for number, each in enumerate(given):
        if each.type != "function":
            raise UsageError(
                f"a tool of type '{each.type[:80]}' is not supported: only functions are",
                key=f"tools[{number}].type",
            )
        if each.function is None:
            raise UsageError("a tool lacks its `function`", key=f"tools[{number}].function")
        of = each.function
        tools.append(Tool(of.name, of.description or "", schema=of.parameters or {"type": "object"}))
    names = {tool.name for tool in tools}
    if len(names) < len(tools) or not all(0 < len(name) <= 128 for name in names) or len(tools) > MAX_TOOLS:
        raise UsageError(
            f"up to {MAX_TOOLS} tools may be given, each with a name of its own of up to 128 characters",
            key="tools",
        )
    return tuple(tools)


def check_tools(tools: Sequence[Tool], rules: Rules) -> None:
    """Raise UsageError if tools of a caller cannot be shown to the model under these rules."""
    if (layer := rules.application) is not None:
        known = {tool.name for tool in layer.tools}
        if other := next((tool.name for tool in tools if tool.name not in known), None):
            # Another set of tools is another layer, and its answers are not those that were measured.
            raise UsageError(
                f"the application '{layer.name}' is held constant and has no tool named '{other}'. "
                "Add the tool to the application's file: its calls go to the caller too",
                key="tools",
            )
    elif tools and not rules.shows_tools:
        raise UsageError(
            "this model's chat template shows no tools, so the model would not see them. "
            "Describe them in the system prompt, or serve another model",
            code="tools-not-shown",
            key="tools",
        )


def converse(
    messages: Sequence[ChatMessage],
    tools: Sequence[Tool],
    rules: Rules,
    decoding: Decoding,
    seed: int,
) -> Request:
    """Return the request for the next message. A last message of the assistant is continued.

    Raises UsageError, and ContextOverflow for questions that are far too long to search passages for.
    """
    _check_values(messages)
    prefill, layer = "", rules.application
    if messages and (last := messages[-1]).role == "assistant" and last.text and not last.tool_calls:
        messages, prefill = messages[:-1], last.text
    if not messages:
        raise UsageError("messages has nothing to answer", key="messages")
    if layer is None:
        request = Request(0, tuple(_alone(messages)), decoding, seed, prefill, tuple(tools))
    else:
        if rules.check_length is not None and layer.retrieval is not None:
            # Before passages are searched for each question, which takes long for a long one.
            asked = "\n".join(each.text for each in messages if each.role == "user")
            rules.check_length(Request(0, (Message("user", asked),)))
        within, retrieved = _within(layer, messages)
        request = msgspec.structs.replace(layer.request(within, prefill, seed, decoding), retrieved=retrieved)
    if request.messages[-1].role == "assistant":
        raise UsageError(
            "the last message is from the assistant, and is not a text to continue", key="messages"
        )
    return request


# --- without an application ---------------------------------------------------------------------------


def _alone(messages: Sequence[ChatMessage]) -> Iterator[Message]:
    ids = set[str]()
    for each in messages:
        if each.role == "tool":
            _check_id(each, ids)
        elif each.tool_calls:
            _refuse_callers(each)
            ids |= {call.id for call in each.tool_calls}
        role = "system" if each.role == "developer" else each.role
        text, calls = each.text, list[ToolCall]()
        for call in each.tool_calls or ():
            if (arguments := _object(call.function.arguments)) is not None:
                calls.append(ToolCall(call.function.name, arguments))
            else:
                name = encode([call.function.name])[1:-1].decode()
                written = (
                    f'<tool_call>\n{{"name": {name}, "arguments": {call.function.arguments}}}\n</tool_call>'
                )
                text = f"{text}\n{written}" if text else written
        yield Message(role, text, tuple(calls))


# --- inside an application ----------------------------------------------------------------------------


def _within(
    application: Application, messages: Sequence[ChatMessage]
) -> tuple[list[Message], tuple[Retrieved, ...] | None]:
    """Append the conversation to the application's own messages, as a study does.

    Return the messages, and the passages that were retrieved for the last one. Raises UsageError.
    """
    _check_held(application, messages)
    within, names = list(application.messages()), dict[str, str]()
    n_before, results = len(within), list[tuple[str, str]]()
    retrieved: tuple[Retrieved, ...] | None = None
    for message in messages:
        if message.role == "tool":
            _check_id(message, names)
            results.append((names.pop(message.tool_call_id), message.text))
            continue
        within += application.results(results)
        results = []
        if message.role == "assistant":
            names = _named(application, message.tool_calls or [])
            within.append(_answered(application, message))
        else:
            _refuse_callers(message)
            # As in a study: some templates reject two user messages in a row.
            left = within.pop() if len(within) > n_before and within[-1].role == "user" else None
            retrieved = ApplicationSession(application).retrieve(message.text)
            within.append(user_message(message.text, retrieved or (), left=left))
    is_last = messages[-1].role == "user"
    return within + application.results(results), retrieved if is_last else None


def _check_held(application: Application, messages: Sequence[ChatMessage]) -> None:
    """Raise UsageError for a system prompt of the caller, and for too many turns."""
    if any(each.role in ("system", "developer") for each in messages):
        raise UsageError(
            f"the application '{application.name}' has its own system prompt, which is held constant. "
            "Leave yours out",
            key="messages",
        )
    n_turns = sum(each.role == "user" for each in messages)
    if n_turns > application.max_turns:
        raise UsageError(
            f"the application '{application.name}' takes {application.max_turns} turns of the user, and this "
            f"conversation has {n_turns}",
            key="messages",
        )


def _named(application: Application, calls: Sequence[AssistantToolCall]) -> dict[str, str]:
    """Return the tool of each call id. Raises UsageError for a call that does not fit the application."""
    known = [tool.name for tool in application.tools]
    for call in calls:
        if call.function.name not in known:
            named = call.function.name[:80]
            raise UsageError(
                f"the application '{application.name}' has no tool named '{named}'",
                code="unknown-name",
                key="messages",
            )
        _arguments(call)
    if len(ids := {call.id: call.function.name for call in calls}) < len(calls):
        raise UsageError("two calls have the same id", code="name-twice", key="messages")
    return ids


def _answered(application: Application, message: ChatMessage) -> Message:
    """Return the assistant's message, with calls that the caller sent separately written into it."""
    text = message.text
    written = application.calls("", Reply(0, "", text, tool_calls=parse_tool_calls(text)))
    names = {call.name for call in written}
    calls = [ToolCall(c.function.name, _arguments(c)) for c in message.tool_calls or []]
    unwritten = [call for call in calls if call.name not in names]
    if application.rendering == "native":
        return application.answer_message(text, (*written, *unwritten))
    lines = [f"CALL {call.name} {encode(call.arguments).decode()}" for call in unwritten]
    return application.answer_message("\n".join([text, *lines] if text else lines))


# --- calls --------------------------------------------------------------------------------------------


def _refuse_callers(message: ChatMessage) -> None:
    if message.tool_calls and message.role != "assistant":
        raise UsageError(f"a message with role '{message.role}' cannot call tools", key="messages")


def _check_id(message: ChatMessage, known: dict[str, str] | set[str]) -> None:
    if message.tool_call_id not in known:
        raise UsageError(
            f"the tool_call_id '{message.tool_call_id[:80]}' matches no earlier call", key="messages"
        )


def _check_values(messages: Sequence[ChatMessage]) -> None:
    """Raise UsageError for too many values in the arguments of calls: a template takes seconds to show them.

    In the body they are one text, and count as one value.
    """
    calls = [call for each in messages for call in each.tool_calls or ()]
    if sum(len(call.function.arguments) for call in calls) <= MAX_VALUES:
        return  # a text has fewer values than characters
    n_left = MAX_VALUES
    for call in calls:
        n_left -= n_values(_object(call.function.arguments), n_left, has_tokens=False)
        if n_left < 0:
            raise UsageError(f"the arguments of all calls have at most {MAX_VALUES:,} values", key="messages")


def _arguments(call: AssistantToolCall) -> dict[str, object]:
    if (arguments := _object(call.function.arguments)) is None:
        raise UsageError(
            f"the arguments of the call '{call.id[:80]}' are not a JSON object",
            code="wrong-type",
            key="messages",
        )
    return arguments


def _object(arguments: str) -> dict[str, object] | None:
    """Return the arguments of a call; None if they are not a JSON object."""
    try:
        return msgspec.json.decode(arguments or "{}", type=dict[str, object])
    except (msgspec.DecodeError, RecursionError):
        return None


FIELD, CHOICE = "response_format", "tool_choice"
_LONGEST = 1 << 14  # bytes of a schema: a longer one takes seconds to compile, and time in each step
_ANY_OBJECT = '{"type":"object"}'
_VALUES = ("const", "enum", "default", "examples")  # of a schema: what is in them is no schema


def read_schema(form: Mapping[str, object] | None, rules: Rules, has_tools: bool) -> str | UnsetType:
    """Return the schema of a `response_format` as JSON text; unset for plain text. Raises UsageError."""
    schema = _schema(form or {"type": "text"})
    if isinstance(schema, UnsetType):
        return UNSET
    layer = rules.application
    if layer is not None and not rules.may_draw and schema != layer.decoding.json_schema:
        raise UsageError(
            f"the application '{layer.name}' holds the form of its answers. Leave {FIELD} out, or serve with"
            " --free-decoding",
            key=FIELD,
        )
    if has_tools:
        raise UsageError(f"an answer that matches {FIELD} calls no tools: leave out `tools`", key=FIELD)
    return _checked(schema, FIELD, rules)


def nested(form: object) -> object:
    """Return the form of an answer as /v1/chat/completions takes it, from an API that has it less nested."""
    if isinstance(form, dict) and form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": form}
    return form


def demanded_call(choice: object, tools: Sequence[Tool], rules: Rules) -> str | UnsetType:
    """Return the schema of an answer that is the call which `tool_choice` demands; unset if none is.

    The call is written as a bare JSON object, {"name": ..., "arguments": ...}, which is read back as one.
    Raises UsageError.
    """
    if choice in ("auto", "none"):
        return UNSET
    known = [tool.name for tool in tools]
    match choice:
        case "required":
            demanded = list(tools)
        case {"type": "function", "function": {"name": str(name)}} if name in known:
            demanded = [tools[known.index(name)]]
        case _:
            demanded = []
    if not demanded:
        raise UsageError(
            "tool_choice takes 'auto', 'none', 'required' with tools, or the function of one of the tools",
            key=CHOICE,
        )
    if rules.application is not None or rules.check_schema is None:
        why = "this engine cannot hold it to one"
        if rules.application is not None:
            why = f"the application '{rules.application.name}' leaves that to it"
        raise UsageError(f"the model cannot be forced to call a tool here: {why}. Use 'auto'", key=CHOICE)
    parts: dict[str, object] = {}
    calls: list[dict[str, object]] = []
    for number, tool in enumerate(demanded):
        given = {key: value for key, value in tool.arguments_schema.items() if key not in ("$schema", "$id")}
        parts[str(number)] = _moved(given, f"#/$defs/{number}")
        calls.append({
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": {"$ref": f"#/$defs/{number}"}},
            "required": ["name", "arguments"], "additionalProperties": False,
        })  # fmt: skip
    call: dict[str, object] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return _checked(encode({"$defs": parts, **call}).decode(), CHOICE, rules)


def _moved(schema: object, place: str) -> object:
    """Return a part of a schema whose root is at this place of another one: references to it move along."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: value if key in _VALUES else _moved(value, place) for key, value in schema.items()}
    if isinstance(to := schema.get("$ref"), str) and to.startswith("#"):
        moved["$ref"] = place + to[1:]
    return moved


def _checked(schema: str, key: str, rules: Rules) -> str:
    """Return a schema that the engine can hold answers to. Raises UsageError for another."""
    if rules.check_schema is None:
        raise UsageError(f"this model's engine cannot hold answers to a {key}", key=key)
    if len(schema) > _LONGEST:
        raise UsageError(f"the schema of {key} has at most {_LONGEST:,} bytes", code="bad-setting", key=key)
    try:
        rules.check_schema(schema)
    except BadArgument as error:
        raise UsageError(str(error), code=error.code, key=key) from None
    return schema


def _schema(form: Mapping[str, object]) -> str | UnsetType:
    match form:
        case {"type": "text"}:
            return UNSET
        case {"type": "json_object"}:
            return _ANY_OBJECT
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return encode(schema).decode()
    raise UsageError(
        f"{FIELD} takes the types text, json_object, and json_schema with a schema",
        code="bad-setting",
        key=FIELD,
    )


# --- plain texts ---------------------------------------------------------------------------------------


class TextBody(schema.Body, kw_only=True):
    """The body of POST /v1/completions. A prompt is a text or its tokens."""

    prompt: str | list[str | int | list[int]]
    echo: bool = False
    logprobs: int | None = None


def parse_text(given: Mapping[str, object], rules: Rules) -> ParsedRequest:
    """Parse a body of /v1/completions. Raises UsageError."""
    fields, ignored = schema.select_fields(given, TextBody.__struct_fields__, rules.ignores)
    if fields.get("logprobs") is False:
        del fields["logprobs"]
    body = schema.convert(fields, TextBody)
    if rules.application is not None:
        raise UsageError("an application takes conversations, not plain texts: use /v1/chat/completions")
    schema.check_logs(body.logprobs, rules)
    n_new = body.max_tokens
    if body.echo and n_new == 0:  # lm-eval reads only the prompt's scores
        body = msgspec.structs.replace(body, max_tokens=1)
    decoding, _ = schema.read_decoding(body, rules)
    is_scored = (
        body.echo and rules.scorer is not None and (decoding.max_tokens, decoding.temperature) == (1, 0)
    )
    if n_new == 0 and not is_scored:
        raise UsageError(
            "max_tokens 0 needs echo, temperature 0 and an engine that scores tokens",
            code="bad-setting",
            key="max_tokens",
        )
    prompts = [_prompt(each, rules, is_scored) for each in _prompts(body.prompt)]
    requests = [Request(0, (), decoding, body.seed or 0, prompt.text) for prompt in prompts]
    asked = schema.several(body, requests)
    echoes = [replace(each, n_new=n_new if is_scored else None) for each in prompts] if body.echo else []
    return ParsedRequest(
        asked,
        schema.stop_texts(body),
        body.stream,
        schema.with_usage(body),
        ignored=ignored,
        n_top=body.logprobs,
        echoes=tuple(each for each in echoes for _ in range(len(asked) // len(prompts))),
    )


def _prompts(given: str | Sequence[str | int | list[int]]) -> list[str | list[int]]:
    """Return the prompts, each as text or tokens."""
    if isinstance(given, str):
        return [given]
    tokens = [each for each in given if isinstance(each, int)]
    if tokens:
        if len(tokens) < len(given):
            raise UsageError("prompt mixes tokens with texts", key="prompt")
        return [tokens]
    return [each for each in given if not isinstance(each, int)] or [""]


def _prompt(given: str | list[int], rules: Rules, is_scored: bool) -> Echo:
    """Return a prompt. is_scored: nothing is generated, so that tokens need not be those of a text."""
    if not given:
        raise UsageError("prompt is empty: there is nothing to continue", key="prompt")
    if isinstance(given, str):
        return Echo(given)
    if (scorer := rules.scorer) is None:
        raise UsageError("this model's engine takes texts only", key="prompt")
    if len(given) > scorer.context_length:
        raise UsageError(
            f"This model's maximum context length is {scorer.context_length} tokens. "
            f"However, your prompt has {len(given)} tokens",
            code=ContextOverflow.code,
            key="prompt",
        )
    return Echo(scorer.decode(given) if is_scored else scorer.text_of(given), tuple(given))


class TextFormat(ChatFormat):
    """Formats answers for /v1/completions."""

    kind = chunk = "text_completion"

    def _piece(self, number: int, text: str, is_first: bool) -> dict[str, object]:  # noqa: ARG002
        return {"index": number, "text": text, "logprobs": None, "finish_reason": None}

    def _last(self, number: int, answer: FinishedAnswer) -> dict[str, object]:
        return self._choice(number, answer) | {"text": ""}

    def _choice(self, number: int, answer: FinishedAnswer) -> dict[str, object]:
        logs = _text_logprobs(answer.logs)
        return {"index": number, "text": answer.text, "logprobs": logs, "finish_reason": answer.reason}


def _text_logprobs(logs: Sequence[TokenLog] | None) -> dict[str, object] | None:
    """Return the scores in four lists, an entry a token. The token itself is listed with the likeliest."""
    if logs is None:
        return None
    offsets, end = [], 0
    for each in logs:
        offsets.append(end)
        end += len(each.text)
    return {
        "tokens": [each.text for each in logs],
        "token_logprobs": [each.log for each in logs],
        "top_logprobs": [_top(each) for each in logs],
        "text_offset": offsets,
    }


def _top(each: TokenLog) -> dict[str, float] | None:
    if each.log is None:
        return None
    top: dict[str, float] = {}
    for text, log in (*each.top, (each.text, each.log)):
        top[text] = max(log, top.get(text, log))  # different tokens may have one text
    return top
