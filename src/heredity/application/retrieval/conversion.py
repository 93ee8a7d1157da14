"""Parse files of complex formats in another process, which is stopped if it takes too long or too much.

PDF, DOCX and HTML come from anywhere, and a file can be built to keep its parser busy for hours or to fill
the memory. The process reads no file itself: it receives bytes and returns blocks.

Promises: a file that hangs, crashes or exhausts the process is `Unreadable`, and the next one is parsed.
Leaves to others: the formats (readers/).

    python -m heredity.application.retrieval.conversion MAX_MEMORY    the other side of the pipe
"""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import IO

import msgspec

from heredity.application.retrieval.folder import Limits
from heredity.application.retrieval.readers import TextBlock, Unreadable, load
from heredity.core.errors import first_line, how_to_install
from heredity.core.files import Closable
from heredity.core.records import Record, encode
from heredity.core.sanitize import clean_text

_LENGTH = struct.Struct(">Q")
# After these the process may hold what a failed parser left in memory: the next file gets a new one.
_SPOILING = ("too-much-memory", "damaged")
_PACKAGE_ROOT = Path(__file__).parents[3]


class Parsed(Record, frozen=True):
    """The answer of the process: blocks, or the reason for their absence."""

    blocks: tuple[TextBlock, ...] = ()
    reason: str = ""
    detail: str = ""


class _Job(Record, frozen=True):
    reader: str
    max_unpacked: int


class Converter(Closable):
    """Parses files by the readers. The process starts with the first file that needs it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._is_late = False

    def read(self, reader: str, data: bytes) -> list[TextBlock]:
        """The blocks of a file that have text. Raises Unreadable."""
        if load(reader).IS_ISOLATED:
            parsed = self._ask(reader, data)
            if parsed.reason in _SPOILING:
                self.close()
        else:
            parsed = parse(reader, data, self._limits.max_unpacked)
        if parsed.reason:
            raise Unreadable(parsed.reason, parsed.detail)  # type: ignore[arg-type]
        blocks = [block for block in parsed.blocks if block.text.strip()]
        if not blocks:
            raise Unreadable("no-text")
        return blocks

    def close(self) -> None:
        """Stop the process."""
        if self._process is None:
            return
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._process.wait()
        self._process = None

    def _ask(self, reader: str, data: bytes) -> Parsed:
        process = self._started()
        timer = Timer(self._limits.max_seconds, self._stop, [process])
        self._is_late = False
        timer.start()
        try:
            assert process.stdin is not None and process.stdout is not None
            _send(process.stdin, encode(_Job(reader, self._limits.max_unpacked)))
            _send(process.stdin, data)
            return msgspec.json.decode(_receive(process.stdout), type=Parsed)
        except (OSError, EOFError):
            self.close()
            if self._is_late:
                return Parsed((), "too-slow", f"over {self._limits.max_seconds:g} s")
            return Parsed((), "crashed")
        finally:
            timer.cancel()
            timer.join()

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        self._is_late = True
        process.kill()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            paths = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self._limits.max_memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        return self._process


def parse(reader: str, data: bytes, max_unpacked: int) -> Parsed:
    """Parse in this process. Every error of a reader is a reason."""
    try:
        blocks = load(reader).read(data, max_unpacked)
        return Parsed(tuple(msgspec.structs.replace(each, text=clean_text(each.text)) for each in blocks))
    except Unreadable as error:
        return Parsed((), error.reason, error.detail)
    except ImportError as error:
        return Parsed((), "needs-package", f"{error.name} is missing. {how_to_install('retrieval')}")
    except (MemoryError, RecursionError) as error:
        return Parsed((), "too-much-memory", type(error).__name__)
    except OSError as error:
        is_memory = error.errno == errno.ENOMEM
        return Parsed((), "too-much-memory" if is_memory else "damaged", clean_text(first_line(error)))
    except Exception as error:  # a parser of a hostile format may raise anything
        return Parsed((), "damaged", clean_text(first_line(error)))


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    """Raises EOFError if the other side is gone."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (n_bytes,) = _LENGTH.unpack(head)
    data = pipe.read(n_bytes)
    if len(data) < n_bytes:
        raise EOFError
    return data


def _serve(max_memory: int) -> None:
    """Parse what comes in until the pipe closes."""
    with suppress(ImportError, OSError, ValueError):  # a system without such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (max_memory, max_memory))
    sys.setrecursionlimit(2000)
    source, target = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(2, sys.stdout.fileno())  # a library that prints must not write into the answer
    while True:
        try:
            job = msgspec.json.decode(_receive(source), type=_Job)
            data = _receive(source)
        except EOFError:
            return
        _send(target, encode(parse(job.reader, data, job.max_unpacked)))


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
