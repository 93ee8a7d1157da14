"""A model behind an API: OpenAI-compatible chat completions, Anthropic's Messages, Google's Gemini.

Each API is a file in apis/, which writes bodies and reads answers. Sending, retries, concurrency and budget
are the same for all of them. An event loop in a thread of its own sends the requests.

Promises: a transient failure is retried within the request's patience, unless a part of the answer was heard.
Any other failure is a reply with stop "error" at once. As many requests are in flight as the service
supports: additive increase and multiplicative decrease (Chiu and Jain 1989), with a doubling start. A burst
of refusals causes one cut. No request starts before the end of a pause that it asked for. A stop by its
content filter is an answer with stop "filter". A key is sent only to its own address. `numerics` names the
address and the model. The same name may answer differently on another day, so `account` reports the versions
that the service names.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import queue
import random
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from queue import Empty
from typing import NamedTuple, TypeVar

import httpx
import msgspec
import truststore

from heredity.core import registry
from heredity.core.errors import Damaged, EngineFailure, Unavailable, UnknownName
from heredity.core.host import Device
from heredity.core.records import Decoding, Model, Reply, Request, ToolCall, digest
from heredity.core.sanitize import clean_text, plural
from heredity.engines import Capabilities, FirstAnswer, Listener, Provenance, RequestStream, failed_reply
from heredity.engines._workers import ASK_AGAIN, EventReader, KeyMask, StreamedAnswer
from heredity.engines.remote.apis import (
    ApiAnswer,
    ApiModule,
    Endpoint,
    JsonObject,
    MalformedAnswer,
    RemoteApi,
    render,
)
from heredity.engines.remote.services import BYTES_PER_TOKEN, HOMES, NO_KEY, Calls, Price, Usage

# --- concurrency and retries: everything but `room` runs in the loop's thread -----------------------------

START = 4
_MAX_WAIT_SECONDS = 30.0  # seconds between two attempts, if the service names none


class TransportClosed(Exception):
    """The run has ended; waiting requests are abandoned."""


class ConcurrencyLimit:
    """Admits requests, up to a limit that follows the service."""

    def __init__(self, most: int) -> None:
        self._most, self._width = most, float(min(START, most))
        self._is_starting = True
        self._n_active, self._paused_until, self._cut_at = 0, 0.0, 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._ends = asyncio.Event()

    @property
    def room(self) -> int:
        """How many requests may be in flight now, including those that wait for a retry."""
        return max(1, int(self._width))

    async def enter(self) -> float:
        """Wait for admission; return its time. Raises TransportClosed once the run ends."""
        while not self._ends.is_set():
            now = time.monotonic()
            if now >= self._paused_until and self._n_active < self.room:
                self._n_active += 1
                return now
            await self._wait(self._paused_until - now)
        raise TransportClosed

    async def _wait(self, seconds: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(turn, seconds if seconds > 0 else None)
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    async def sleep(self, seconds: float) -> None:
        """Wait before a retry. Raises TransportClosed once the run ends."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ends.wait(), seconds)
        if self._ends.is_set():
            raise TransportClosed

    def leave(self) -> None:
        """Leave, so that another request can enter."""
        self._n_active -= 1
        self._wake()

    def grow(self) -> None:
        """Raise the limit: the service has answered."""
        self._width = min(self._most, self._width + (1 if self._is_starting else 1 / self._width))
        self._wake()

    def cut(self, started: float, seconds: float) -> None:
        """Halve the limit and pause: the service refused a request that was admitted at `started`."""
        now = time.monotonic()
        self._paused_until = max(self._paused_until, now + seconds)
        if started < self._cut_at:
            return  # it was in flight at the last cut: the same burst
        self._is_starting, self._cut_at = False, now
        self._width = max(1.0, self._width / 2)

    def close(self) -> None:
        """Abandon all requests that wait now or later."""
        self._ends.set()
        self._wake()

    def _wake(self) -> None:
        n_free = len(self._waiting) if self._ends.is_set() else self.room - self._n_active
        while self._waiting and n_free > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                n_free -= 1


def wait_seconds(n_failures: int, first: float) -> float:
    """Return the seconds before the next attempt: doubled each time, with jitter."""
    longest = min(_MAX_WAIT_SECONDS, first * 2.0 ** min(n_failures - 1, 30))
    return longest * random.uniform(0.5, 1.0)


def retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number or a date; None for anything else."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


# --- sending ---------------------------------------------------------------------------------------------

MAX_BYTES = 16 << 20  # of one response; a long answer has some hundred kilobytes
_SHOWN = 300  # characters of a service's message in ours
_TRANSIENT = frozenset({408, 409, 425, 429})
_LIMITS = frozenset({429, 503, 529})  # the service asks for fewer requests; 529 is Anthropic's
_FOR_ALL = frozenset({401, 402, 403, 404, 405})
_PERMANENT = frozenset({401, 402})
_EVENT_HEADERS = {"accept": "text/event-stream, application/json"}
_HEADERS = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "connection": "keep-alive",
    "content-type": "application/json",
    "user-agent": "heredity",
}


class RequestFailure(Exception):
    """An attempt that brought no answer.

    is_transient: another attempt may succeed. is_limit: the service asks for fewer requests.
    is_for_all: no other request would fare better; is_permanent: even if some were answered before.
    after: seconds that the service asks to wait. code: its own word for the failure.
    may_cost: the service may have computed an answer. status: of the response; 0 without one.
    """

    def __init__(
        self,
        message: str,
        *,
        is_transient: bool = False,
        is_limit: bool = False,
        is_for_all: bool = False,
        is_permanent: bool = False,
        after: float | None = None,
        code: str = "",
        may_cost: bool = False,
        status: int = 0,
    ) -> None:
        super().__init__(message)
        self.message, self.is_transient, self.is_limit = message, is_transient, is_limit
        self.is_for_all, self.is_permanent = is_for_all, is_permanent
        self.after, self.code, self.may_cost, self.status = after, code, may_cost, status


class HttpResponse(NamedTuple):
    """A response without the key. `after` is its Retry-After header."""

    status: int
    after: str | None
    body: bytes


class HttpClient:
    """Posts JSON and reads each response whole, within bounds."""

    def __init__(self, calls: Calls, mask: KeyMask, key: str) -> None:
        for name in ("httpx", "httpcore"):  # keeps requests out of logs, whatever the environment asks for
            logging.getLogger(name).setLevel(logging.ERROR)
        n = calls.concurrency
        timeout = httpx.Timeout(calls.stall_seconds, connect=calls.connect_seconds, pool=None)
        context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if (file := os.environ.get("SSL_CERT_FILE")) and Path(file).is_file():
            context.load_verify_locations(cafile=file)
        self._client = httpx.AsyncClient(
            verify=context,
            timeout=timeout,
            limits=httpx.Limits(max_connections=n, max_keepalive_connections=n, keepalive_expiry=30.0),
            follow_redirects=False,
        )
        self._mask, self._has_key = mask, key != NO_KEY
        self._extensions = {"timeout": timeout.as_dict()}

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: Mapping[str, object],
        receive: Callable[[bytes], bool] | None = None,
    ) -> HttpResponse:
        """Post a JSON body. Raises RequestFailure if no whole response comes back.

        receive: gets the data of each server-sent event, until it returns True or the response ends; the
        body is then empty. An error of it is a RequestFailure. Another response is read whole.
        """
        try:
            content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
            # Not client.build_request: it would add cookies of earlier responses.
            sent = {**_HEADERS, **({} if receive is None else _EVENT_HEADERS), **headers}
            request = httpx.Request("POST", url, headers=sent, content=content, extensions=self._extensions)
            response = await self._client.send(request, stream=True)
            try:
                kind = response.headers.get("content-type", "").lower()
                if receive is None or not (response.is_success and kind.startswith("text/event-stream")):
                    data = self._masked(b"".join([part async for part in _parts(response)]))
                else:
                    data = await self._pass_on(response, receive)
            finally:
                await response.aclose()
        except RequestFailure:
            raise
        except Exception as error:
            raise _failure_of_error(error) from None
        return HttpResponse(response.status_code, response.headers.get("retry-after"), data)

    async def _pass_on(self, response: httpx.Response, receive: Callable[[bytes], bool]) -> bytes:
        """Pass the events of a response on. Returns b""."""
        reader = EventReader()
        async for part in _parts(response):
            for data in reader.feed(part):
                if receive(self._masked(data)):
                    return b""
        return b""

    def _masked(self, data: bytes) -> bytes:
        if not self._has_key:
            return data
        return self._mask(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


async def _parts(response: httpx.Response) -> AsyncIterator[bytes]:
    """The parts of a body as they come. Raises MalformedAnswer for a compressed or too long one."""
    coding = response.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise MalformedAnswer(f"the body is compressed ({coding[:20]!r}), which was not requested")
    n = 0
    async for part in response.aiter_raw():
        n += len(part)
        if n > MAX_BYTES:
            raise MalformedAnswer(f"the body is longer than {MAX_BYTES:,} bytes")
        yield part


def read_json(response: HttpResponse) -> JsonObject:
    """Return the object in a successful response. Raises RequestFailure for another, or MalformedAnswer."""
    if not 200 <= response.status < 300:
        raise _failure_of_status(response)
    return _decode(response.body, "the body")


def _decode(body: bytes, name: str) -> JsonObject:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        try:  # a model may write lone surrogates: U+FFFD each
            value = msgspec.json.decode(clean_text(json.dumps(json.loads(body), ensure_ascii=False)))
        except (ValueError, RecursionError):
            raise MalformedAnswer(f"{name} is not JSON ({str(error)[:80]})") from None
    if not isinstance(value, dict):
        raise MalformedAnswer(f"{name} is not a JSON object")
    return value


def broken_answer(error: MalformedAnswer) -> RequestFailure:
    """Return the failure of an attempt whose answer is malformed."""
    return RequestFailure(f"broken answer: {error}", is_transient=True, may_cost=True)


def _failure_of_status(response: HttpResponse) -> RequestFailure:
    status = response.status
    code, reason = _code_and_reason(response.body)
    message = f"HTTP {status}" + (f": {reason}" if reason else "")
    if 300 <= status < 400:
        return RequestFailure(f"{message} (a redirect, which is not followed)")
    if code in ("insufficient_quota", "billing_hard_limit_reached"):
        return RequestFailure(message, is_for_all=True, is_permanent=True, code=code)
    return RequestFailure(
        message,
        is_transient=status in _TRANSIENT or status >= 500,
        is_limit=status in _LIMITS,
        is_for_all=status in _FOR_ALL,
        is_permanent=status in _PERMANENT,
        after=retry_after(response.after, time.time()),
        code=code,
        status=status,
    )


def _failure_of_error(error: Exception) -> RequestFailure:
    """Return the failure of an attempt that raised. The text of the exception may hold anything: not used."""
    if isinstance(error, MalformedAnswer):
        return broken_answer(error)
    if isinstance(error, httpx.ConnectTimeout):
        return RequestFailure("no connection within the time for it", is_transient=True)
    if isinstance(error, httpx.TimeoutException):
        return RequestFailure("the service stalled", is_transient=True, may_cost=True)
    if isinstance(error, httpx.ConnectError):
        return RequestFailure("no connection to the service", is_transient=True)
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL)):
        return RequestFailure("the address cannot be used for a request", is_for_all=True)
    if isinstance(error, httpx.TransportError):
        name = type(error).__name__
        return RequestFailure(f"the connection broke ({name})", is_transient=True, may_cost=True)
    return RequestFailure(f"the request was not sent ({type(error).__name__})")


def _code_and_reason(body: bytes) -> tuple[str, str]:
    """Read code and message of an error body of any shape. Without JSON the message is the body's start."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", _short(body[: 4 * _SHOWN].decode("utf-8", "replace"))
    error = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(error, list) and error and isinstance(error[0], dict):
        error = error[0].get("error", error[0])
    if not isinstance(error, dict):
        return "", _short(str(error))
    code = next((str(error[k]) for k in ("code", "type", "status") if isinstance(error.get(k), str)), "")
    return code[:80], _short(str(error.get("message") or error.get("status") or ""))


def _short(text: str) -> str:
    plain = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(plain.split())[:_SHOWN]


Result = TypeVar("Result")
_LOOK_SECONDS = 0.1  # between two looks whether an answer is still wanted
_STREAM_REFUSED = frozenset({400, 404, 405, 422})  # of a service without streams, or not for this account
_END = b"[DONE]"  # the data of an end marker that is not JSON
_MAX_FAILURES = 16  # requests in a row that failed with all their attempts
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
    heard: StreamedAnswer | None = None
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

    async def _streamed(self, in_flight: InFlightRequest, heard: StreamedAnswer) -> ApiAnswer:
        stream = self._api.open_stream(clean_text(in_flight.request.prefill))

        def receive(data: bytes) -> bool:
            if data == _END:
                stream.end()
            else:
                chunk = _decode(data, "a part of the stream")
                if chunk.get("error"):
                    code, reason = _code_and_reason(data)
                    message = "the service ended the stream" + (f": {reason}" if reason else "")
                    raise RequestFailure(message, is_transient=True, code=code, may_cost=True)
                heard.hear(stream.feed(chunk))
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
            if self._n_in_a_row >= _MAX_FAILURES:
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
    return in_flight.heard is not None and in_flight.heard.is_started


def add(a: Usage, b: Usage) -> Usage:
    """Return the sum of two usages."""
    return Usage(
        a.n_prompt + b.n_prompt,
        a.n_answer + b.n_answer,
        a.n_cached + b.n_cached,
        a.n_written + b.n_written,
        a.is_estimated or b.is_estimated,
    )


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
        return render(request)

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Answer the stream, as many at a time as the service supports.

        Raises EngineFailure or BudgetSpent.
        """
        return self._answer(requests, None)

    @property
    def capabilities(self) -> Capabilities:
        provenance = Provenance(account=self.account, as_sent=self.as_sent, first_answer=self._first)
        return Capabilities(streamer=self, check_schema=self.check_schema, provenance=provenance)

    @property
    def width(self) -> int:
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
        prompt = render(request)
        try:
            body = self._api.body(request)
        except EngineFailure as error:
            yield failed_reply(request, prompt, error, n_tokens=0)
            return None
        n_bytes = len(prompt.encode("utf-8", "replace"))
        reserved = Usage(-(-n_bytes // BYTES_PER_TOKEN), self._endpoint.token_limit(request.decoding))
        heard = (
            None if self._listener is None else StreamedAnswer(request, self._listener, self._transport.mask)
        )
        return InFlightRequest(request, body, prompt, reserved, heard)

    def _takes_more(self) -> bool:
        is_on = self._source.is_open and not self._is_spent and not self._transport.fatal
        return is_on and self._n_in_flight < self._transport.pace.room
