"""Sends requests to a remote service: an event loop in a thread of its own, with all retries.

Promises: `done` receives every started request exactly once, as a `Completion`. A transient failure is
retried within the request's patience, unless a part of the answer was heard. Any other failure is a reply
with stop "error" at once. A failure of all requests closes the transport, and requests in flight still
finish.
Leaves to others: which requests are sent, and what they may cost (engine.py); one attempt (http_client.py).
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from heredity.core.errors import EngineFailure
from heredity.core.records import Reply, Request, ToolCall
from heredity.core.sanitize import clean_text, plural
from heredity.engines import failed_reply
from heredity.engines._heard import HeardAnswer, KeyMask
from heredity.engines.remote.budget import Calls, Usage
from heredity.engines.remote.http_client import (
    HttpClient,
    HttpResponse,
    RequestFailure,
    broken_answer,
    read_chunk,
    read_json,
)
from heredity.engines.remote.messages import ApiAnswer, JsonObject, MalformedAnswer, RemoteApi
from heredity.engines.remote.retry import ConcurrencyLimit, TransportClosed, wait_seconds

Result = TypeVar("Result")
_LOOK_SECONDS = 0.1  # between two looks whether an answer is still wanted
_STREAM_REFUSED = frozenset({400, 404, 405, 422})  # of a service without streams, or not for this account
_END = b"[DONE]"  # the data of an end marker that is not JSON
_MOST_FAILURES = 16  # requests in a row that failed with all their attempts
_FILTER_CODES = frozenset({"content_filter", "content_policy_violation"})  # Azure's and OpenAI's, status 400


@dataclass
class InFlightRequest:
    """A request in flight and the result of its attempts.

    reserved: its part of the budget. heard: the parts of its answer, if somebody listens.
    """

    request: Request
    body: JsonObject
    prompt: str
    reserved: Usage
    heard: HeardAnswer | None = None
    used: Usage = field(default_factory=Usage)
    started: float = field(default_factory=time.monotonic)
    n_failures: int = 0
    n_limits: int = 0


@dataclass(frozen=True)
class Completion:
    """The end of a request: its reply and what it used. `reply` None: abandoned as the transport closed."""

    request: Request
    reserved: Usage
    used: Usage
    reply: Reply | None


@dataclass
class RunCounts:
    """Counts of one engine's life, for the row of the run. Only the loop's thread writes them."""

    counts: Counter[str] = field(default_factory=Counter)
    served: dict[str, None] = field(default_factory=dict)  # in order of their first appearance


class Transport:
    """The thread with its event loop, and the connections in it."""

    def __init__(self, api: RemoteApi, name: str, key: str, calls: Calls, mask: KeyMask) -> None:
        self.done: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        self.counted = RunCounts()
        self.fatal = ""
        self.pace = ConcurrencyLimit(calls.concurrency)
        self._api, self._calls, self.mask = api, calls, mask
        self._n_in_a_row, self._n_answered = 0, 0
        self._has_streams = True  # until the service refuses one
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"remote {name}", daemon=True)
        self._thread.start()
        try:
            self._client: HttpClient = self._run(self._open(key))
        except BaseException:
            self._stop()
            raise

    async def _open(self, key: str) -> HttpClient:
        return HttpClient(self._calls, self.mask, key)

    def start(self, in_flight: InFlightRequest) -> None:
        """Send a request."""
        self._loop.call_soon_threadsafe(self._start, in_flight)

    def give_up(self) -> None:
        """Cancel the requests in flight and wait until they have ended."""
        if self._loop.is_closed():
            return
        self._run(self._cancel())
        while not self.done.empty():
            self.done.get()

    def close(self) -> None:
        """Cancel, close the connections and end the thread."""
        if self._loop.is_closed():
            return
        self._run(self._shut())
        self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[object, None, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # --- in the thread of the loop --------------------------------------------------------------------

    def _start(self, in_flight: InFlightRequest) -> None:
        task = self._loop.create_task(self._answer(in_flight))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _shut(self) -> None:
        await self._cancel()
        await self._client.aclose()
        for _ in range(3):  # the turns in which the loop closes its sockets
            await asyncio.sleep(0)

    async def _answer(self, in_flight: InFlightRequest) -> None:
        reply: Reply | None = None
        try:
            reply = await self._while_wanted(in_flight)
        except TransportClosed:
            pass
        except RequestFailure as failure:
            reply = self._failed(in_flight, failure.message)
        except Exception as error:  # a fault of ours: a row that reports it, not a request that never ends
            reply = self._failed(in_flight, f"a fault in the remote engine ({type(error).__name__})")
        self.done.put(Completion(in_flight.request, in_flight.reserved, in_flight.used, reply))

    async def _while_wanted(self, in_flight: InFlightRequest) -> Reply:
        """Try until there is an answer, or until its listener wants no more: that reply has its parts."""
        if (heard := in_flight.heard) is None:
            return await self._persist(in_flight)
        work = asyncio.ensure_future(self._persist(in_flight))
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=_LOOK_SECONDS)
                if not work.done() and not heard.is_wanted:
                    return self._reply(in_flight, ApiAnswer(heard.text, (), "length", "", None, ""))
            return await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _persist(self, in_flight: InFlightRequest) -> Reply:
        """Try until there is an answer. Raises RequestFailure, or Closed if the transport ends first."""
        while True:
            entered = await self.pace.enter()
            try:
                answer = await self._attempt(in_flight)
            except RequestFailure as failure:
                if failure.code in _FILTER_CODES and not _is_begun(in_flight):
                    answer = ApiAnswer("", (), "filter", failure.code, Usage(), "")
                else:
                    await self._recover(in_flight, failure, entered)
                    continue
            finally:
                self.pace.leave()
            self._n_in_a_row, self._n_answered = 0, self._n_answered + 1
            self.pace.grow()
            return self._reply(in_flight, answer)

    async def _attempt(self, in_flight: InFlightRequest) -> ApiAnswer:
        heard = in_flight.heard
        if not self._has_streams or heard is None or not heard.is_asked_for:
            return self._read(in_flight, await self._post(in_flight.body))
        try:
            return await self._streamed(in_flight, heard)
        except RequestFailure as failure:
            is_refused = failure.status in _STREAM_REFUSED and failure.code not in _FILTER_CODES
            if not is_refused or _is_begun(in_flight):
                raise
        answer = self._read(in_flight, await self._post(in_flight.body))
        self._has_streams = False
        return answer

    async def _streamed(self, in_flight: InFlightRequest, heard: HeardAnswer) -> ApiAnswer:
        stream = self._api.open_stream(clean_text(in_flight.request.prefill))

        def receive(data: bytes) -> bool:
            if data == _END:
                stream.end()
            else:
                heard.hear(stream.feed(read_chunk(data)))
            return stream.is_ended

        response = await self._post(self._api.as_stream(in_flight.body), receive)
        if response.body:  # it came whole
            return self._read(in_flight, response)
        try:
            answer = self._api.read(stream.answer(), clean_text(in_flight.request.prefill))
            # A filter may take the answer back. Otherwise a listener would have another one than the row.
            if answer.stop != "filter" and not self.mask(answer.text).startswith(heard.text):
                raise MalformedAnswer("the parts of the stream are not in the order of the answer")
        except MalformedAnswer as error:
            raise broken_answer(error) from None
        return answer

    async def _post(self, body: JsonObject, receive: Callable[[bytes], bool] | None = None) -> HttpResponse:
        self.counted.counts["n_requests"] += 1
        try:
            async with asyncio.timeout(self._calls.total_seconds):
                url = self._api.url if receive is None else self._api.stream_url
                return await self._client.post(url, self._api.headers, body, receive)
        except TimeoutError:
            seconds = self._calls.total_seconds
            message = f"no answer within {seconds:g} seconds"
            raise RequestFailure(message, is_transient=True, may_cost=True) from None

    def _read(self, in_flight: InFlightRequest, response: HttpResponse) -> ApiAnswer:
        try:
            return self._api.read(read_json(response), clean_text(in_flight.request.prefill))
        except MalformedAnswer as error:
            raise broken_answer(error) from None

    async def _recover(self, in_flight: InFlightRequest, failure: RequestFailure, entered: float) -> None:
        """Wait until a retry is allowed. Raises the failure if it is final, or Closed."""
        calls, now = self._calls, time.monotonic()
        if failure.may_cost:
            in_flight.used = add(in_flight.used, Usage(in_flight.reserved.n_prompt, 0, is_estimated=True))
        if failure.is_for_all and (failure.is_permanent or not self._n_answered):
            self._end(failure.message)
        if not failure.is_transient or _is_begun(in_flight):
            raise failure
        in_flight.n_failures += not failure.is_limit
        in_flight.n_limits += failure.is_limit
        n_attempts = in_flight.n_failures + in_flight.n_limits
        seconds = wait_seconds(n_attempts, calls.first_wait) if failure.after is None else failure.after
        if failure.is_limit:
            self.counted.counts["n_limited"] += 1
            if seconds > calls.patience_seconds:
                self._end(f"{failure.message} (the service asks to wait {seconds:,.0f} seconds)")
            self.pace.cut(entered, seconds)
        is_spent = in_flight.n_failures > calls.retries or in_flight.n_limits > 4 * calls.retries
        if is_spent or now + seconds > in_flight.started + calls.patience_seconds:
            self._n_in_a_row += 1
            if self._n_in_a_row >= _MOST_FAILURES:
                self._end(f"{self._n_in_a_row} requests in a row failed, the last with: {failure.message}")
            raise RequestFailure(f"{failure.message} (after {plural(n_attempts, 'attempt')})") from None
        self.counted.counts["n_retried"] += 1
        await self.pace.sleep(0.0 if failure.is_limit else seconds)

    def _end(self, message: str) -> None:
        """Start and retry nothing more; requests in flight still finish."""
        self.fatal = self.fatal or self.mask(message)
        self.pace.close()
        raise TransportClosed

    # --- replies --------------------------------------------------------------------------------------

    def _reply(self, in_flight: InFlightRequest, answer: ApiAnswer) -> Reply:
        used = answer.usage
        if used is None:
            n_answer = -(-len(answer.text.encode("utf-8", "replace")) // 3)
            used = Usage(in_flight.reserved.n_prompt, n_answer, is_estimated=True)
        in_flight.used = add(in_flight.used, used)
        if served := self.mask(answer.served):
            self.counted.served.setdefault(served)
        if answer.stop == "filter":
            self.counted.counts[f"n_filtered ({self.mask(answer.reason)[:40]})"] += 1
        text = self.mask(answer.text)
        if in_flight.heard is not None and in_flight.heard.is_asked_for:
            in_flight.heard.finish(text)
        return Reply(
            in_flight.request.key,
            in_flight.prompt,
            text,
            tool_calls=tuple(map(self._call, answer.calls)),
            stop=answer.stop,
            n_prompt_tokens=used.n_prompt,
            n_tokens=used.n_answer,
        )

    def _call(self, call: ToolCall) -> ToolCall:
        """Return the call without the key: a service that repeats it may put it anywhere."""
        encoded = msgspec.json.encode(call.arguments).decode("utf-8", "replace")
        if (masked := self.mask(encoded)) != encoded:
            return ToolCall(self.mask(call.name), msgspec.json.decode(masked))
        return ToolCall(self.mask(call.name), call.arguments)

    def _failed(self, in_flight: InFlightRequest, message: str) -> Reply:
        error = EngineFailure(self.mask(message))
        return failed_reply(in_flight.request, in_flight.prompt, error, n_tokens=0)


def _is_begun(in_flight: InFlightRequest) -> bool:
    """Return True if a part of the answer was heard: another attempt would begin again."""
    return in_flight.heard is not None and in_flight.heard.is_begun


def add(a: Usage, b: Usage) -> Usage:
    """Return the sum of two usages."""
    return Usage(
        a.n_prompt + b.n_prompt,
        a.n_answer + b.n_answer,
        a.n_cached + b.n_cached,
        a.n_written + b.n_written,
        a.is_estimated or b.is_estimated,
    )
