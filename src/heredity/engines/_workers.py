"""Answers many slow requests at once, each in a thread of its own: for targets that wait rather than compute.

Promises: the thread that iterates over the replies pulls the requests. An answer that exceeds its time is an
error row, and a late one is dropped. One whose caller has left ends soon, and keeps its place until its
thread comes back. No thread keeps the process from ending. Of an answer in parts no part holds a key, even if
a service splits it, and nothing is heard after its end.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import NamedTuple
from urllib.parse import quote, quote_plus

from heredity.core.errors import EngineFailure, HeredityError
from heredity.core.records import Reply, Request
from heredity.engines import Capabilities, FirstAnswer, Listener, Provenance, RequestStream, n_started

# --- answers in parts ------------------------------------------------------------------------------------

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventReader:
    """Splits a stream of bytes into the data of its events. Comments and other fields are skipped."""

    def __init__(self) -> None:
        self._line: list[bytes] = []  # parts of a line that has not ended
        self._is_held = False  # a carriage return, which may be half of a line's end
        self._data: list[bytes] = []

    def feed(self, more: bytes) -> list[bytes]:
        """Receive the next bytes; return the data of the events that are complete with them."""
        text = b"\r" * self._is_held + more
        self._is_held = text.endswith(b"\r")
        first, *others = _LINE_END.split(text[: len(text) - self._is_held])
        self._line.append(first)
        if not others:
            return []
        *lines, rest = b"".join(self._line), *others
        self._line = [rest]
        return [data for line in lines if (data := self._end_line(line)) is not None]

    def _end_line(self, line: bytes) -> bytes | None:
        """Take a line; return the data of the event that it ends."""
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            return None
        data, self._data = self._data, []
        return b"\n".join(data) if data else None


_MASK = "[key]"


class KeyMask:
    """Removes keys from texts, their encoded spellings included."""

    def __init__(self, *keys: str) -> None:
        forms = set[str]().union(*map(_spellings, keys))
        self._forms = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return the text without the keys."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, _MASK)
        return text

    def n_started(self, text: str) -> int:
        """Return how many characters at the end of a text may be the beginning of a key."""
        return max((n_started(text, form) for form in self._forms), default=0)


def _spellings(key: str) -> set[str]:
    """The key, its base64, its JSON and its URL spelling: forms that an echo may have."""
    encoded = base64.b64encode(key.encode()).decode()
    forms = {key, json.dumps(key)[1:-1], quote(key, safe=""), quote_plus(key), encoded, encoded.rstrip("=")}
    return forms | {form.replace("/", "\\/") for form in forms}


class StreamedAnswer:
    """The parts of an answer, passed to its listener with the keys masked. listener None: nobody listens."""

    def __init__(self, request: Request, listener: Listener | None, mask: KeyMask) -> None:
        self._key, self._listener, self._mask = request.key, listener, mask
        self._held = ""  # what may be the beginning of a key
        self._heard: list[str] = []
        self._is_over, self._lock = False, threading.Lock()

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._heard)

    @property
    def is_started(self) -> bool:
        """Whether any of it came: another attempt would begin again."""
        return bool(self._heard or self._held)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for the answer."""
        return not self._is_over and (self._listener is None or self._listener.is_wanted(self._key))

    @property
    def is_asked_for(self) -> bool:
        """Whether the answer is wanted in parts."""
        return self._listener is not None and self._listener.is_heard(self._key)

    def hear(self, more: str) -> None:
        """Pass on the text that the answer grows by."""
        text = self._mask(self._held + more)
        n_held = self._mask.n_started(text)
        self._held = text[len(text) - n_held :]
        self._pass_on(text[: len(text) - n_held])

    def finish(self, text: str) -> None:
        """Pass on the rest of the answer, which is `text` as a whole."""
        self._pass_on(text[len(self.text) :])

    def end(self) -> None:
        """Pass on nothing more: the reply is given."""
        with self._lock:
            self._is_over = True

    def _pass_on(self, text: str) -> None:
        with self._lock:
            if text and not self._is_over:
                self._heard.append(text)
                if self._listener is not None and self._listener.is_heard(self._key):
                    self._listener.hear(self._key, text)


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


class PooledEngine:
    """A target behind the Engine protocol, asked by `width` threads at once. Not all answers are streamed."""

    numerics = ""  # an answer may depend on anything

    def __init__(self, name: str, width: int, patience: float, mask: KeyMask) -> None:
        self.name, self.width, self._patience, self._mask = name, width, patience, mask
        self._first, self._nonce = FirstAnswer(), secrets.token_hex(8)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(streamer=self, provenance=Provenance(first_answer=self._first))

    def render(self, request: Request) -> str:
        raise NotImplementedError

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        return self._replies(requests, unheard)

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        return self._replies(requests, partial(StreamedAnswer, listener=listener, mask=self._mask))

    def _replies(self, requests: Iterable[Request | None], hear: Hear) -> Iterator[Reply]:
        pool = WorkerPool(self._answer, self.width, self._patience, self.render, hear)
        return self._first.announce(pool.reply(requests))

    def _answer(self, request: Request, heard: StreamedAnswer) -> Reply:
        raise NotImplementedError


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
