"""The OpenAI-compatible schema: parse a body into requests, and format replies as a body.

Promises: an unsupported field that would change an answer is refused by name, never ignored. A field that
changes no answer (`user`, `metadata`, ...) is accepted and ignored.
Leaves to others: HTTP (app.py), and the answers (worker.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from heredity.application.spec import Application, check_decoding
from heredity.core.errors import UsageError, code_of
from heredity.core.records import Decoding, Message, Reply, Request, ToolCall, encode
from heredity.engines.chat.codec import parse_tool_calls

LONGEST = 512  # tokens of an answer, if neither the caller nor an application sets a limit
MOST_ANSWERS, MOST_STOPS, LONGEST_STOPS = 16, 16, 4096
_MOST_SEED = _MOST_TOKENS = 1 << 31
_REASONS = {"end": "stop", "length": "length", "filter": "content_filter"}
_IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "parallel_tool_calls", "prompt_cache_retention",
}  # fmt: skip
_UNREAD = {"name", "annotations"}  # of a message
_NEUTRAL: dict[str, Sequence[object]] = {  # fields that change an answer, and their neutral values
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "logprobs": (False, 0),
    "top_logprobs": (0,), "response_format": ({"type": "text"},), "tools": ([],),
    "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "echo": (False,), "best_of": (1,), "suffix": ("",), "modalities": (["text"],),
    "top_k": (0, -1), "min_p": (0,), "repetition_penalty": (1,),
}  # fmt: skip


class Refusal(Exception):
    """An error response: an HTTP status, a message, and a machine-readable code."""

    def __init__(self, status: int, message: str, code: str, reason: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.reason = status, code, reason

    @property
    def body(self) -> dict[str, object]:
        """The error as a body in OpenAI's format."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": None, "code": self.code}
        return {"error": {**error, "reason": self.reason} if self.reason else error}


class MessagePart(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a message. Only text is supported."""

    type: str
    text: str = ""


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
            raise UsageError(f"a part of type '{other}' is not supported: only text is", code="part-not-text")
        return "".join(part.text for part in self.content)


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """The options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against traffic analysis: never sent


class Body(msgspec.Struct, kw_only=True):
    """The fields that chat and text completions share."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None


B = TypeVar("B", bound=Body)


class ChatBody(Body, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage]


class TextBody(Body, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: str | list[str]


class ParsedRequest(NamedTuple):
    """A parsed body. `requests`: one request per answer."""

    requests: list[Request]
    stops: tuple[str, ...]
    is_streamed: bool
    with_usage: bool


def chat(
    given: Mapping[str, object], application: Application | None, may_draw: bool = True
) -> ParsedRequest:
    """Parse a body of /v1/chat/completions. Raises UsageError.

    may_draw: whether the caller may override the application's sampling parameters.
    """
    body = _read(given, ChatBody)
    if not body.messages:
        raise UsageError("messages is empty", code="messages-empty")
    decoding = _decoding(body, application, may_draw)
    if application is None:
        first = Request(0, tuple(_alone(body.messages)), decoding, body.seed or 0)
    else:
        messages = _within(application, body.messages)
        first = application.request(messages, seed=body.seed or 0, decoding=decoding)
    if first.messages[-1].role == "assistant":
        raise UsageError(
            "the last message is from the assistant: there is nothing to answer", code="nothing-to-answer"
        )
    return _asked(body, [first])


def text(given: Mapping[str, object], is_free: bool) -> ParsedRequest:
    """Parse a body of /v1/completions. is_free: whether the model is served without an application."""
    body = _read(given, TextBody)
    if not is_free:
        raise UsageError("an application takes conversations, not plain texts: use /v1/chat/completions")
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not all(prompts) or not prompts:
        raise UsageError("prompt is empty: there is nothing to continue", code="prompt-empty")
    decoding = _decoding(body, None, True)
    return _asked(body, [Request(0, (), decoding, body.seed or 0, prompt) for prompt in prompts])


def opened(raw: bytes) -> dict[str, object]:
    """Decode a body and check that it names a model. Raises UsageError."""
    try:
        given = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the body is not JSON: {error}", code="body-not-json") from None
    if not isinstance(given, dict):
        raise UsageError("the body is not a JSON object", code="body-not-object")
    if not isinstance(given.get("model"), str):
        raise UsageError("`model` is missing: name a served model, see /v1/models", code="model-not-named")
    return given


def _read(body: Mapping[str, object], kind: type[B]) -> B:
    given = {key: value for key, value in body.items() if value is not None and key not in _IGNORED}
    if isinstance(messages := given.get("messages"), list):
        given["messages"] = [_without_empty(each) for each in messages]
    for key in [key for key in given if key not in kind.__struct_fields__]:
        if key not in _NEUTRAL:
            raise UsageError(f"'{key}' is not a known field", code="unknown-field")
        if given.pop(key) not in _NEUTRAL[key]:
            raise UsageError(
                f"'{key}' would change the answer and is not supported. Leave it out",
                code="field-not-supported",
            )
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise UsageError(str(error), code=code_of(error, "bad-setting")) from None


def _without_empty(message: object) -> object:
    """Drop fields of a message that are empty or change nothing, because clients send back what they
    received."""
    if not isinstance(message, dict):
        return message
    return {key: value for key, value in message.items() if value not in (None, []) and key not in _UNREAD}


def _decoding(body: Body, application: Application | None, may_draw: bool) -> Decoding:
    usual = Decoding(LONGEST) if application is None else application.decoding
    longest = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    given = {"max_tokens": longest, "temperature": body.temperature, "top_p": body.top_p}
    settings = {key: value for key, value in given.items() if value is not None}
    if application is not None and not may_draw and "max_tokens" in settings:
        # Fewer tokens only truncate the same answer.
        settings["max_tokens"] = min(settings["max_tokens"], usual.max_tokens)
    found = msgspec.structs.replace(usual, **settings)
    if found.max_tokens >= _MOST_TOKENS:
        raise UsageError(
            f"max_tokens must be below {_MOST_TOKENS}, not {found.max_tokens}", code="bad-setting"
        )
    try:
        check_decoding(found)
    except ValueError as error:
        raise UsageError(str(error), code="bad-setting") from None
    changed = [key for key in ("temperature", "top_p") if getattr(found, key) != getattr(usual, key)]
    if application is not None and not may_draw and changed:
        held = ", ".join(f"{key} {getattr(usual, key):g}" for key in changed)
        raise UsageError(
            f"the application '{application.name}' fixes the sampling parameters ({held}). "
            "Leave it out, or serve with --free-decoding",
            code="decoding-held",
        )
    return found


def _asked(body: Body, requests: Sequence[Request]) -> ParsedRequest:
    n = 1 if body.n is None else body.n
    if not 1 <= n * len(requests) <= MOST_ANSWERS:
        raise UsageError(
            f"a request asks for 1 to {MOST_ANSWERS} answers, not {n * len(requests)}", code="bad-setting"
        )
    if not 0 <= (body.seed or 0) < _MOST_SEED:
        raise UsageError(
            f"seed must be at least 0 and below {_MOST_SEED}, not {body.seed}", code="bad-setting"
        )
    stops = tuple(filter(None, [body.stop] if isinstance(body.stop, str) else body.stop or []))
    if len(stops) > MOST_STOPS or sum(map(len, stops)) > LONGEST_STOPS:
        raise UsageError(
            f"stop takes up to {MOST_STOPS} texts, {LONGEST_STOPS:,} characters in all",
            code="stop-too-long",
        )
    drawn = [
        msgspec.structs.replace(request, seed=request.seed + i) for request in requests for i in range(n)
    ]
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    return ParsedRequest(drawn, stops, body.stream, with_usage)


# --- conversations ------------------------------------------------------------------------------------


def _alone(messages: Sequence[ChatMessage]) -> Iterator[Message]:
    for each in messages:
        if each.role == "tool" or each.tool_calls:
            raise UsageError(
                "no tools are available: serve the model in an application that has some", code="no-tools"
            )
        yield Message("system" if each.role == "developer" else each.role, each.text)


def _within(application: Application, messages: Sequence[ChatMessage]) -> list[Message]:
    """Append the conversation to the application's own messages, as a study does. Raises UsageError."""
    if any(each.role in ("system", "developer") for each in messages):
        raise UsageError(
            f"the application '{application.name}' has its own system prompt, which is held constant. "
            "Leave yours out",
            code="system-prompt-held",
        )
    n_turns = sum(each.role == "user" for each in messages)
    if n_turns > application.max_turns:
        raise UsageError(
            f"the application '{application.name}' takes {application.max_turns} turns of the user, and this "
            f"conversation has {n_turns}",
            code="too-many-turns",
        )
    found, names = list(application.messages()), dict[str, str]()
    n_before, results = len(found), list[tuple[str, str]]()
    for message in messages:
        if message.role == "tool":
            if message.tool_call_id not in names:
                raise UsageError(
                    f"the tool_call_id '{message.tool_call_id}' matches no earlier call", code="call-unknown"
                )
            results.append((names.pop(message.tool_call_id), message.text))
            continue
        found += application.results(results)
        results = []
        if message.role == "assistant":
            names = _named(application, message.tool_calls or [])
            found.append(_answered(application, message))
        else:
            if message.tool_calls:
                raise UsageError(
                    f"a message with role '{message.role}' cannot call tools", code="role-calls-no-tools"
                )
            # As in a study: some templates reject two user messages in a row.
            left = f"{found.pop().content}\n\n" if len(found) > n_before and found[-1].role == "user" else ""
            found.append(Message("user", left + message.text))
    return found + application.results(results)


def _named(application: Application, calls: Sequence[AssistantToolCall]) -> dict[str, str]:
    """Return the tool of each call id. Raises UsageError for a call that does not fit the application."""
    known = [tool.name for tool in application.tools]
    for call in calls:
        if call.function.name not in known:
            named = call.function.name[:80]
            raise UsageError(
                f"the application '{application.name}' has no tool named '{named}'", code="tool-unknown"
            )
        _arguments(call)
    if len(ids := {call.id: call.function.name for call in calls}) < len(calls):
        raise UsageError("two calls have the same id", code="call-id-twice")
    return ids


def _arguments(call: AssistantToolCall) -> dict[str, Any]:
    try:
        return msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        raise UsageError(
            f"the arguments of the call '{call.id[:80]}' are not a JSON object", code="arguments-not-object"
        ) from None


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


# --- answers ------------------------------------------------------------------------------------------


def calls_of(ident: str, calls: Sequence[ToolCall]) -> list[dict[str, object]]:
    """Return tool calls in OpenAI's format."""
    return [
        {
            "id": f"call_{ident}_{i}",
            "type": "function",
            "function": {"name": call.name, "arguments": encode(call.arguments).decode()},
        }
        for i, call in enumerate(calls)
    ]


def reason(reply: Reply, calls: Sequence[ToolCall] = (), is_cut: bool = False) -> str:
    """Return the finish reason of an answer. is_cut: a stop text of the caller cut it."""
    return "tool_calls" if calls else "stop" if is_cut else _REASONS[reply.stop]


def usage(replies: Sequence[Reply]) -> dict[str, int]:
    """Count prompt and completion tokens. Answers to the same prompt count it once."""
    prompts = {reply.prompt: reply.n_prompt_tokens for reply in replies}
    written = sum(len(r.tokens) if r.n_tokens is None else r.n_tokens for r in replies)
    read = sum(prompts.values())
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
