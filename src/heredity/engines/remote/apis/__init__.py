"""The APIs of remote models, one file each, and what they share: protocol, answer, conversations as text.

Promises: `render` gives equal texts for equal requests and different texts for different requests; a tool
call has the same id in every request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from heredity.core.records import Decoding, Message, Request, Stop, Tool, ToolCall
from heredity.engines.remote.services import Usage


class PrefillRemover:
    """Removes a repeated prefill from an answer in parts. prefill: "" if the server repeats none."""

    def __init__(self, prefill: str) -> None:
        self._prefill, self._unread = prefill, ""

    def __call__(self, more: str) -> str:
        """Return the text that the answer grows by; nothing while all of it may be the prefill."""
        if not self._prefill:
            return more
        self._unread += more
        if len(self._unread) < len(self._prefill) and self._prefill.startswith(self._unread):
            return ""
        text, self._prefill = self._unread.removeprefix(self._prefill), ""
        return text


JsonObject = dict[str, object]
SEED_BOUND = 2**31  # some services keep 32 bits of a seed
OWN_OPTIONS = frozenset({"omit", "prefill", "think", "anthropic_version"})  # the others go into the body
SAMPLING_VERSION = "2023-06-01"  # the last version of Anthropic's API that accepts temperature and top_p


@dataclass(frozen=True)
class Endpoint:
    """A remote model as its recipe records it. `options`: see recipes/targets/remote.py."""

    name: str
    api: str
    base_url: str
    model: str
    options: Mapping[str, object]

    def sends(self, parameter: str) -> bool:
        """Return True if a decoding parameter is sent to this model."""
        # API version 2026-10-21 of Anthropic refuses sampling parameters; it never had a seed.
        has_none = parameter == "seed" or self.options.get("anthropic_version") != SAMPLING_VERSION
        if self.api == "anthropic" and parameter != "max_tokens" and has_none:
            return False
        omitted = self.options.get("omit")
        return not (isinstance(omitted, (list, tuple)) and parameter in omitted)

    @property
    def withheld(self) -> list[str]:
        """The decoding parameters that are not sent."""
        return [name for name in ("temperature", "top_p", "seed") if not self.sends(name)]

    def token_limit(self, decoding: Decoding) -> int:
        """Return the token limit that is sent: the answer and the model's thoughts before it."""
        n_thoughts = self.options.get("think")
        return decoding.max_tokens + (n_thoughts if isinstance(n_thoughts, int) else 0)

    @property
    def prefill_option(self) -> str:
        """How the server is asked to continue a prefill; "" if it is not asked."""
        return str(self.options.get("prefill", ""))

    @property
    def extra(self) -> JsonObject:
        """The fields that are added to each body unchanged."""
        return {k: v for k, v in self.options.items() if k not in OWN_OPTIONS}


@dataclass(frozen=True)
class ApiAnswer:
    """An answer of a service.

    reason: the service's own word for the end; served: the model and version that it names.
    """

    text: str
    calls: tuple[ToolCall, ...]
    stop: Stop
    reason: str
    usage: Usage | None
    served: str


class MalformedAnswer(Exception):
    """An answer that differs from the documents of the service."""


class AnswerStream(Protocol):
    """The events of one streamed answer."""

    is_ended: bool  # whether the end marker has come; what follows it is not read

    def feed(self, event: JsonObject) -> str:
        """Receive an event; return the text that the answer grows by. Raises MalformedAnswer."""

    def end(self) -> None:
        """Receive the end marker that is not JSON: `[DONE]`."""

    def answer(self) -> JsonObject:
        """Return the whole answer, for `RemoteApi.read`. Raises MalformedAnswer for one that was cut off."""


class RemoteApi(Protocol):
    """One API for one model: what is sent and how an answer is read. It does not send anything."""

    @property
    def holds_schemas(self) -> bool:
        """Whether it takes a JSON schema that the answer must match."""

    @property
    def url(self) -> str:
        """The address that requests are posted to."""

    @property
    def stream_url(self) -> str:
        """The address that requests for an answer in parts are posted to."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the API, the key among them."""

    def body(self, request: Request) -> JsonObject:
        """Return the JSON body of a request. Raises EngineFailure if the API has no such feature."""

    def read(self, answer: JsonObject, prefill: str) -> ApiAnswer:
        """Read the JSON of an answer, without a repeated prefill. Raises MalformedAnswer."""

    def as_stream(self, body: JsonObject) -> JsonObject:
        """Return the body that asks for the answer in parts."""

    def open_stream(self, prefill: str) -> AnswerStream:
        """Return the reader of one answer in parts."""


@runtime_checkable
class ApiModule(Protocol):
    """The module of an API: a file in apis/."""

    def open_api(self, endpoint: Endpoint, key: str) -> RemoteApi:
        """Return the API of a model."""


def render(request: Request) -> str:
    """Return the conversation as text; "<|" in a content becomes "<||", so that it cannot pose as a turn."""
    parts = [f"<|tools|>\n{json.dumps([schema(tool) for tool in request.tools])}\n"] if request.tools else []
    for message in request.messages:
        parts.append(f"<|{message.role}|>\n{_escape(message.content)}\n")
        if message.tool_calls:
            calls = [[call.name, call.arguments] for call in message.tool_calls]
            parts.append(f"<|calls|>\n{_escape(json.dumps(calls, sort_keys=True))}\n")
    return "".join(parts) + f"<|assistant|>\n{_escape(request.prefill)}"


def _escape(text: str) -> str:
    return text.replace("<|", "<||")


def call_ids(messages: tuple[Message, ...]) -> list[list[str]]:
    """Return the ids of each message's calls; for a tool's message, the id of the call that it answers.

    The ids of the service are not recorded. They bind a result to its call, and so do these.
    """
    ids_by_message: list[list[str]] = []
    waiting: list[str] = []
    for number, message in enumerate(messages):
        if message.role == "tool":
            ids_by_message.append([waiting.pop(0) if waiting else f"call_{number}_0"])
            continue
        ids = [f"call_{number}_{i}" for i in range(len(message.tool_calls))]
        waiting = list(ids) or waiting
        ids_by_message.append(ids)
    return ids_by_message


def schema(tool: Tool) -> JsonObject:
    """Return a tool's name, description and arguments as JSON Schema."""
    return {"name": tool.name, "description": tool.description, "parameters": tool.arguments_schema}


def parse_arguments(arguments: object) -> JsonObject:
    """Return the arguments of a call: an object, or the JSON of one.

    Anything else gives {}: the call itself still counts.
    """
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return {}
    return arguments if isinstance(arguments, dict) else {}


def repeated_prefill(prefill: str, option: str) -> str:
    """Return the prefill if the answer repeats it, else "": llama.cpp and Mistral do, vLLM does not."""
    return prefill if option in ("trailing", "prefix") else ""


# --- reading JSON of any shape ---------------------------------------------------------------------


def as_object(value: object, name: str) -> JsonObject:
    """Return the value, which must be a JSON object."""
    if not isinstance(value, dict):
        raise MalformedAnswer(f"{name} is missing, or is not an object")
    return value


def as_list(value: object, name: str) -> list[object]:
    """Return the value, which must be a JSON list."""
    if not isinstance(value, list):
        raise MalformedAnswer(f"{name} is missing, or is not a list")
    return value


def token_count(value: object) -> int:
    """Return a number of tokens; 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40 else 0


def label_of(*values: object) -> str:
    """Join the texts among the values into one short line: the name that a service gives itself."""
    # llama.cpp names a model by the whole path of its file, which is private
    texts = [value for value in values if isinstance(value, str) and value]
    joined = " ".join(text.rsplit("/", 1)[-1] if text.startswith("/") else text for text in texts)
    return "".join(c if c.isprintable() else " " for c in joined)[:120]
