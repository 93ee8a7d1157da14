"""The HTTP server of the API: uvicorn with a time limit for request headers.

Promises: a connection whose headers do not arrive in time is closed, with 408 if some arrived. New
connections are accepted a few at a time, so a burst of them does not delay open requests. Bodies in chunks
are parsed a few lines at a time, in turn, so endless tiny chunks do not either. A connection that takes
nothing of its answer for a while is closed.
Leaves to others: bodies and answers (app.py), and the socket's address (cli/).
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

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
