"""The messages and tools of a request: sent to the model by themselves, or in an application as in a study.

Promises: inside an application the model sees what it sees in a study, and nothing of the caller's replaces
that. A caller's tools go through the model's own template, with their JSON schemas as they were sent.
Leaves to others: the other fields (schema.py), and reading the calls of an answer (answers.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from heredity.application.conversation import user_message
from heredity.application.spec import Application
from heredity.core.errors import UsageError
from heredity.core.records import Decoding, Message, Reply, Request, Retrieved, Tool, ToolCall, encode
from heredity.deploy.serve.schema import MOST_VALUES, Rules, n_values
from heredity.engines.chat.tool_calls import parse_tool_calls

MOST_TOOLS = 128


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
            raise UsageError(
                f"a part of type '{other[:80]}' is not supported: only text is",
                code="part-not-text",
                key="messages",
            )
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
    found = []
    for number, each in enumerate(given):
        if each.type != "function":
            raise UsageError(
                f"a tool of type '{each.type[:80]}' is not supported: only functions are",
                code="tool-not-function",
                key=f"tools[{number}].type",
            )
        if each.function is None:
            raise UsageError(
                "a tool lacks its `function`", code="tool-not-function", key=f"tools[{number}].function"
            )
        of = each.function
        found.append(Tool(of.name, of.description or "", schema=of.parameters or {"type": "object"}))
    names = {tool.name for tool in found}
    if len(names) < len(found) or not all(0 < len(name) <= 128 for name in names) or len(found) > MOST_TOOLS:
        raise UsageError(
            f"up to {MOST_TOOLS} tools may be given, each with a name of its own of up to 128 characters",
            code="bad-tools",
            key="tools",
        )
    return tuple(found)


def check_tools(tools: Sequence[Tool], rules: Rules) -> None:
    """Raise UsageError if tools of a caller cannot be shown to the model under these rules."""
    if (layer := rules.application) is not None:
        known = {tool.name for tool in layer.tools}
        if other := next((tool.name for tool in tools if tool.name not in known), None):
            # Another set of tools is another layer, and its answers are not those that were measured.
            raise UsageError(
                f"the application '{layer.name}' is held constant and has no tool named '{other}'. "
                "Add the tool to the application's file: its calls go to the caller too",
                code="tools-held",
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
        raise UsageError("messages has nothing to answer", code="messages-empty", key="messages")
    if layer is None:
        request = Request(0, tuple(_alone(messages)), decoding, seed, prefill, tuple(tools))
    else:
        if rules.limiter is not None and layer.retrieval is not None:
            # Before passages are searched for each question, which takes long for a long one.
            asked = "\n".join(each.text for each in messages if each.role == "user")
            rules.limiter.check_length(Request(0, (Message("user", asked),)))
        within, found = _within(layer, messages)
        request = msgspec.structs.replace(layer.request(within, prefill, seed, decoding), retrieved=found)
    if request.messages[-1].role == "assistant":
        raise UsageError(
            "the last message is from the assistant, and is not a text to continue",
            code="nothing-to-answer",
            key="messages",
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
        yield _message("system" if each.role == "developer" else each.role, each)


def _message(role: Literal["system", "user", "assistant", "tool"], given: ChatMessage) -> Message:
    """Return a message with its calls. One whose arguments are not a JSON object becomes part of the text."""
    text, calls = given.text, list[ToolCall]()
    for call in given.tool_calls or ():
        if (arguments := _object(call.function.arguments)) is not None:
            calls.append(ToolCall(call.function.name, arguments))
        else:
            name = encode([call.function.name])[1:-1].decode()
            written = f'<tool_call>\n{{"name": {name}, "arguments": {call.function.arguments}}}\n</tool_call>'
            text = f"{text}\n{written}" if text else written
    return Message(role, text, tuple(calls))


# --- inside an application ----------------------------------------------------------------------------


def _within(
    application: Application, messages: Sequence[ChatMessage]
) -> tuple[list[Message], tuple[Retrieved, ...] | UnsetType]:
    """Append the conversation to the application's own messages, as a study does.

    Return the messages, and the passages that were retrieved for the last one. Raises UsageError.
    """
    _check_held(application, messages)
    found, names = list(application.messages()), dict[str, str]()
    n_before, results = len(found), list[tuple[str, str]]()
    retrieved: tuple[Retrieved, ...] | UnsetType = UNSET
    for message in messages:
        if message.role == "tool":
            _check_id(message, names)
            results.append((names.pop(message.tool_call_id), message.text))
            continue
        found += application.results(results)
        results = []
        if message.role == "assistant":
            names = _named(application, message.tool_calls or [])
            found.append(_answered(application, message))
        else:
            _refuse_callers(message)
            # As in a study: some templates reject two user messages in a row.
            left = found.pop() if len(found) > n_before and found[-1].role == "user" else None
            retrieved = application.retrieve(message.text)
            passages = () if isinstance(retrieved, UnsetType) else retrieved
            found.append(user_message(message.text, passages, left=left))
    is_last = messages[-1].role == "user"
    return found + application.results(results), retrieved if is_last else UNSET


def _check_held(application: Application, messages: Sequence[ChatMessage]) -> None:
    """Raise UsageError for a system prompt of the caller, and for too many turns."""
    if any(each.role in ("system", "developer") for each in messages):
        raise UsageError(
            f"the application '{application.name}' has its own system prompt, which is held constant. "
            "Leave yours out",
            code="system-prompt-held",
            key="messages",
        )
    n_turns = sum(each.role == "user" for each in messages)
    if n_turns > application.max_turns:
        raise UsageError(
            f"the application '{application.name}' takes {application.max_turns} turns of the user, and this "
            f"conversation has {n_turns}",
            code="too-many-turns",
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
                code="tool-unknown",
                key="messages",
            )
        _arguments(call)
    if len(ids := {call.id: call.function.name for call in calls}) < len(calls):
        raise UsageError("two calls have the same id", code="call-id-twice", key="messages")
    return ids


def _answered(application: Application, message: ChatMessage) -> Message:
    """Return the assistant's message, with calls that the caller sent separately written into it."""
    text = message.text
    written = application.calls("", Reply(0, "", text, tool_calls=parse_tool_calls(text)))
    names = {call.name for call in written}
    calls = [ToolCall(c.function.name, _arguments(c)) for c in message.tool_calls or []]
    unwritten = [call for call in calls if call.name not in names]
    if application.rendering == "native":
        return application.said(text, (*written, *unwritten))
    lines = [f"CALL {call.name} {encode(call.arguments).decode()}" for call in unwritten]
    return application.said("\n".join([text, *lines] if text else lines))


# --- calls --------------------------------------------------------------------------------------------


def _refuse_callers(message: ChatMessage) -> None:
    if message.tool_calls and message.role != "assistant":
        raise UsageError(
            f"a message with role '{message.role}' cannot call tools",
            code="role-calls-no-tools",
            key="messages",
        )


def _check_id(message: ChatMessage, known: dict[str, str] | set[str]) -> None:
    if message.tool_call_id not in known:
        raise UsageError(
            f"the tool_call_id '{message.tool_call_id[:80]}' matches no earlier call",
            code="call-unknown",
            key="messages",
        )


def _check_values(messages: Sequence[ChatMessage]) -> None:
    """Raise UsageError for too many values in the arguments of calls: a template takes seconds to show them.

    In the body they are one text, and count as one value.
    """
    calls = [call for each in messages for call in each.tool_calls or ()]
    if sum(len(call.function.arguments) for call in calls) <= MOST_VALUES:
        return  # a text has fewer values than characters
    n_left = MOST_VALUES
    for call in calls:
        n_left -= n_values(_object(call.function.arguments), n_left, has_tokens=False)
        if n_left < 0:
            raise UsageError(
                f"the arguments of all calls have at most {MOST_VALUES:,} values",
                code="too-many-values",
                key="messages",
            )


def _arguments(call: AssistantToolCall) -> dict[str, object]:
    if (found := _object(call.function.arguments)) is None:
        raise UsageError(
            f"the arguments of the call '{call.id[:80]}' are not a JSON object",
            code="arguments-not-object",
            key="messages",
        )
    return found


def _object(arguments: str) -> dict[str, object] | None:
    """Return the arguments of a call; None if they are not a JSON object."""
    try:
        return msgspec.json.decode(arguments or "{}", type=dict[str, object])
    except (msgspec.DecodeError, RecursionError):
        return None
