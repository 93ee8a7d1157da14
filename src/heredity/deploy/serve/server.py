"""The HTTP server of the API: uvicorn with a time limit for request headers.

Promises: a connection whose headers do not arrive in time is closed, with 408 if some arrived. New
connections are accepted a few at a time, so a burst of them does not delay open requests.
Leaves to others: bodies and answers (app.py), and the socket's address (cli/).
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

# from the start of a connection, or a later request's first byte, to the end of headers
HEADER_SECONDS = 10.0
_ACCEPTED = 32  # connections per pass of the event loop
_WAITING = 2048  # connections that the kernel holds until they are accepted
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


def server(api: Starlette, header_seconds: float = HEADER_SECONDS, **settings: Any) -> UvicornServer:
    """Return a server of this API. settings: keyword arguments of uvicorn.Config."""

    class Protocol(_TimedHeaders):
        seconds = header_seconds

    return UvicornServer(uvicorn.Config(api, http=Protocol, ws="none", backlog=_ACCEPTED, **settings))


class _TimedHeaders(H11Protocol):
    """uvicorn's protocol with a time limit; without it uvicorn waits forever for headers."""

    seconds = HEADER_SECONDS
    _limit: asyncio.TimerHandle | None = None
    _has_begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit for the first headers of a new connection."""
        super().connection_made(transport)
        self._limit = self.loop.call_later(self.seconds, self._close_late)

    def data_received(self, data: bytes) -> None:
        """Receive bytes. Headers are timed here; the API times bodies."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._limit is None:
            self._limit = self.loop.call_later(self.seconds, self._close_late)
        self._has_begun = True
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time limit of a closed connection."""
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
