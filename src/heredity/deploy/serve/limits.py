"""Limits on what a caller sends: the size of a body, and the time in which it arrives.

Promises: a body that is too large or too slow is refused while others are answered.
Leaves to others: headers (server.py), and the number of open requests (worker.py).
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from heredity.deploy.serve.schema import Refusal

LARGEST = 4 << 20  # bytes of a body
BODY_SECONDS = 30.0  # from a request's first byte after its headers to its last
_DISCARDED = 2 * LARGEST  # bytes read of a body that is too large, so that the caller can read the error


class BoundedBody:
    """ASGI middleware that limits the size and the arrival time of request bodies.

    A connection whose body was not read completely is closed after the response.
    """

    def __init__(self, inner: ASGIApp, seconds: float) -> None:
        self._inner, self._seconds = inner, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request with its body limited."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        body = _Body(scope, receive, send, self._seconds)
        await self._inner(scope, body.receive, body.send)


class _Body:
    """The body of one request, counted and timed."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, seconds: float) -> None:
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
        if self._n_bytes > LARGEST or (self._stated.isdecimal() and int(self._stated[:12]) > LARGEST):
            while not self._is_whole and self._n_bytes <= LARGEST + _DISCARDED:
                await self._timed()
            raise Refusal(413, f"a body has at most {LARGEST:,} bytes", "too_large")
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
