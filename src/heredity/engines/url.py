"""A web address as a target: an application that is up, asked over HTTP. See recipes/url.py for its settings.

Promises: an answer that is missing, late or garbled is an error row; a guard of the application that says no
stopped the answer (stop "filter"); a refused key, or a server that is down, ends the run and keeps what was
answered.
Leaves to others: what the application does. Its answers are asked anew in every study, never cached.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from heredity.engines import _function, _http
from heredity.engines._crew import Crew, as_text, conversation, failed
from heredity.engines.call import NO_PREFILL
from heredity.records import Model, Reply, Request, Stop


def load(model: Model, folder: Path, tuning: Path | None = None) -> Url:  # noqa: ARG001 (there are no files)
    """The engine of a recorded address. Raises Unavailable where a header's variable is not set."""
    settings = model.recipe.settings
    return Url(
        _http.Web(settings),
        takes_messages=bool({"messages", "system"} & _http.slots_in(settings["body"])),
        width=int(settings["concurrency"]),
        timeout_seconds=float(settings["timeout_seconds"]),
    )


class Url:
    """An address behind the Engine protocol, asked over `width` connections at once."""

    def __init__(self, web: _http.Web, takes_messages: bool, width: int, timeout_seconds: float) -> None:
        self._web, self._takes_messages = web, takes_messages
        self._width, self._timeout = width, timeout_seconds
        self._nonce = secrets.token_hex(8)
        self.name = f"url {web.url} width {width}"
        self.numerics = ""  # what an application answers may depend on anything

    def render(self, request: Request) -> str:
        """The conversation as one text; the application's own prompt is not known."""
        _function.refuse_unseen(f"url:{self._web.url}", self._takes_messages, request)
        return as_text(request)

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        # Later than the request's own limit: that one says better what was the matter.
        return Crew(self._answer, self._width, self._timeout + 5, self.render).reply(requests)

    def close(self) -> None:
        self._web.close()

    def _answer(self, request: Request) -> Reply:
        if request.prefill:
            return failed(request, self.render, NO_PREFILL)
        try:
            said = self._web.ask(request, conversation(self._nonce, request))
        except _http.Failed as error:
            return failed(request, self.render, str(error))
        stop: Stop = "filter" if said.is_blocked else "end"
        return Reply(request.key, self.render(request), said.text, stop=stop)
