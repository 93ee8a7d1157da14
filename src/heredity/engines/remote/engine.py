"""A model behind an API: OpenAI-compatible chat completions, Anthropic's Messages, Google's Gemini.

The vendors' SDKs build and sign the requests (extra: heredity[remote]); time, retries, pace and budget are
this engine's own, the same for all three (_remote_line.py, _remote_pace.py, _remote_calls.py).

Promises: as many requests are under way as the service bears; a stop by its content filter is an answer with
stop "filter"; no key leaves but to the model's own address. `numerics` names the address and the model: the
same name may answer otherwise another day, so what the service says that it served is told by `account`.
Leaves to others: the model's record (recipes/remote.py), and what was asked.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

import msgspec

from heredity.core.errors import Damaged, EngineFailure, Unavailable
from heredity.core.records import Decoding, Model, Reply, Request, digest
from heredity.engines import RequestStream, failed_reply
from heredity.engines._workers import ASK_AGAIN
from heredity.engines.remote.budget import HOMES, Budget, Calls, Price, Usage

if TYPE_CHECKING:
    from heredity.engines.remote.line import Errand, Line
    from heredity.engines.remote.messages import Where

__all__ = ["Budget", "Calls", "Price", "Remote", "Usage", "load"]

_PACKAGES = {"openai": "openai", "anthropic": "anthropic", "gemini": "google-genai"}
_BYTES_A_TOKEN = 3  # of a prompt, for what is reserved of a budget: more tokens than nearly any text has


def load(
    model: Model,
    folder: Path,  # noqa: ARG001 (there are no files)
    tuning: Path | None = None,  # noqa: ARG001
    *,
    calls: Calls | None = None,
) -> Remote:
    """The engine of a remote record. `calls`: how it is called, and what it may use (None: the defaults).

    Raises Unavailable where the vendor's SDK is not installed, or the variable with the key is not set.
    """
    calls = calls or Calls()
    settings = model.recipe.settings
    try:
        api, base_url, name = (str(settings[key]) for key in ("api", "base_url", "model"))
        package = _PACKAGES[api]
    except KeyError as error:
        raise Damaged(f"The record of '{model.name}' does not say where it is: {error}.") from None
    key, price = calls.key(model.name, api, base_url), calls.price(model.name)
    try:
        from heredity.engines.remote import line as _remote_line
        from heredity.engines.remote import messages, transport

        service = import_module(f"heredity.engines.remote.apis.{api}")
    except ImportError as error:
        raise Unavailable(
            f"'{model.name}' is asked through the package {package}, which is not installed ({error}). "
            "Install it: pip install 'heredity[remote]'"
        ) from None
    where = messages.Where(model.name, api, base_url, name, settings.get("options") or {})
    hidden = transport.hide(key)
    return Remote(where, calls, price, _remote_line.Line(where, key, calls, service.open_service, hidden))


class Remote:
    """A far model behind the Engine protocol."""

    def __init__(self, where: Where, calls: Calls, price: Price | None, line: Line) -> None:
        self.where, self.budget, self.price, self.line = where, calls.budget, price, line
        at = digest([where.base_url, dict(where.options)])[:12]
        self.numerics = f"remote {where.api} {where.model} {at}"
        host = "" if where.base_url == HOMES[where.api] else f" at {where.base_url}"
        package = _PACKAGES[where.api]
        self.name = f"remote {where.api} {where.model}{host} by {package} {_version(package)} ({at})"

    def render(self, request: Request) -> str:
        """The conversation as text, the same exactly for the same request; the real template is not known."""
        from heredity.engines.remote.messages import render

        return render(request)

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Answer the stream, as many at a time as the service bears. Raises EngineFailure or BudgetSpent."""
        try:
            yield from _Session(self, iter(requests)).run()
        finally:
            self.line.give_up()

    def as_sent(self, decoding: Decoding) -> Decoding:
        """The decoding as the service will have it: drawn, where no temperature is sent. Keys the cache."""
        if self.where.sends("temperature"):
            return decoding
        return msgspec.structs.replace(decoding, temperature=1.0)

    def account(self) -> dict[str, Any]:
        """What the service said that it served, and counts of this engine's life; for the run's row."""
        tally, budget = self.line.tally, self.budget
        found: dict[str, Any] = {"served": list(tally.served), "not_sent": self.where.withheld}
        found |= dict(sorted(tally.counts.items()))
        if budget.max_cost is not None or self.price is not None:
            found["cost"] = round(budget.cost, 6)
        if self.price is not None:
            found["price"] = [f"{self.price.prompt:g},{self.price.answer:g}"]  # a list: runs may differ
        return found

    def close(self) -> None:
        """Close the connections and end the thread."""
        self.line.close()


class _Session:
    """One stream of requests, in the thread of whoever iterates."""

    def __init__(self, engine: Remote, requests: Iterable[Request | None]) -> None:
        self._where, self._line, self._source = engine.where, engine.line, RequestStream(requests)
        self._line.fatal = ""  # what ended a stream before this one may have passed
        self._budget, self._price = engine.budget, engine.price
        self._n_under_way, self._is_spent = 0, False
        self._held: Errand | None = None  # pulled, and the budget does not reach for it yet

    def run(self) -> Iterator[Reply]:
        while True:
            yield from self._pull()
            if not self._n_under_way:
                break
            try:
                told = self._line.done.get(timeout=ASK_AGAIN if self._takes_more() else None)
            except Empty:
                continue  # whoever sends requests may have another by now
            self._n_under_way -= 1
            self._budget.settle(told.worst, told.used, self._price)
            self._count(told.used)
            if told.reply is not None:
                yield told.reply
        if self._line.fatal:
            raise EngineFailure(self._line.fatal, code="service-failed")
        if self._is_spent:
            raise self._budget.spent()
        self._source.refuse_idle()

    def _pull(self) -> Iterator[Reply]:
        """Take requests while there is room for them; answer here those that the service has no words for."""
        while self._takes_more():
            if self._held is None:
                if (request := self._source.next()) is None:
                    return
                self._held = yield from self._errand(request)
            elif self._budget.take(self._held.worst, self._price):
                self._n_under_way += 1
                self._line.start(self._held)
                self._held = None
            else:  # what is under way may use less than was reserved for it
                self._is_spent = not self._n_under_way
                return

    def _errand(self, request: Request) -> Generator[Reply, None, Errand | None]:
        from heredity.engines.remote.line import Errand
        from heredity.engines.remote.messages import render

        prompt = render(request)
        try:
            body = self._line.body(request)
        except EngineFailure as error:
            yield failed_reply(request, prompt, error, n_tokens=0)
            return None
        n_bytes = len(prompt.encode("utf-8", "replace"))
        worst = Usage(-(-n_bytes // _BYTES_A_TOKEN), self._where.n_most(request.decoding))
        return Errand(request, body, prompt, worst)

    def _takes_more(self) -> bool:
        is_on = self._source.is_open and not self._is_spent and not self._line.fatal
        return is_on and self._n_under_way < self._line.pace.room

    def _count(self, used: Usage) -> None:
        counts = self._line.tally.counts
        counts["n_prompt_tokens"] += used.n_prompt
        counts["n_answer_tokens"] += used.n_answer
        counts["n_cached_prompt_tokens"] += used.n_cached
        counts["n_usage_estimated"] += used.is_estimated


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"
