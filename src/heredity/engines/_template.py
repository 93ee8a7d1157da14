"""A chat template, rendered without transformers: for engines whose library is not asked to do it.

Promises: the text is what transformers gives for the same template (trimmed blocks, loop controls, `tojson`
without escapes, `raise_exception`), in a sandbox; `strftime_now` gives one fixed day, for a prompt must not
change with the calendar.
Leaves to others: tokens.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

from heredity.engines._chat import PLAIN_STOP, _as_dict, _merged, _plain, _schema
from heredity.errors import EngineFailure
from heredity.records import Message, Request, Tool

DAY = datetime(2026, 1, 1)
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # marks of a training tool: no text


class Template:
    """A template's source, "" for a base model's plain one, with the texts of its first and last token."""

    def __init__(self, source: str, bos: str = "", eos: str = "") -> None:
        self._source, self._bos, self._eos = source, bos, eos

    @property
    def stop_text(self) -> str:
        """Text that ends an answer beside the model's own stop tokens; "" for none."""
        return "" if self._source else PLAIN_STOP

    def render(self, request: Request) -> str:
        """The full text for a request, prefill included. Raises EngineFailure where the template refuses."""
        if not self._source:
            return _plain(request.messages) + request.prefill
        messages = request.messages if self._has_system else _merged(request.messages)
        try:
            return self._apply(messages, request.tools) + request.prefill
        except Exception as error:  # a template is a program of the model's author
            raise EngineFailure(f"the model's chat template refuses these messages: {error}") from None

    @cached_property
    def _has_system(self) -> bool:
        try:
            return "\x01mark\x01" in self._apply(
                (Message("system", "\x01mark\x01"), Message("user", "hi")), ()
            )
        except Exception:  # as above: this template has no system role
            return False

    def _apply(self, messages: tuple[Message, ...], tools: tuple[Tool, ...]) -> str:
        return str(
            self._compiled.render(
                messages=[_as_dict(message) for message in messages],
                tools=[_schema(tool) for tool in tools] or None,
                add_generation_prompt=True,
                bos_token=self._bos,
                eos_token=self._eos,
            )
        )

    @cached_property
    def _compiled(self) -> Any:
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = DAY.strftime
        return environment.from_string(_GENERATION.sub("", self._source))


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)
