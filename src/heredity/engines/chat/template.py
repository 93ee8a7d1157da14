"""A chat template, rendered here rather than by transformers or llama.cpp; a plain one for a base model.

Promises: the text is what transformers gives for the same template (trimmed blocks, loop controls, `tojson`
without escapes, `raise_exception`), with the assistant's prefill at its end. A template renders in a sandbox,
within a number of steps that grows with the conversation. `strftime_now` gives one fixed day: a prompt must
not change with the calendar. `random`, `lipsum` and memory addresses are refused. A template without a system
role gets the system message at the head of the first user message.
Leaves to others: tokens; the sandbox and its steps (sandbox.py).
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from heredity.core.errors import EngineFailure, Refused
from heredity.core.records import Message, Request, Tool
from heredity.engines.chat import sandbox as bounded
from heredity.engines.chat.sandbox import Forbidden, TooManySteps, Unsteady

PLAIN_STOP = "\nUser:"  # where a base model begins to speak for the user
# Steps that a rendering may take. A known template takes about 200 for a message, and 2 for 16 characters.
_STEPS, _STEPS_A_VALUE, _STEPS_A_CHARACTER, _MOST_STEPS = 250_000, 300, 4, 20_000_000
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # marks of a training tool: no text


class Template:
    """A template's source, "" for a base model's plain one, with the texts of its first and last token.

    specials: texts of special tokens by transformers' name for them ("bos_token"), in place of these two.
    """

    def __init__(
        self, source: str, bos: str = "", eos: str = "", specials: dict[str, Any] | None = None
    ) -> None:
        self._source = source
        self._specials = {"bos_token": bos, "eos_token": eos} if specials is None else specials

    @property
    def stop_text(self) -> str:
        """Text that ends an answer beside the model's own stop tokens; "" for none."""
        return "" if self._source else PLAIN_STOP

    def render(self, request: Request) -> str:
        """The full text for a request, prefill included. Raises EngineFailure where the template refuses."""
        if not request.messages:
            return request.prefill  # a plain text to go on from
        if not self._source:
            return _plain(request.messages, request.prefill)
        messages = request.messages if self.has_system else merged(request.messages)
        try:
            return self._apply(messages, request.tools) + request.prefill
        except _STOPPED as error:
            said = f"the model's chat template was stopped: {error}"
            raise EngineFailure(said, code="template-stopped") from None
        except Exception as error:  # a template is a program of the model's author
            raise EngineFailure(
                f"the model's chat template refuses these messages: {error}", code="template-refuses"
            ) from None

    @cached_property
    def has_system(self) -> bool:
        """Whether a system message comes out of it."""
        try:
            return "\x01mark\x01" in self._apply(
                (Message("system", "\x01mark\x01"), Message("user", "hi")), ()
            )
        except Exception:  # as above: this template has no system role
            return False

    def _apply(self, messages: tuple[Message, ...], tools: tuple[Tool, ...]) -> str:
        given = {
            "messages": [_as_dict(message) for message in messages],
            "tools": [_schema(tool) for tool in tools] or None,
        }
        others = {"documents": None, "add_generation_prompt": True, **self._specials}
        return bounded.metered(_allowance(given), lambda: str(self._compiled.render(**given, **others)))

    @cached_property
    def _compiled(self) -> Any:
        environment = bounded.environment()
        environment.filters["tojson"] = bounded.pay_for_filter("tojson", _to_json)
        environment.globals["raise_exception"] = _refuse
        return environment.from_string(_GENERATION.sub("", self._source))


_STOPPED = (TooManySteps, Unsteady, Forbidden)
_PROBES = (
    (Message("user", "hi"),),
    (
        Message("system", "be brief"),
        Message("user", "hi"),
        Message("assistant", "yes"),
        Message("user", "so?"),
    ),
)


def check(source: str, place: str) -> None:
    """Render a template on short conversations, before its model is recorded.

    Raises Refused where it is stopped: it takes too many steps, or its text could differ from run to run.
    What a template refuses by its own rules, such as a system message, is no fault.
    """
    for messages in _PROBES:
        for tools in ((), (Tool("pay", "Pays.", {"to": "who"}),)):
            try:
                Template(source)._apply(messages, tools)
            except _STOPPED as error:
                said = f"{place}: its chat template was stopped: {error}. Replace the template."
                raise Refused(said, code="template-unsafe") from None
            except Exception:  # as in render: found again when the model is asked
                continue


def _allowance(value: Any) -> int:
    """The steps that a template may take for these messages and tools."""
    n_values = n_characters = 0
    waiting = [value]
    while waiting:
        each = waiting.pop()
        n_values += 1
        if isinstance(each, str):
            n_characters += len(each)
        elif isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list):
            waiting += each
    steps = _STEPS + _STEPS_A_VALUE * n_values + _STEPS_A_CHARACTER * n_characters
    return min(steps, _MOST_STEPS)


def source(folder: Path, name: str = "default") -> str:
    """A model folder's own chat template of this name, "" where it has none."""
    place = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
    if (folder / place).is_file():
        return (folder / place).read_text("utf-8")
    path = folder / "tokenizer_config.json"
    said: Any = json.loads(path.read_text("utf-8")) if path.is_file() else None
    found = said.get("chat_template") if isinstance(said, dict) else None
    if isinstance(found, list):
        named = [entry for entry in found if isinstance(entry, dict) and entry.get("name") == name]
        found = named[0].get("template") if named else None
    elif name != "default":
        return ""
    return found if isinstance(found, str) else ""


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _plain(messages: tuple[Message, ...], prefill: str) -> str:
    titles = {"user": "User: ", "assistant": "Assistant: ", "tool": "Tool result: ", "system": ""}
    parts = [titles[message.role] + message.content.strip() for message in messages]
    # A space before words to go on from, as in the assistant's turns above; a model puts its own.
    gap = " " if prefill and not prefill[0].isspace() else ""
    return "\n\n".join([*parts, f"Assistant:{gap}{prefill}"])


def merged(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """A system message in front of the first user's, for templates without a system role."""
    if not messages or messages[0].role != "system":
        return messages
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        return (Message("user", messages[0].content), *messages[1:])
    user = Message("user", f"{messages[0].content}\n\n{messages[first].content}")
    return (*messages[1:first], user, *messages[first + 1 :])


def _as_dict(message: Message) -> dict[str, Any]:
    if not message.tool_calls:
        return {"role": message.role, "content": message.content}
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": message.content, "tool_calls": calls}


def _schema(tool: Tool) -> dict[str, Any]:
    properties = {name: {"type": "string", "description": what} for name, what in tool.parameters.items()}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}
