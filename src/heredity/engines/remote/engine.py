"""A model behind an API: OpenAI-compatible chat completions, Anthropic's Messages, Google's Gemini.

Each API is a file in apis/, which writes bodies and reads answers. Sending, retries, concurrency and budget
are the same for all of them (transport.py, retry.py, budget.py).

Promises: as many requests are in flight as the service supports. A stop by its content filter is an answer
with stop "filter". A key is sent only to its own address. `numerics` names the address and the model.
The same name may answer differently on another day, so `account` reports the versions that the service names.
Leaves to others: the record of the model (recipes/targets/remote.py) and the questions.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING

import msgspec

from heredity.core import registry
from heredity.core.errors import Damaged, EngineFailure, Unavailable, UnknownName
from heredity.core.host import Device
from heredity.core.records import Decoding, Model, Reply, Request, digest
from heredity.engines import RequestStream, failed_reply
from heredity.engines._workers import ASK_AGAIN
from heredity.engines.protocols import Capabilities, FirstAnswer, Listener, Provenance
from heredity.engines.remote.budget import BYTES_PER_TOKEN, HOMES, NO_KEY, Budget, Calls, Price, Usage

if TYPE_CHECKING:
    from heredity.engines.remote.messages import Endpoint, RemoteApi
    from heredity.engines.remote.transport import InFlightRequest, Transport

__all__ = ["Budget", "Calls", "Price", "RemoteEngine", "Usage", "load"]


def load(
    model: Model,
    folder: Path,  # noqa: ARG001 (there are no files)
    tuning: Path | None = None,  # noqa: ARG001
    device: Device | None = None,  # noqa: ARG001
    *,
    calls: Calls | None = None,
) -> RemoteEngine:
    """Load the engine of a remote record. `calls`: how it is called and what it may use (None: the defaults).

    Raises Unavailable if the environment variable with the key is not set, Damaged for an incomplete record.
    """
    from heredity.engines._heard import KeyMask
    from heredity.engines.remote.messages import ApiModule, Endpoint
    from heredity.engines.remote.transport import Transport

    calls = calls or Calls()
    settings = model.recipe.settings
    try:
        api, base_url, name = (str(settings[key]) for key in ("api", "base_url", "model"))
        module = registry.load_as(ApiModule, "engines.remote.apis", api)
    except (KeyError, UnknownName) as error:
        raise Damaged(f"The record of '{model.name}' does not name its API or address: {error}.") from None
    key = calls.key(model.name, api, base_url)
    price = calls.price(model.name, api, base_url, name)
    endpoint = Endpoint(model.name, api, base_url, name, settings.get("options") or {})
    opened, mask = module.open_api(endpoint, key), KeyMask() if key == NO_KEY else KeyMask(key)
    return RemoteEngine(endpoint, opened, calls, price, Transport(opened, name, key, calls, mask))


def shared_address(model: Model) -> str:
    """The address and API of a server that is not the vendor's own; "" for the vendor's."""
    address, api = (str(model.recipe.settings.get(key, "")) for key in ("base_url", "api"))
    return "" if address in ("", HOMES.get(api)) else f"{address} ({api})"


class RemoteEngine:
    """A remote model behind the Engine protocol."""

    def __init__(
        self, endpoint: Endpoint, api: RemoteApi, calls: Calls, price: Price | None, transport: Transport
    ) -> None:
        self.endpoint, self.api, self.transport = endpoint, api, transport
        self.budget, self.price, self._concurrency = calls.budget, price, calls.concurrency
        self._first = FirstAnswer()
        address = digest([endpoint.base_url, dict(endpoint.options)])[:12]
        self.numerics = f"remote {endpoint.api} {endpoint.model} {address}"
        host = "" if endpoint.base_url == HOMES[endpoint.api] else f" at {endpoint.base_url}"
        self.name = f"remote {endpoint.api} {endpoint.model}{host} ({address})"

    def render(self, request: Request) -> str:
        """Return the conversation as text, equal only for equal requests: the real template is unknown."""
        from heredity.engines.remote.messages import render

        return render(request)

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Answer the stream, as many at a time as the service supports.

        Raises EngineFailure or BudgetSpent.
        """
        return self._answer(requests, None)

    @property
    def capabilities(self) -> Capabilities:
        """See protocols.Capabilities."""
        provenance = Provenance(account=self.account, as_sent=self.as_sent, first_answer=self._first)
        return Capabilities(streamer=self, check_schema=self.check_schema, provenance=provenance)

    @property
    def width(self) -> int:
        """The most requests in flight."""
        return self._concurrency

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        """Do the same as `reply` and report to a listener. A service without streams gives whole answers."""
        return self._answer(requests, listener)

    def _answer(self, requests: Iterable[Request | None], listener: Listener | None) -> Iterator[Reply]:
        try:
            yield from self._first.announce(_Session(self, iter(requests), listener).run())
        finally:
            self.transport.give_up()

    def check_schema(self, schema: str) -> None:  # noqa: ARG002
        """Raise Unavailable for an API without schemas. A service refuses each request with a bad one."""
        if not self.api.holds_schemas:
            raise Unavailable(
                f"{self.name}: heredity sends no JSON schema through the API '{self.endpoint.api}'."
            )

    def as_sent(self, decoding: Decoding) -> Decoding:
        """Return the decoding that the service uses: it samples if no temperature is sent."""
        if self.endpoint.sends("temperature"):
            return decoding
        return msgspec.structs.replace(decoding, temperature=1.0)

    def account(self) -> dict[str, object]:
        """Return the versions that the service named, and the counts of this engine's life."""
        counted, budget = self.transport.counted, self.budget
        account: dict[str, object] = {"served": list(counted.served), "not_sent": self.endpoint.withheld}
        account |= dict(sorted(counted.counts.items()))
        if budget.max_cost is not None or self.price is not None:
            account["cost"] = round(budget.cost, 6)
        if self.price is not None:
            account["price"] = [f"{self.price.prompt:g},{self.price.answer:g}"]  # a list: runs may differ
            if self.price.as_of:
                account["price_as_of"] = [self.price.as_of]
        return account

    def close(self) -> None:
        """Close the connections and end the thread."""
        self.transport.close()


class _Session:
    """One stream of requests, in the thread that iterates over the replies."""

    def __init__(
        self, engine: RemoteEngine, requests: Iterable[Request | None], listener: Listener | None
    ) -> None:
        self._listener = listener
        self._endpoint, self._transport, self._source = (
            engine.endpoint,
            engine.transport,
            RequestStream(requests),
        )
        self._transport.fatal = ""  # the failure that ended an earlier stream may be over
        self._api, self._budget, self._price = engine.api, engine.budget, engine.price
        self._n_in_flight, self._is_spent = 0, False
        self._held: InFlightRequest | None = None  # pulled, but the budget has no room for it yet

    def run(self) -> Iterator[Reply]:
        while True:
            yield from self._pull()
            if not self._n_in_flight:
                break
            try:
                completion = self._transport.done.get(timeout=ASK_AGAIN if self._takes_more() else None)
            except Empty:
                continue  # the stream may have another request by now
            self._n_in_flight -= 1
            self._budget.settle(completion.reserved, completion.used, self._price)
            counts = self._transport.counted.counts
            counts["n_prompt_tokens"] += completion.used.n_prompt
            counts["n_answer_tokens"] += completion.used.n_answer
            counts["n_cached_prompt_tokens"] += completion.used.n_cached
            counts["n_usage_estimated"] += completion.used.is_estimated
            if completion.reply is not None:
                yield completion.reply
        if self._transport.fatal:
            raise EngineFailure(self._transport.fatal)
        if self._is_spent:
            raise self._budget.spent()
        self._source.refuse_idle()

    def _pull(self) -> Iterator[Reply]:
        """Take requests while there is room; answer those that the API cannot express."""
        while self._takes_more():
            if self._held is None:
                if (request := self._source.next()) is None:
                    return
                self._held = yield from self._prepare(request)
            elif self._budget.take(self._held.reserved, self._price):
                self._n_in_flight += 1
                self._transport.start(self._held)
                self._held = None
            else:  # requests in flight may use less than was reserved for them
                self._is_spent = not self._n_in_flight
                return

    def _prepare(self, request: Request) -> Generator[Reply, None, InFlightRequest | None]:
        from heredity.engines._heard import HeardAnswer
        from heredity.engines.remote.messages import render
        from heredity.engines.remote.transport import InFlightRequest

        prompt = render(request)
        try:
            body = self._api.body(request)
        except EngineFailure as error:
            yield failed_reply(request, prompt, error, n_tokens=0)
            return None
        n_bytes = len(prompt.encode("utf-8", "replace"))
        reserved = Usage(-(-n_bytes // BYTES_PER_TOKEN), self._endpoint.token_limit(request.decoding))
        heard = None if self._listener is None else HeardAnswer(request, self._listener, self._transport.mask)
        return InFlightRequest(request, body, prompt, reserved, heard)

    def _takes_more(self) -> bool:
        is_on = self._source.is_open and not self._is_spent and not self._transport.fatal
        return is_on and self._n_in_flight < self._transport.pace.room
