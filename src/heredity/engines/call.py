"""A Python function as a target: a user's whole application, or a model that it wraps.

    call:package.module:function      def function(messages) -> str, or def function(text) -> str, or async

Promises: what the function raises, or gives that is no text, is an error row; one that was changed
after it was recorded does not answer under the old record.
Leaves to others: what the function does. Its answers are asked anew in every study, never cached.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from heredity.engines import _function
from heredity.engines._crew import Crew, as_text, conversation
from heredity.errors import EngineFailure, Unavailable, UsageError
from heredity.records import Model, Reply, Request

WIDTH, TIMEOUT_SECONDS = 4, 120.0


def load(model: Model, folder: Path, tuning: Path | None = None) -> Call:  # noqa: ARG001 (there are no files)
    """The engine of a recorded function. Raises Unavailable where it is not there, or not as recorded."""
    settings = model.recipe.settings
    name = str(settings["function"])
    try:
        function = _function.find(name)
    except UsageError as error:
        raise Unavailable(f"'{model.name}' cannot answer here: {error}") from error
    if (source := _function.source_of(function)) != settings["source"]:
        raise Unavailable(
            f"'{model.name}' was changed since it was recorded (source {settings['source']}, now {source}):"
            " its answers belong to another study. Name it again, with another folder.",
            code="function-changed",
        )
    width = getattr(function, "concurrency", WIDTH)
    return Call(_function.Function(name, function), int(width), TIMEOUT_SECONDS)


class Call:
    """A function behind the Engine protocol, called from `width` threads at once."""

    def __init__(self, function: _function.Function, width: int, timeout_seconds: float) -> None:
        self._function, self._width, self._timeout = function, width, timeout_seconds
        self._nonce, self._loop = secrets.token_hex(8), _function.Loop(timeout_seconds)
        self.name = f"call {function.name} width {width}"
        self.numerics = ""  # what a function answers may depend on anything

    def render(self, request: Request) -> str:
        """The conversation as one text; the function's own prompt is not known."""
        _function.refuse_unseen(f"call:{self._function.name}", self._function.takes_messages, request)
        return as_text(request)

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        return Crew(self._answer, self._width, self._timeout + 1, self.render).reply(requests)

    def close(self) -> None:
        self._loop.close()

    def _answer(self, request: Request) -> Reply:
        prompt = self.render(request)
        if request.prefill:
            return Reply(request.key, prompt, "", stop="error", error=NO_PREFILL)
        try:
            said = self._function.call(request, conversation(self._nonce, request), self._loop)
        except EngineFailure as error:  # the function's own matter, not the end of the run
            return Reply(request.key, prompt, "", stop="error", error=str(error)[:500])
        return Reply(request.key, prompt, said.text, tool_calls=said.tool_calls)


NO_PREFILL = "this target's answer cannot be made to begin with given words: leave the attack 'prefill' out"
