"""Answers many slow requests at once, each in a thread of its own: for targets that wait rather than compute.

Promises: the thread that iterates over the replies pulls the requests. An answer that exceeds its time is an
error row, and a late one is dropped. One whose caller has left ends soon, and keeps its place until its
thread comes back. No thread keeps the process from ending.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

from heredity.core.errors import EngineFailure, HeredityError
from heredity.core.records import Reply, Request
from heredity.engines import RequestStream
from heredity.engines._streaming import KeyMask, StreamedAnswer

Answer = Callable[[Request, StreamedAnswer], Reply]
Hear = Callable[[Request], StreamedAnswer]
ASK_AGAIN = 0.02  # seconds until the stream of requests is asked again
LOOK_SECONDS = 0.1  # between two looks whether an answer is still wanted
_LOST_PER_WORKER = 4  # answers that never came, per worker: beyond it the run ends


class _Came(NamedTuple):
    ticket: int
    reply: Reply | BaseException


class _Waiting(NamedTuple):
    """A request in flight. is_answered: its caller has left, and its thread has not come back."""

    request: Request
    deadline: float
    heard: StreamedAnswer
    is_answered: bool = False


def unheard(request: Request) -> StreamedAnswer:
    """The answer of a request to which nobody listens."""
    return StreamedAnswer(request, None, KeyMask())


class WorkerPool:
    """Answers a stream of requests, `width` at a time. `answer` raises EngineFailure to end the run.

    hear: opens the answer of a request that may grow in parts.
    """

    def __init__(
        self,
        answer: Answer,
        width: int,
        timeout_seconds: float,
        render: Callable[[Request], str],
        hear: Hear = unheard,
    ) -> None:
        self._answer, self._width, self._timeout, self._render = answer, width, timeout_seconds, render
        self._hear = hear
        self._came: SimpleQueue[_Came] = SimpleQueue()
        self._in_flight: dict[int, _Waiting] = {}
        self._n_lost = 0

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Yield the replies as they are finished."""
        source, ticket, queued = RequestStream(requests), 0, None
        while True:
            while self._has_room and (request := queued or source.next()) is not None:
                ticket, queued = ticket + 1, None
                heard = self._hear(request)
                self._in_flight[ticket] = _Waiting(request, time.monotonic() + self._timeout, heard)
                # A daemon: a target that never answers must not keep the process alive.
                threading.Thread(target=self._work, args=(ticket, request, heard), daemon=True).start()
            if not self._in_flight:
                return source.refuse_idle()
            if all(waiting.is_answered for waiting in self._in_flight.values()):
                queued = queued or source.next()
                if queued is None and not source.is_open:
                    return None  # nobody waits for the threads that still run
            yield from self._end_unwanted()
            yield from self._wait(ASK_AGAIN if source.is_open and self._has_room else LOOK_SECONDS)

    @property
    def _has_room(self) -> bool:
        return len(self._in_flight) < self._width

    def _work(self, ticket: int, request: Request, heard: StreamedAnswer) -> None:
        try:
            self._came.put(_Came(ticket, self._answer(request, heard)))
        except BaseException as error:  # a user's function may raise anything, SystemExit too
            self._came.put(_Came(ticket, error))

    def _wait(self, seconds: float) -> Iterator[Reply]:
        """Wait at most this long for the next reply, and fail the requests that are late."""
        left = min(waiting.deadline for waiting in self._in_flight.values()) - time.monotonic()
        came = None
        with suppress(Empty):
            came = self._came.get(timeout=min(max(left, 0.0), seconds))
        if came is None:
            yield from self._give_up()
            return
        waiting = self._in_flight.pop(came.ticket, None)
        if waiting is None:  # it was late, and has its error row
            self._n_lost -= 1
        elif waiting.is_answered:
            pass
        elif isinstance(came.reply, EngineFailure):
            raise came.reply
        elif isinstance(came.reply, BaseException):
            yield error_row(waiting.request, self._render, describe_error(came.reply))
        else:
            yield came.reply

    def _end_unwanted(self) -> Iterator[Reply]:
        """Reply to the requests whose callers have left with what they heard."""
        for ticket, waiting in tuple(self._in_flight.items()):
            if not waiting.is_answered and not waiting.heard.is_wanted:
                waiting.heard.end()
                self._in_flight[ticket] = waiting._replace(is_answered=True)
                request = waiting.request
                yield Reply(request.key, self._render(request), waiting.heard.text, stop="length")

    def _give_up(self) -> Iterator[Reply]:
        now = time.monotonic()
        late = [ticket for ticket, waiting in self._in_flight.items() if waiting.deadline <= now]
        for ticket in late:
            waiting = self._in_flight.pop(ticket)
            waiting.heard.end()
            self._n_lost += 1
            if not waiting.is_answered:
                yield error_row(waiting.request, self._render, f"no answer within {self._timeout:g} s")
        if self._n_lost > _LOST_PER_WORKER * self._width:
            raise EngineFailure(
                f"{self._n_lost} requests never came back within {self._timeout:g} s each: it hangs"
            )


def error_row(
    request: Request, render: Callable[[Request], str], error: str, code: str = EngineFailure.code
) -> Reply:
    """Return the error row of one request."""
    return Reply(request.key, render(request), "", stop="error", error=error[:500], error_code=code)


def describe_error(error: BaseException) -> str:
    """Return an exception in one line of text, with its type unless it is heredity's own."""
    text = " ".join(str(error).split())[:400]
    return text if isinstance(error, HeredityError) else f"{type(error).__name__}: {text}".rstrip(": ")


def conversation_text(request: Request) -> str:
    """Return a request as one text, for a target whose own template is unknown."""
    messages = "".join(f"<|{message.role}|>\n{message.content}\n" for message in request.messages)
    return f"{messages}<|assistant|>\n{request.prefill}"


def conversation_id(nonce: str, request: Request) -> str:
    """Return a name for the conversation that a request is part of, the same in all its turns.

    The engine's own `nonce` makes it unique across runs. A target with a memory must not mix two trials, or
    continue an interrupted one.
    """
    first = next((m.content for m in request.messages[request.n_shared :] if m.role == "user"), "")
    named = f"{nonce}\0{request.key}\0{request.seed}\0{first}".encode(errors="surrogatepass")
    return hashlib.blake2b(named, digest_size=12).hexdigest()
