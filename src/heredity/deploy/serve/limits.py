"""Limits on what callers send: the size of a body, its time to arrive, requests per minute, free memory.

Promises: what exceeds a limit is refused while others are answered. One caller's requests use up no other's.
Leaves to others: headers (server.py), and the number of open requests (worker.py).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from heredity.core.host import available_memory
from heredity.deploy.serve.schema import Refusal

_AT_ONCE = 4  # requests started or cancelled in one pass of the event loop; others wait, /health does not
LARGEST = 4 << 20  # bytes of a body
BODY_SECONDS = 30.0  # from a request's first byte after its headers to its last
_DISCARDED = 2 * LARGEST  # bytes read of a body that is too large, so that the caller can read the error
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
            found = available_memory()
            self._free = self._n_bytes if found is None else found
            self._read_at = time.monotonic()
        if self._free < self._n_bytes:
            message = "this machine has little free memory. Try again later."
            raise Refusal(429, message, "too_many_requests", "memory-short", wait=5)


class BoundedBody:
    """ASGI middleware that limits the size and the arrival time of request bodies.

    A connection whose body was not read completely is closed after the response.
    """

    def __init__(self, inner: ASGIApp, seconds: float, largest: int = LARGEST) -> None:
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
