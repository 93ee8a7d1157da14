"""Serve any model in any application behind an OpenAI-compatible API.

The application adds its system prompt, passages, few-shot turns and tools to every conversation, as in a
study. Its guards check each question and each answer. The server thus answers with the system that was
measured. Tool calls go to the caller, who returns the results.

Promises: served answers equal those of a study on this machine, bit for bit. Nothing that a model writes is
executed. A web page cannot query the server: it accepts only JSON, and on a loopback address only loopback
host names. A caller who disconnects frees the places of all answers of the request. A request over a limit
on size, time or rate is refused while others are answered; one caller's requests use up no other's.
"""

from __future__ import annotations

import asyncio
import gc
import math
import secrets
import signal
import socket
import sys
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Call
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from heredity.application.guards import GuardReaders
from heredity.core.errors import Busy, ContextOverflow, HeredityError, UsageError
from heredity.core.host import available_memory, resident_memory
from heredity.core.records import Reply, encode
from heredity.deploy.serve import (
    ServerSettings,
    answers,
    chat,
    embeddings,
    messages,
    responses,
    schema,
)
from heredity.deploy.serve.answers import AnswerFormat, Served, ServedAnswer
from heredity.deploy.serve.embeddings import EmbeddingService
from heredity.deploy.serve.model_registry import AdapterLoader, ModelRegistry, described, refusal
from heredity.deploy.serve.request_log import RequestLog
from heredity.deploy.serve.schema import ParsedRequest, Refusal, Rules
from heredity.deploy.serve.worker import CALLER
from heredity.engines import Engine, capabilities

# from the start of a connection, or a later request's first byte, to the end of headers
HEADER_SECONDS = 10.0
UNREAD_SECONDS = 60.0  # that a caller may take nothing of what waits for it
_ACCEPTED = 32  # connections per pass of the event loop
_WAITING = 2048  # connections that the kernel holds until they are accepted
_LINES = 128  # of chunked bodies per pass of the event loop: h11 takes some 0.1 ms for a chunk of two lines
_PART = 32  # of these lines that one connection may have before the next
_FEW = 64  # lines that are parsed at once where no chunked body is known to come
_REASON = b"the headers did not arrive in time\n"
_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_REASON), _REASON)
)


class UvicornServer(uvicorn.Server):
    """uvicorn on sockets that are already bound."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen. asyncio uses one number for the backlog and for accepts per pass; here they
        differ."""
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(_WAITING)


def server(
    api: Starlette,
    header_seconds: float = HEADER_SECONDS,
    unread_seconds: float = UNREAD_SECONDS,
    **settings: Any,
) -> UvicornServer:
    """Return a server of this API. settings: keyword arguments of uvicorn.Config."""

    class Protocol(TimedProtocol):
        seconds, most_unread, turns = header_seconds, unread_seconds, ParserTurns()

    return UvicornServer(uvicorn.Config(api, http=Protocol, ws="none", backlog=_ACCEPTED, **settings))


def run(api: Starlette, listening: socket.socket) -> None:
    """Answer at a socket that is bound, until this process is interrupted or ended."""
    answering = server(
        api, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=60
    )
    # uvicorn raises the signal again after the last answer; then models are closed and the exit code is 0.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        answering.run(sockets=[listening])


class ParserTurns:
    """Connections with bytes that are not parsed yet. Each pass of the event loop parses a few lines of them.

    A turn is a part of what one connection sent, so that a short body does not wait for a long one.
    """

    def __init__(self) -> None:
        self._waiting: deque[TimedProtocol] = deque()

    def add(self, one: TimedProtocol) -> None:
        """Let a connection wait for its turn."""
        if not self._waiting:
            one.loop.call_soon(self._run)
        self._waiting.append(one)

    def _run(self) -> None:
        n_left = _LINES
        while self._waiting and n_left > 0:
            one = self._waiting.popleft()
            n_left -= one.parse_part()
            if one.unparsed:
                self._waiting.append(one)
        if self._waiting:
            self._waiting[0].loop.call_soon(self._run)


class _HeldFlow(FlowControl):
    """A connection is read, but not while uvicorn has paused it, nor while bytes of it wait for a turn."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._transport, self._is_held = transport, False

    def hold(self) -> None:
        """Read no more until `release`."""
        self._is_held = True
        self._transport.pause_reading()

    def release(self) -> None:
        """Read again, unless uvicorn has paused it."""
        self._is_held = False
        if not self.read_paused:
            self._transport.resume_reading()

    def resume_reading(self) -> None:
        """End uvicorn's pause."""
        if self._is_held:
            self.read_paused = False
        else:
            super().resume_reading()


class TimedProtocol(H11Protocol):
    """uvicorn's protocol with time limits for headers and for unread answers, and with turns for chunks.

    Without the limit uvicorn waits forever for headers. Without turns it parses all that has come at once.
    A quarter of a megabyte in chunks of one byte took six seconds, in which all others waited.
    """

    seconds, most_unread = HEADER_SECONDS, UNREAD_SECONDS
    turns: ParserTurns
    _limit: asyncio.TimerHandle | None = None
    _has_begun = False
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit for the first headers of a new connection."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # writing is paused whenever the kernel takes no more
        self.unparsed, self._flow = bytearray(), _HeldFlow(transport)
        self.flow = self._flow
        self._limit = self.loop.call_later(self.seconds, self._close_late)

    def data_received(self, data: bytes) -> None:
        """Receive bytes. Headers are timed here; the API times bodies."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._limit is None:
            self._limit = self.loop.call_later(self.seconds, self._close_late)
        self._has_begun = True
        if not self.unparsed and not self._takes_turns(data):
            self._parse(data)
            return
        if not self.unparsed:
            self.turns.add(self)
        self.unparsed += data
        self._unset_keepalive_if_required()
        self._flow.hold()

    def _takes_turns(self, data: bytes | bytearray) -> bool:
        """Return True if these bytes may hold many chunks."""
        if self.cycle is not None and self.conn.their_state is h11.SEND_BODY:
            return any(name == b"transfer-encoding" for name, _ in self.headers)
        return data.count(b"\n") > _FEW

    def parse_part(self) -> int:
        """Parse the next part of what has come; return its number of lines."""
        if self.transport.is_closing():
            self.unparsed.clear()
            return 0
        end = n = 0
        if self._takes_turns(self.unparsed):
            while n < _PART and end < len(self.unparsed):
                end = self.unparsed.find(b"\n", end) + 1 or len(self.unparsed)
                n += 1
        else:
            end, n = len(self.unparsed), 1
        part = bytes(self.unparsed[:end])
        del self.unparsed[:end]
        self._parse(part)
        if not self.unparsed:
            self._flow.release()
        return n

    def _parse(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def pause_writing(self) -> None:
        """Write no more until the caller has read all, or close the connection if it reads nothing."""
        super().pause_writing()
        self._await_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Write again: the caller has read all."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _await_reader(self, n_bytes: int) -> None:
        self._unread = self.loop.call_later(self.most_unread, self._close_unread, n_bytes)

    def _close_unread(self, n_bytes: int) -> None:
        """Close the connection unless some of what waited was read."""
        n_left = self.transport.get_write_buffer_size()
        if n_left < n_bytes:
            self._await_reader(n_left)
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time limits of a closed connection, and drop what it sent."""
        self._stop_waiting()
        self.resume_writing()
        self.unparsed.clear()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        self._has_begun = False

    def _close_late(self) -> None:
        self._limit = None
        if not self.transport.is_closing():
            if self._has_begun:
                self.transport.write(_LATE)
            self.transport.close()


BOUNDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # seconds, of the histogram of requests
_GUARDED = "heredity_guarded_answers_total"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts of requests since the start, by route and status."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._within: Counter[tuple[str, float]] = Counter()
        self._seconds: Counter[str] = Counter()

    def note(self, route: str, status: int, seconds: float) -> None:
        """Count a request that ended."""
        self._requests[route, status] += 1
        self._seconds[route] += seconds  # type: ignore[assignment]  # a sum, not a count
        for bound in BOUNDS:
            self._within[route, bound] += seconds <= bound

    def text(self, gauges: Mapping[str, Mapping[str, float]], guarded: Mapping[str, int]) -> str:
        """Return all counts in Prometheus' text format.

        gauges: further values by name and model. guarded: answers that each guard touched.
        """
        lines = list(_typed("heredity_requests_total", "counter"))
        for (route, status), n in sorted(self._requests.items()):
            lines.append(f'heredity_requests_total{{route="{route}",status="{status}"}} {n}')
        lines += _typed("heredity_request_seconds", "histogram")
        for route in sorted({route for route, _ in self._requests}):
            lines += self._histogram(route)
        for name, by_model in gauges.items():
            lines += _typed(name, "counter" if name.endswith("_total") else "gauge")
            lines += [f'{name}{{model="{_escaped(model)}"}} {value}' for model, value in by_model.items()]
        if guarded:
            lines += _typed(_GUARDED, "counter")
            lines += [f'{_GUARDED}{{guard="{_escaped(guard)}"}} {n}' for guard, n in sorted(guarded.items())]
        if (resident := resident_memory()) is not None:
            lines += [
                *_typed("process_resident_memory_bytes", "gauge"),
                f"process_resident_memory_bytes {resident}",
            ]
        return "\n".join(lines) + "\n"

    def _histogram(self, route: str) -> Iterable[str]:
        n = sum(count for (each, _), count in self._requests.items() if each == route)
        for bound in BOUNDS:
            count = self._within[route, bound]
            yield f'heredity_request_seconds_bucket{{route="{route}",le="{bound:g}"}} {count}'
        yield f'heredity_request_seconds_bucket{{route="{route}",le="+Inf"}} {n}'
        yield f'heredity_request_seconds_sum{{route="{route}"}} {self._seconds[route]:.6f}'
        yield f'heredity_request_seconds_count{{route="{route}"}} {n}'


def _typed(name: str, kind: str) -> Iterable[str]:
    yield f"# TYPE {name} {kind}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Observed:
    """ASGI middleware that notes each request when its response has ended.

    has_log: whether stdout gets a line of JSON per request.
    """

    def __init__(self, inner: ASGIApp, routes: list[BaseRoute], metrics: Metrics, has_log: bool) -> None:
        self._inner, self._routes, self._metrics, self._has_log = inner, routes, metrics, has_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, and note how it ended."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        started, status, n_bytes = time.monotonic(), 500, 0

        async def counted(message: Message) -> None:
            nonlocal status, n_bytes
            status = message.get("status", status)
            n_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._inner(scope, receive, counted)
        finally:
            seconds = time.monotonic() - started
            route = self._route(scope)
            self._metrics.note(route, status, seconds)
            if self._has_log:
                now = datetime.now(UTC).isoformat(timespec="milliseconds")
                method = scope["method"] if scope["method"] in ("GET", "POST", "OPTIONS", "HEAD") else "other"
                row = {"at": now, "method": method, "route": route, "status": status}
                line = encode({**row, "seconds": round(seconds, 4), "bytes": n_bytes}).decode()
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()

    def _route(self, scope: Scope) -> str:
        for each in self._routes:
            if isinstance(each, Route) and each.matches(scope)[0] != Match.NONE:
                return each.path
        return "other"


_AT_ONCE = 4  # requests started or cancelled in one pass of the event loop; others wait, /health does not
_DISCARDED = 8 << 20  # bytes read of a body that is too large, so that the caller can read the error
FLOOR = 256 << 20  # bytes of memory that new requests leave free
_FRESH = 0.5  # seconds
_CALLERS = 4096


class RateLimit:
    """Requests per minute for each caller: a bucket that holds a minute's requests and refills steadily.

    per_minute: 0 for no limit. A caller is a key, or an address without keys; the callers that were seen last
    are remembered.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, and when

    def admit(self, caller: str) -> None:
        """Count a request. Raises Refusal with the seconds to wait."""
        if not self._per_minute:
            return
        now, rate = time.monotonic(), self._per_minute / 60
        left, then = self._buckets.pop(caller, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - then) * rate)
        self._buckets[caller] = (max(left - 1, 0.0) if left >= 1 else left, now)
        if len(self._buckets) > _CALLERS:
            self._buckets.popitem(last=False)
        if left < 1:
            message = f"rate limit: {self._per_minute} requests per minute. Try again later."
            raise Refusal(429, message, "rate_limit_exceeded", wait=math.ceil((1 - left) / rate))


class MemoryFloor:
    """Refuses requests while little memory is free, so that those in flight can finish."""

    def __init__(self, n_bytes: int = FLOOR) -> None:
        self._n_bytes, self._read_at, self._free = n_bytes, -math.inf, 0

    def admit(self) -> None:
        """Raise Refusal if less memory is free than the floor. The number is at most half a second old."""
        if time.monotonic() - self._read_at > _FRESH:
            free = available_memory()
            self._free = self._n_bytes if free is None else free
            self._read_at = time.monotonic()
        if self._free < self._n_bytes:
            message = "this machine has little free memory. Try again later."
            raise Refusal(429, message, "too_many_requests", Busy.code, wait=5)


class BoundedBody:
    """ASGI middleware that limits the size and the arrival time of request bodies.

    A connection whose body was not read completely is closed after the response.
    """

    def __init__(self, inner: ASGIApp, seconds: float, largest: int) -> None:
        self._inner, self._seconds, self._largest = inner, seconds, largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request with its body limited."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        body = _Body(scope, receive, send, self._seconds, self._largest)
        await self._inner(scope, body.receive, body.send)


class _Body:
    """The body of one request, counted and timed."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, seconds: float, largest: int) -> None:
        self._largest = largest
        self._receive, self._send, self._seconds = receive, send, seconds
        self._end = asyncio.get_running_loop().time() + seconds
        given = Headers(scope=scope)
        self._stated = given.get("content-length", "0")
        self._is_whole = "transfer-encoding" not in given and self._stated == "0"
        self._n_bytes = 0

    async def receive(self) -> Message:
        """Return the next message. Raises Refusal: 413 if the body is too large, 408 if it is too slow."""
        if self._is_whole:
            return await self._receive()
        message = await self._timed()
        if self._n_bytes > self._largest or (
            self._stated.isdecimal() and int(self._stated[:12]) > self._largest
        ):
            while not self._is_whole and self._n_bytes <= self._largest + _DISCARDED:
                await self._timed()
            raise Refusal(413, f"a body has at most {self._largest:,} bytes", "too_large")
        return message

    async def _timed(self) -> Message:
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
        except TimeoutError:
            raise Refusal(408, f"the body did not arrive within {self._seconds:g} s", "too_slow") from None
        self._n_bytes += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a message; if the body is incomplete, add `Connection: close` to the response."""
        if message["type"] == "http.response.start" and not self._is_whole:
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await self._send(message)


class RequestGate:
    """Lets a few waiting tasks proceed in each pass of the event loop, so that other tasks get their
    turn."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def __aenter__(self) -> None:
        await self._places.acquire()
        try:
            await asyncio.sleep(0)
        except BaseException:
            self._places.release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._places.release()


_LARGE = 1 << 18  # bytes of a body that is read in a thread
_COMPILED = 2  # JSON schemas at once, so that slow ones leave threads for what else has to be read
_SWITCH = 0.0005  # seconds that the event loop waits for a busy engine thread after each system call
MESSAGES = "/v1/messages"
IGNORED = "x-heredity-ignored"  # the header that names settings that were ignored
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
T = TypeVar("T")


def app(
    served: Sequence[Served],
    settings: ServerSettings | None = None,
    embedders: Sequence[EmbeddingService] = (),
    readers: GuardReaders | None = None,
    adapters: AdapterLoader | None = None,
    log: RequestLog | None = None,
) -> Starlette:
    """Return the API for these models as an ASGI application.

    embedders: sentence encoders for /v1/embeddings. readers: the models of guards, which threads may share.
    adapters: loads adapters while the server runs; None: no caller may. log: gets each conversation with its
    answer. Raises UsageError for a key that is not set.
    """
    settings = settings or ServerSettings()
    metrics = Metrics()
    registry, keys = ModelRegistry(served, embedders, readers, log), settings.keys()
    salts = {key: secrets.token_hex(16) for key in keys} if len(set(keys)) > 1 else {}
    handlers = _Handlers(registry, keys, metrics, RateLimit(settings.requests_per_minute or 0), salts=salts)
    routes: list[BaseRoute] = [
        Route("/v1/chat/completions", handlers.chat, methods=["POST"]),
        Route("/v1/completions", handlers.text, methods=["POST"]),
        Route("/v1/responses", handlers.responses, methods=["POST"]),
        Route(MESSAGES, handlers.messages, methods=["POST"]),
        Route("/v1/embeddings", handlers.embeddings, methods=["POST"]),
        Route("/v1/models", handlers.models, methods=["GET"]),
        Route("/v1/models/{name:path}", handlers.model, methods=["GET"]),
        Route("/health", handlers.health, methods=["GET"]),
    ]
    if adapters is not None:
        adapters.registry = handlers.registry
        routes.append(Route("/v1/load_lora_adapter", handlers.changing(adapters.load), methods=["POST"]))
        routes.append(Route("/v1/unload_lora_adapter", handlers.changing(adapters.unload), methods=["POST"]))
    if settings.metrics:
        routes.append(Route("/metrics", handlers.counts, methods=["GET"]))
    on_error: dict[Any, Any] = {Refusal: _refused, HTTPException: _not_here, ClientDisconnect: _left}
    guard = _guard(settings, routes, metrics)
    return Starlette(routes=routes, middleware=guard, exception_handlers=on_error, lifespan=_short_pauses)


def _guard(settings: ServerSettings, routes: list[BaseRoute], metrics: Metrics) -> list[Middleware]:
    """Return what a request passes before its handler, the outermost first."""
    guard = []
    if settings.metrics or settings.access_log:
        guard.append(Middleware(Observed, routes=routes, metrics=metrics, has_log=settings.access_log))
    guard.append(Middleware(BoundedBody, seconds=settings.body_seconds, largest=settings.max_body << 20))
    if settings.is_local:
        guard.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(_LOOPBACK)))
    if settings.cors:
        cors = Middleware(
            CORSMiddleware, allow_origins=[each.lower() for each in settings.cors],
            allow_methods=["GET", "POST"], allow_headers=["*"], expose_headers=[IGNORED, "retry-after"],
        )  # fmt: skip
        guard.append(cors)
    return guard


@asynccontextmanager
async def _short_pauses(_: Starlette) -> AsyncIterator[None]:
    """Keep pauses of the event loop short while the server runs.

    The engine's thread releases the interpreter lock sooner. Objects that exist at startup are frozen: a
    model's libraries have a million, and a full garbage collection of them took half a second.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH))
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(before)


@dataclass(frozen=True)
class _Handlers:
    """The handlers of the routes."""

    registry: ModelRegistry
    keys: tuple[str, ...]
    counted: Metrics
    rate: RateLimit
    memory: MemoryFloor = field(default_factory=MemoryFloor)
    gate: RequestGate = field(default_factory=RequestGate)
    salts: dict[str, str] = field(default_factory=dict)  # by key, if there are several
    compiling: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_COMPILED))

    async def chat(self, call: Call) -> Response:
        """Answer a conversation."""
        return await self._served(call, chat.parse, chat.ChatFormat)

    async def text(self, call: Call) -> Response:
        """Continue a plain text."""
        return await self._served(call, chat.parse_text, chat.TextFormat, is_plain=True)

    async def responses(self, call: Call) -> Response:
        """Answer a conversation in the form of the Responses API."""
        return await self._served(call, responses.parse, responses.ResponsesFormat)

    async def messages(self, call: Call) -> Response:
        """Answer a conversation in the form of the Messages API."""
        return await self._served(call, messages.parse, messages.MessagesFormat)

    async def _served(
        self,
        call: Call,
        parse: Callable[[dict[str, object], Rules], ParsedRequest],
        form: Callable[[str, str, ParsedRequest], AnswerFormat],
        is_plain: bool = False,
    ) -> Response:
        """Answer a request. is_plain: it is a text to continue."""
        raw = await self._body(call)
        with ExitStack() as stack:
            async with self.gate:
                await refuse_gone(call)
                body = _understood(lambda: schema.opened(raw))
                one = self.registry.named(str(body["model"]))
                # An adapter that is unloaded now answers this one. Begun answers keep it themselves.
                one.service.hold()
                stack.callback(one.service.release)
                name = self.registry.name_of(one)
                if is_plain and capabilities(one.service.engine).is_base is None:
                    raise Refusal(
                        400, f"'{one.model.name}' takes only conversations", "not_supported", param="model"
                    )
                asked = None if len(raw) > _LARGE else _read(parse, body, one.rules)
            if asked is None:
                asked = await _read_slowly(one, parse, body, self.compiling)
            answers = await _asked(one, asked)
        return await self._answered(call, answers, asked, form(name, one.fingerprint, asked))

    async def embeddings(self, call: Call) -> Response:
        """Embed texts, one at a time, so that requests take turns."""
        raw = await self._body(call)
        async with self.gate:
            await refuse_gone(call)
            body = _understood(lambda: schema.opened(raw))
            service = self.registry.embedder(str(body["model"]))
            asked = _understood(lambda: embeddings.parse(body))
        service.admit()
        try:
            vectors = []
            for text in asked.texts:
                vectors.append(await service.embed(text))
                await refuse_gone(call)
        except UsageError as error:
            raise answers.refusal(error) from None
        finally:
            service.n_open -= 1
        return _json(_understood(lambda: embeddings.formatted(service.model.name, asked, vectors)))

    async def models(self, call: Call) -> Response:
        """List the served models and their lineage."""
        self._admit(call)
        return _json({"object": "list", "data": self.registry.about_all()})

    async def model(self, call: Call) -> Response:
        """Describe one served model."""
        self._admit(call)
        name = call.path_params["name"]
        if (encoder := self.registry.encoder(name)) is not None:
            return _json(described(encoder.model))
        return _json(self.registry.about(self.registry.named(name)))

    async def counts(self, call: Call) -> Response:
        """Return counts for Prometheus."""
        self._admit(call)
        services = {one.model.name: one.service for one in self.registry.served}
        gauges = {
            "heredity_open_requests": {name: each.n_open for name, each in services.items()},
            "heredity_prompt_tokens_total": {name: each.n_prompt_tokens for name, each in services.items()},
            "heredity_completion_tokens_total": {name: each.n_tokens for name, each in services.items()},
        }
        return Response(self.counted.text(gauges, self.registry.n_found), media_type=CONTENT_TYPE)

    def changing(self, change: Callable[[bytes], Awaitable[str]]) -> Callable[[Call], Awaitable[Response]]:
        """Return the handler of a change of the served models: it answers in words, as vLLM does."""

        async def handle(call: Call) -> Response:
            try:
                return PlainTextResponse(await change(await self._body(call)))
            except HeredityError as error:
                raise refusal(error) from None

        return handle

    async def health(self, call: Call) -> Response:  # noqa: ARG002 (needs no key, for monitoring)
        """Report whether all models can answer, and the number of open requests of each."""
        failed = {one.model.name: str(why) for one in self.registry.served if (why := one.service.failure)}
        n_open = {one.model.name: one.service.n_open for one in self.registry.served}
        n_open |= {each.model.name: each.n_open for each in self.registry.embedders}
        return _json({"failed": failed, "open": n_open}, 503 if failed else 200)

    def _admit(self, call: Call) -> None:
        scheme, _, given = call.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = call.headers.get("x-api-key", "")  # as Anthropic's clients send it
        caller = "" if call.client is None else call.client.host
        if self.keys:
            sent = given.strip().encode("latin-1")
            # All are compared, so that the time does not tell which one was close.
            right = [key for key in self.keys if secrets.compare_digest(sent, key.encode("ascii"))]
            if not right:
                raise Refusal(401, "this server requires a key: Authorization: Bearer KEY", "invalid_api_key")
            caller = right[0]
            CALLER.set(self.salts.get(caller, ""))
        self.rate.admit(caller)

    async def _body(self, call: Call) -> bytes:
        self._admit(call)
        self.memory.admit()
        if call.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "send JSON, with content-type: application/json", "not_json")
        return b"".join([piece async for piece in call.stream()])

    async def _answered(
        self, call: Call, served_answers: list[ServedAnswer], asked: ParsedRequest, shape: AnswerFormat
    ) -> Response:
        headers = {IGNORED: ",".join(asked.ignored)} if asked.ignored else {}
        if asked.is_streamed:
            return EventStream(shape, served_answers, headers, self.gate)
        try:
            return _json(
                shape.whole(served_answers, await unless_gone(call, served_answers)), headers=headers
            )
        except asyncio.CancelledError:  # the server is shutting down and its grace period is over
            raise Refusal(503, "the server is shutting down", "closing") from None
        finally:
            drop(served_answers)


async def _asked(one: Served, asked: ParsedRequest) -> list[ServedAnswer]:
    """Send each answer of a request to the engine. Raises Refusal if the engine rejects one."""
    if len(asked.requests) > one.service.most:
        raise Refusal(
            400,
            f"at most {one.service.most} answers may be open here",
            "invalid_request",
            "too-many-answers",
            "n",
        )
    served_answers: list[ServedAnswer] = []
    try:
        served_answers.extend(ServedAnswer(one, asked, i) for i in range(len(asked.requests)))
        await asyncio.gather(*(answer.admit() for answer in served_answers))
        for answer in served_answers:
            answer.ask()
    except BaseException:
        drop(served_answers)
        raise
    return served_answers


def _json(what: dict[str, object], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode(what), status, headers, media_type="application/json")


def _understood(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except UsageError as error:
        raise answers.refusal(error) from None


def _read(
    parse: Callable[[dict[str, object], Rules], ParsedRequest], body: dict[str, object], rules: Rules
) -> ParsedRequest | None:
    """Parse a body; None if passages have to be retrieved or a schema compiled, which takes time."""
    layer = rules.application
    is_slow = _has_form(body) or (layer is not None and layer.retrieval is not None)
    return None if is_slow else _understood(lambda: parse(body, rules))


def _has_form(body: dict[str, object]) -> bool:
    has_form = any(body.get(key) for key in ("response_format", "text", "output_config"))
    return has_form or body.get("tool_choice") not in (None, "auto", "none")  # a demanded call has one too


async def _read_slowly(
    one: Served,
    parse: Callable[[dict[str, object], Rules], ParsedRequest],
    body: dict[str, object],
    compiling: asyncio.Semaphore,
) -> ParsedRequest:
    """Parse a body in a thread, and refuse a prompt that is far too long before the engine gets it."""
    place: AbstractAsyncContextManager[object] = compiling if _has_form(body) else nullcontext()

    def read() -> ParsedRequest:
        asked = parse(body, one.rules)
        _check_length(one.service.engine, asked)
        return asked

    try:
        async with place:
            return await asyncio.to_thread(read)
    except (ContextOverflow, UsageError) as error:
        raise answers.refusal(error) from None
    except HeredityError as error:  # the index is gone or damaged
        raise Refusal(500, str(error), "engine_error", error.code) from None


def _check_length(engine: Engine, asked: ParsedRequest) -> None:
    """Raise ContextOverflow for a prompt far beyond the context. The engine reports other errors itself."""
    if (check_length := capabilities(engine).check_length) is None:
        return
    for request in {(id(each.messages), each.prefill): each for each in asked.requests}.values():
        try:
            check_length(request)
        except ContextOverflow:
            raise
        except HeredityError:
            return


async def _refused(call: Call, error: Refusal) -> Response:
    is_anthropic = call.url.path == MESSAGES
    response = _json(messages.error_body(error) if is_anthropic else error.body, error.status)
    if error.status == 429:
        response.headers["retry-after"] = str(error.wait)
    return response


async def _left(call: Call, error: ClientDisconnect) -> Response:  # noqa: ARG001
    """Return an empty response, because the caller has disconnected."""
    return Response(status_code=499)


async def _not_here(call: Call, error: HTTPException) -> Response:
    message = f"{call.method} {call.url.path} is not served here"
    response = await _refused(call, Refusal(error.status_code, message, "not_found"))
    response.headers.update(error.headers or {})  # the methods that are allowed
    return response


class EventStream(StreamingResponse):
    """Server-sent events, cancelled when the caller disconnects, a few callers per pass of the event
    loop."""

    def __init__(
        self,
        shape: AnswerFormat,
        sent: Sequence[ServedAnswer],
        headers: dict[str, str],
        gate: RequestGate,
    ) -> None:
        super().__init__(answers.events(shape, sent), headers=headers, media_type="text/event-stream")
        self._answers, self._gate = sent, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send all events, or stop when the caller disconnects."""
        sending = asyncio.ensure_future(self.stream_response(send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                drop(self._answers)
                async with self._gate:
                    sending.cancel()
        finally:
            drop(self._answers)  # a stream that never began ends none
            for each in (sending, gone):
                answers.forget(each)


def drop(dropped: Sequence[ServedAnswer]) -> None:
    """End answers: their caller no longer waits."""
    for answer in dropped:
        answer.drop()


async def unless_gone(call: Call, asked: Sequence[ServedAnswer]) -> list[Reply]:
    """Return the replies. Raises ClientDisconnect if the caller disconnects first."""
    gone = asyncio.ensure_future(_gone(call.receive))
    replies = [asyncio.ensure_future(answer.reply()) for answer in asked]
    try:
        for reply in replies:
            both: set[asyncio.Future[None] | asyncio.Future[Reply]] = {gone, reply}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not reply.done():
                raise ClientDisconnect
        return [reply.result() for reply in replies]
    finally:
        for each in (gone, *replies):
            answers.forget(each)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def refuse_gone(call: Call) -> None:
    """Raise ClientDisconnect if the caller disconnected while the request waited for its turn."""
    if await call.is_disconnected():
        raise ClientDisconnect
