"""The messages between a study and the process of its tools: JSON in frames that begin with their length."""

from __future__ import annotations

import struct
from typing import IO

from heredity.core.records import Record

LENGTH = struct.Struct(">Q")


class ServerAddress(Record, frozen=True):
    """The address of an MCP server: a command, or a URL. Values of the environment are given by name.

    at_once: calls that run at once in one session. open_seconds: of the client's processor, to list tools.
    """

    command: tuple[str, ...] = ()
    url: str = ""
    env: tuple[str, ...] = ()
    token_env: str = ""
    at_once: int = 1
    open_seconds: int = 10


class Offered(Record, frozen=True):
    """A tool as its process describes it. `code`: a hash of the file it is from; "" for none."""

    name: str
    description: str
    schema: dict[str, object]
    code: str = ""


class Opened(Record, frozen=True, tag=True):
    """The first message of the process: its tools."""

    tools: tuple[Offered, ...]
    identity: str = ""  # of a server: its own name and version


class NotOpened(Record, frozen=True, tag=True):
    """The first message of a process that offers nothing, and why."""

    text: str


class Call(Record, frozen=True):
    """A call to run. Its answer has the same number."""

    tool: str
    arguments: dict[str, object]
    number: int = 0


class Answer(Record, frozen=True, tag=True):
    """The result of a call, or its error, in words for the model."""

    text: str
    error_code: str = ""
    number: int = 0


def send(pipe: IO[bytes], data: bytes) -> None:
    """Write one frame."""
    pipe.write(LENGTH.pack(len(data)) + data)
    pipe.flush()


def receive(pipe: IO[bytes], most: int) -> bytes:
    """Read one frame. Raises EOFError if the other side is gone, OverflowError over `most` bytes."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    (n_bytes,) = LENGTH.unpack(head)
    if n_bytes > most:
        raise OverflowError
    data = pipe.read(n_bytes)
    if len(data) < n_bytes:
        raise EOFError
    return data
