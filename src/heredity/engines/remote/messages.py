"""What the three services have in common: an answer, and a conversation as text and as a list.

Promises: `render` gives equal texts for equal requests and different ones for different requests; a tool call
has the same id every time it is told.
Leaves to others: each service's own words (_remote_openai.py, _remote_anthropic.py, _remote_gemini.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from heredity.core.records import Decoding, Message, Request, Stop, Tool, ToolCall
from heredity.engines.remote.budget import Usage
from heredity.engines.remote.transport import Broken, Client

SEEDS = 2**31  # some services keep 32 bits of a seed


@dataclass(frozen=True)
class Where:
    """A remote model: as its recipe records it. `options`: see recipes/remote.py."""

    name: str
    api: str
    base_url: str
    model: str
    options: Mapping[str, Any]

    def sends(self, parameter: str) -> bool:
        """Whether a decoding parameter is sent to this model."""
        if self.api == "anthropic" and parameter != "max_tokens":
            # Since API version 2026-10-21 sampling parameters are refused; a seed there never was.
            is_there = parameter != "seed" and self.options.get("anthropic_version") == SAMPLING_VERSION
        else:
            is_there = True
        return is_there and parameter not in self.options.get("omit", ())

    @property
    def withheld(self) -> list[str]:
        """The decoding parameters that are not sent."""
        return [name for name in ("temperature", "top_p", "seed") if not self.sends(name)]

    def n_most(self, decoding: Decoding) -> int:
        """The bound on tokens that is sent: the answer's, and what the model may think before it."""
        return decoding.max_tokens + int(self.options.get("think", 0))

    @property
    def extra(self) -> dict[str, Any]:
        """What goes into each request as it stands."""
        return {k: v for k, v in self.options.items() if k not in OWN_OPTIONS}


OWN_OPTIONS = frozenset({"omit", "prefill", "think", "anthropic_version"})
SAMPLING_VERSION = "2023-06-01"  # the last version of Anthropic's API that takes temperature and top_p


@dataclass(frozen=True)
class Answer:
    """What a service answered. `why` is its own word for the end; `served` the model and version it names."""

    text: str
    calls: tuple[ToolCall, ...]
    stop: Stop
    why: str
    usage: Usage | None
    served: str


class Service(Protocol):
    """One vendor's API, through its SDK."""

    def body(self, request: Request) -> dict[str, Any]:
        """What the SDK is called with. Raises EngineFailure where the service has no such thing."""

    async def send(self, body: dict[str, Any]) -> None:
        """Send it; the response is left in SEEN, and whatever the SDK thinks of it is of no account."""

    def read(self, found: dict[str, Any], prefill: str) -> Answer:
        """The answer, without a prefill that is said back. Raises Broken where its shape is another."""

    async def close(self) -> None:
        """Close what the SDK holds."""


class Open(Protocol):
    """What a service's file has under the name `open_service`."""

    def __call__(self, where: Where, key: str, client: Client) -> Service:
        """The service; in the thread of the loop that uses it."""


def render(request: Request) -> str:
    """The conversation as text; "<|" in a content is doubled to "<||", so that it cannot pose as a turn."""
    parts = [f"<|tools|>\n{json.dumps([schema(tool) for tool in request.tools])}\n"] if request.tools else []
    for message in request.messages:
        parts.append(f"<|{message.role}|>\n{_told(message.content)}\n")
        if message.tool_calls:
            calls = [[call.name, call.arguments] for call in message.tool_calls]
            parts.append(f"<|calls|>\n{_told(json.dumps(calls, sort_keys=True))}\n")
    return "".join(parts) + f"<|assistant|>\n{_told(request.prefill)}"


def _told(text: str) -> str:
    return text.replace("<|", "<||")


def call_ids(messages: tuple[Message, ...]) -> list[list[str]]:
    """For each message the ids of its calls, or of a tool's message the one of the call that it answers.

    Nobody records the ids that a service gave; they bind a result to its call, and these do so too.
    """
    found: list[list[str]] = []
    waiting: list[str] = []
    for number, message in enumerate(messages):
        if message.role == "tool":
            found.append([waiting.pop(0) if waiting else f"call_{number}_0"])
            continue
        ids = [f"call_{number}_{i}" for i in range(len(message.tool_calls))]
        waiting = list(ids) or waiting
        found.append(ids)
    return found


def schema(tool: Tool) -> dict[str, Any]:
    """A tool's name, description and arguments as JSON Schema."""
    properties = {name: {"type": "string", "description": what} for name, what in tool.parameters.items()}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"name": tool.name, "description": tool.description, "parameters": parameters}


def parsed(arguments: Any) -> dict[str, Any]:
    """A call's arguments: an object, or the JSON of one; {} for anything else (that it was called counts)."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return {}
    return arguments if isinstance(arguments, dict) else {}


def without(prefill: str, text: str, how: str) -> str:
    """The text after the prefill: llama.cpp and Mistral give both, vLLM what the model said alone."""
    return text.removeprefix(prefill) if how in ("trailing", "prefix") else text


# --- reading what may be of any shape -------------------------------------------------------------


def an_object(value: Any, what: str) -> dict[str, Any]:
    """The value, which must be a JSON object."""
    if not isinstance(value, dict):
        raise Broken(f"{what} is missing, or is no object")
    return value


def a_list(value: Any, what: str) -> list[Any]:
    """The value, which must be a JSON list."""
    if not isinstance(value, list):
        raise Broken(f"{what} is missing, or is no list")
    return value


def count(value: Any) -> int:
    """A number of tokens; 0 for anything that is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40 else 0


def words(*values: Any) -> str:
    """The texts among the values, short and on a line: what a service calls itself."""
    # llama.cpp calls a model by its file's whole path, which is nobody's business
    said = " ".join(
        v.rsplit("/", 1)[-1] if v.startswith("/") else v for v in values if isinstance(v, str) and v
    )
    return "".join(c if c.isprintable() else " " for c in said)[:120]
