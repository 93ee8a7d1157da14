"""The side of the tools: reads calls from the pipe, runs them, and writes their answers.

Promises: what a tool prints or reads from the terminal never gets into the pipe. The process ends when its
parent does, also in the middle of a call, and so does all that it started (Linux). An error of a tool is an
answer.
Leaves to others: the tools (functions.py).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread
from typing import IO

import msgspec

from heredity.application.sandbox.messages import Answer, Call, NotOpened, Opened, receive, send
from heredity.application.sandbox.process import end_descendants, too_large
from heredity.core.records import encode
from heredity.core.sanitize import clean_text

_MAX_CALL = 10_000_000  # bytes of a call
_PR_SET_CHILD_SUBREAPER = 36
_MAX_ERROR = 500  # characters of what a tool raises


def serve(
    start: Callable[[], Opened | NotOpened], run: Callable[[Call], Answer], most: int, at_once: int = 1
) -> None:
    """Say what is offered, then answer calls until the pipe closes, several of them at once."""
    if sys.platform == "linux":  # what a tool detaches stays a descendant of this process
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    calls = SimpleQueue[bytes]()
    Thread(target=_read, args=(source, calls), daemon=True).start()
    send(target, encode(start()))
    writing = Lock()

    def work() -> None:
        while True:
            call = msgspec.json.decode(calls.get(), type=Call)
            answer = _answer(run, call)
            answer = too_large(most) if len(answer.text) > most else answer
            with writing:
                send(target, encode(msgspec.structs.replace(answer, number=call.number)))

    for _ in range(at_once - 1):
        Thread(target=work, daemon=True).start()
    work()


def raised(error: BaseException) -> str:
    """The words of an error that a tool raised."""
    return clean_text(f"{type(error).__name__}: {error}")[:_MAX_ERROR]


def _read(source: IO[bytes], calls: SimpleQueue[bytes]) -> None:
    while True:
        try:
            calls.put(receive(source, _MAX_CALL))
        except (EOFError, OverflowError, OSError):
            end_descendants(os.getpid())
            os._exit(0)  # the study is gone, and a tool may hang


def _answer(run: Callable[[Call], Answer], call: Call) -> Answer:
    try:
        answer = run(call)
        return Answer(clean_text(answer.text), answer.error_code)
    except BaseException as error:  # SystemExit too: a tool that exits must not end the others
        return Answer(raised(error), "tool-raised")


def settings() -> tuple[int, list[str]]:
    """The characters of a result, and the other arguments of this process."""
    return int(sys.argv[1]), sys.argv[2:]
