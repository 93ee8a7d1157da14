"""Connections by hand: chunks of a byte are parsed in turns, so that no body holds up another."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

import pytest

h11 = pytest.importorskip("h11")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from uvicorn.server import ServerState

from heredity.deploy.serve import app
from heredity.deploy.serve.app import ParserTurns, TimedProtocol
from tests.deploy.serve.serving import HELLO, named, until

PLACE = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
CHUNKED = PLACE + b"transfer-encoding: chunked\r\n\r\n"
BODY = json.dumps({"model": "scripted:helpful", "messages": HELLO}).encode()


class Pipe(asyncio.Transport):
    """A transport without a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.is_paused, self.is_closed = b"", False, False
        self.unread, self.high_water = list[int](), 65_536

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def write(self, data: Any) -> None:
        self.sent += data

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high_water = 65_536 if high is None else high

    def get_write_buffer_size(self) -> int:
        return self.unread.pop(0)

    def abort(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class Line:
    """A connection to a server, and what it has answered."""

    def __init__(self, config: Any, turns: ParserTurns) -> None:
        class Protocol(TimedProtocol):
            pass

        Protocol.turns = turns
        self.protocol: Any = Protocol(config, ServerState(), {}, asyncio.get_running_loop())
        self.pipe = Pipe()
        self.protocol.connection_made(self.pipe)

    def send(self, data: bytes) -> None:
        assert not self.pipe.is_paused
        self.protocol.data_received(data)

    async def answer(self) -> bytes:
        async with asyncio.timeout(30):
            while b"chat.completion" not in self.pipe.sent and b"error" not in self.pipe.sent:
                await asyncio.sleep(0.001)
        return self.pipe.sent


def chunks(body: bytes, n: int = 1) -> bytes:
    """A body in chunks of n bytes, without its end."""
    parts = (body[at : at + n] for at in range(0, len(body), n))
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def talk(what: Any) -> None:
    """Run a conversation with a server: what(open), where open() is a new connection."""
    one = named("helpful")
    config = uvicorn.Config(app.app((one,)), log_level="warning")
    config.load()

    async def run() -> None:
        turns = ParserTurns()
        await what(lambda: Line(config, turns))

    try:
        asyncio.run(run())
    finally:
        one.service.close()


def test_a_body_in_chunks_of_a_byte_is_answered_as_one_in_one_piece() -> None:
    async def what(open_: Any) -> None:
        for size in (1, 7, len(BODY)):
            line = open_()
            line.send(CHUNKED + chunks(BODY, size) + b"0\r\n\r\n")
            assert b"200 OK" in await line.answer()
            assert not line.pipe.is_paused
            line.send(PLACE + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
            while line.pipe.sent.count(b"200 OK") < 2:
                await asyncio.sleep(0.001)

    talk(what)


def test_one_pass_of_the_loop_parses_a_bounded_part_of_a_body_in_tiny_chunks() -> None:
    async def what(open_: Any) -> None:
        line, flood = open_(), chunks(b" " * 5_000)
        line.send(CHUNKED + flood)
        assert line.pipe.is_paused, "the kernel holds what comes meanwhile"
        left, n_passes = [len(flood)], 0
        while line.protocol.unparsed:
            await asyncio.sleep(0)
            left.append(len(line.protocol.unparsed))
            n_passes += 1
        assert n_passes > 5_000 * 2 / app._LINES / 2
        most = max(before - after for before, after in itertools.pairwise(left[1:]))
        assert most <= (app._LINES + app._PART) * 3  # bytes: six a chunk of two lines
        assert not line.pipe.is_paused
        line.protocol.connection_lost(None)

    talk(what)


def test_a_short_body_does_not_wait_for_the_tiny_chunks_of_others() -> None:
    async def what(open_: Any) -> None:
        floods = [open_() for _ in range(20)]
        for each in floods:
            each.send(CHUNKED + chunks(b" " * 5_000))
        short, plain = open_(), open_()
        short.send(CHUNKED + chunks(BODY, 64) + b"0\r\n\r\n")
        plain.send(PLACE + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
        for _ in range(60):  # of over 1,500 passes that the others take
            await asyncio.sleep(0)
        assert not short.protocol.unparsed and all(each.protocol.unparsed for each in floods)
        for line in (short, plain):
            assert b"200 OK" in await line.answer()
        for each in floods:
            each.protocol.connection_lost(None)

    talk(what)


def test_a_body_of_stated_length_with_many_lines_takes_no_turns() -> None:
    async def what(open_: Any) -> None:
        body = b"\n" * 5_000 + BODY
        line = open_()
        line.send(PLACE + b"content-length: %d\r\n\r\n" % len(body))
        line.send(body)
        assert not line.protocol.unparsed
        assert b"200 OK" in await line.answer()
        together = open_()  # with its headers in one read
        together.send(PLACE + b"content-length: %d\r\n\r\n" % len(body) + body)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not together.protocol.unparsed
        assert b"200 OK" in await together.answer()

    talk(what)


def test_a_connection_that_closes_leaves_nothing_to_parse() -> None:
    async def what(open_: Any) -> None:
        line, other = open_(), open_()
        for each in (line, other):
            each.send(CHUNKED + chunks(b" " * 5_000))
        line.protocol.connection_lost(None)
        other.pipe.close()
        for _ in range(3):
            await asyncio.sleep(0)
        assert not line.protocol.unparsed and not other.protocol.unparsed
        other.protocol.connection_lost(None)

    talk(what)


def test_a_connection_is_read_when_neither_its_turn_nor_uvicorn_holds_it() -> None:
    pipe = Pipe()
    flow = app._HeldFlow(pipe)
    flow.hold()
    flow.pause_reading()
    flow.resume_reading()
    assert pipe.is_paused, "its turn has not come"
    flow.pause_reading()
    flow.release()
    assert pipe.is_paused, "uvicorn's own pause is not over"
    flow.resume_reading()
    assert not pipe.is_paused
    flow.hold()
    flow.release()
    assert not pipe.is_paused


N_BYTES = 64 << 20  # more than the kernel holds of an answer


async def _large(scope: Any, receive: Any, send: Any) -> None:
    """Answer /parts with many parts, and any other path with one."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    n = 64 if scope["path"] == "/parts" else 1
    for left in reversed(range(n)):
        await send({"type": "http.response.body", "body": bytes(N_BYTES // n), "more_body": left > 0})


@contextmanager
def large_answers(unread_seconds: float) -> Iterator[Any]:
    """A real server of large answers, and what opens a connection that has asked for one."""
    running = app.server(
        cast(Any, _large), unread_seconds=unread_seconds, log_level="critical", lifespan="off"
    )
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as bound, ExitStack() as stack:
        bound.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]})
        thread.start()

        def asked(path: str) -> socket.socket:
            line = stack.enter_context(socket.create_connection(bound.getsockname(), 60))
            line.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            return line

        try:
            until(lambda: running.started)
            yield running, asked
        finally:
            stack.close()
            running.should_exit = True
            thread.join()


@pytest.mark.parametrize("path", ["/parts", "/whole"])
def test_a_caller_who_reads_nothing_of_an_answer_is_cut_off(path: str) -> None:
    with large_answers(0.2) as (running, asked):
        line = asked(path)
        until(lambda: running.server_state.connections)
        until(lambda: not running.server_state.connections)
        n_read = 0
        with suppress(ConnectionResetError):
            while part := line.recv(1 << 20):
                n_read += len(part)
        assert n_read < N_BYTES


def test_a_caller_who_reads_slowly_is_not_cut_off_until_the_end_stays_unread() -> None:
    async def what(open_: Any) -> None:
        line = open_()
        line.protocol.most_unread = 0.001
        assert line.pipe.high_water == 0, "a short unread answer is timed too"
        line.pipe.unread = [9, 7, 4, 4]
        line.protocol.pause_writing()
        while not line.pipe.is_closed:
            await asyncio.sleep(0.001)
        assert not line.pipe.unread, "each part that was read gave it more time"
        line.protocol.connection_lost(None)

    talk(what)
