"""The HTTP server around the API: uvicorn, with a time limit for a request's headers.

Promises: a connection whose headers do not arrive in time is closed, with 408 where some of them came; new
connections are accepted a few at a time, so that a burst of them does not hold up requests that are there.
Leaves to others: bodies and answers (app.py), and the socket's address (cli/).
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0  # from a connection's start, or a later request's first byte, to the end of its headers
_ACCEPTED = 32  # connections in one pass of the event loop
_WAITING = 2048  # connections that the kernel holds until they are accepted
_REASON = b"the headers did not arrive in time\n"
_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_REASON), _REASON)
)


class UvicornServer(uvicorn.Server):
    """uvicorn over sockets that are bound already."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen. asyncio accepts as many connections at once as may wait: here these two differ."""
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(_WAITING)


def server(api: Starlette, header_seconds: float = HEADER_SECONDS, **settings: Any) -> UvicornServer:
    """A server of this API. settings: as uvicorn.Config takes them."""

    class Protocol(_TimedHeaders):
        seconds = header_seconds

    return UvicornServer(uvicorn.Config(api, http=Protocol, ws="none", backlog=_ACCEPTED, **settings))


class _TimedHeaders(H11Protocol):
    """uvicorn's protocol, which by itself waits for headers for ever."""

    seconds = HEADER_SECONDS
    _limit: asyncio.TimerHandle | None = None
    _has_begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller came: its first headers are awaited."""
        super().connection_made(transport)
        self._limit = self.loop.call_later(self.seconds, self._close_late)

    def data_received(self, data: bytes) -> None:
        """Bytes came: of headers, whose time runs, or of a body, whose time the API counts."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._limit is None:
            self._limit = self.loop.call_later(self.seconds, self._close_late)
        self._has_begun = True
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller left."""
        self._stop_waiting()
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
