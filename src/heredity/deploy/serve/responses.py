"""Send an answer to its caller: in one body, or in parts as server-sent events.

Promises: the parts joined are the answer. A caller who disconnects frees the answer's place. A stream that
fails ends with an error event, never like a complete one.
Leaves to others: parsing requests (schema.py, app.py), and the engine (worker.py).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from heredity.application.spec import Application
from heredity.core.errors import Busy, ContextOverflow, EngineFailure, HeredityError
from heredity.core.records import Model, Reply, ToolCall, digest, encode
from heredity.deploy.serve import schema
from heredity.deploy.serve.schema import ParsedRequest, Refusal
from heredity.deploy.serve.worker import EngineWorker, Ticket
from heredity.engines.chat.codec import StopTexts

# Errors that the request caused: the reply's error code, and the code that the caller gets.
_THEIRS: dict[str | None, str] = {
    ContextOverflow.code: "context_length_exceeded",
    "template-refuses": "invalid_request",
}


class Served(NamedTuple):
    """A served model, with or without an application."""

    model: Model
    service: EngineWorker
    application: Application | None = None
    may_draw: bool = False  # whether a caller may override the application's sampling parameters

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines an answer: weights, application, arithmetic."""
        layer = "" if self.application is None else self.application.digest
        return f"fp_{digest([self.model.id, layer, self.service.engine.numerics])[:16]}"


class ServedAnswer:
    """One answer that is being generated, cut at the caller's stop texts. Create it inside an event
    loop."""

    def __init__(self, one: Served, asked: ParsedRequest, number: int) -> None:
        self._one, self._asked, self.number = one, asked, number
        self._ends = StopTexts(asked.stops)
        self._loop = asyncio.get_running_loop()
        self._ticket: Ticket | None = None
        self._sent = ""
        self._untaken: deque[str] = deque()  # written by the engine's thread, read by the loop
        self._is_waking = self._is_dropped = False
        self.news = asyncio.Event()

    def ask(self) -> None:
        """Send the request to the engine. Raises Refusal."""
        is_heard = self._asked.is_streamed or bool(self._asked.stops)
        request = self._asked.requests[self.number]
        try:
            self._ticket = self._one.service.ask(request, self._hear if is_heard else None)
        except HeredityError as error:
            raise _refusal(error) from None

    def drop(self) -> None:
        """Cancel the answer: the caller no longer waits."""
        self._is_dropped = True
        self._end()

    def take(self) -> str:
        """The text that the engine produced since the last call."""
        taken = ""
        while self._untaken:
            taken += self._untaken.popleft()
        return taken

    def _end(self) -> None:
        if self._ticket is not None:
            self._ticket.drop()

    def _hear(self, more: str) -> None:
        """Receive the next text, in the engine's thread; text that may begin a stop text is held back.

        At most one wake-up of the loop is pending: a fast engine must not fill the loop's queue.
        """
        text = self._ends.feed(more)
        if self._ends.is_over:
            self._end()
        self._sent += text
        if self._is_dropped or not text:
            return
        self._untaken.append(text)
        if not self._is_waking:
            self._is_waking = True
            with suppress(RuntimeError):  # the loop is closed, and so is the connection
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_waking = False  # before the text is taken: later text wakes the loop again
        self.news.set()

    async def reply(self) -> Reply:
        """Return the engine's reply. Raises Refusal if it failed."""
        assert self._ticket is not None
        engine_reply = asyncio.wrap_future(self._ticket.reply)
        engine_reply.add_done_callback(_ignore)  # a disconnected caller retrieves no error
        try:
            reply = await asyncio.shield(engine_reply)
        except HeredityError as error:
            raise _refusal(error) from None
        if reply.stop == "error":
            code = _THEIRS.get(reply.error_code, "engine_error")
            message = reply.error or "the engine gave no reason"
            raise Refusal(500 if code == "engine_error" else 400, message, code)
        return reply

    def finished(self, reply: Reply) -> FinishedAnswer:
        """Return the answer as it is sent: cut at stop texts, with its tool calls."""
        ends = StopTexts(self._asked.stops)
        text = ends.feed(reply.text) + ends.rest()
        layer, calls = self._one.application, tuple[ToolCall, ...]()
        if layer is not None and layer.tools:
            calls = layer.calls("", Reply(reply.key, "", text, tool_calls=reply.tool_calls))
        return FinishedAnswer(text, calls, schema.reason(reply, calls, ends.is_over))

    def left(self, text: str) -> str:
        """Return the rest that was not streamed. Raises Refusal if the streamed text is not its
        beginning."""
        if not text.startswith(self._sent):
            raise Refusal(500, "the streamed text differs from the answer", "engine_error")
        return text[len(self._sent) :]


class FinishedAnswer(NamedTuple):
    """An answer as it is sent, with its tool calls and its finish reason."""

    text: str
    calls: tuple[ToolCall, ...]
    reason: str


class ChatResponse:
    """Formats answers for /v1/chat/completions."""

    kind, chunk = "chat.completion", "chat.completion.chunk"

    def __init__(self, one: Served) -> None:
        self._ident = f"chatcmpl-{secrets.token_hex(12)}"
        self._head = {
            "id": self._ident,
            "created": int(time.time()),
            "model": one.model.name,
            "system_fingerprint": one.fingerprint,
        }

    def whole(self, answers: Sequence[ServedAnswer], replies: Sequence[Reply]) -> dict[str, object]:
        """Return all answers in one body."""
        choices = [self._choice(a.number, a.finished(r)) for a, r in zip(answers, replies, strict=True)]
        return {"object": self.kind, **self._head, "choices": choices, "usage": schema.usage(replies)}

    def event(self, *choices: dict[str, object], **more: object) -> bytes:
        """Return one event of a stream as bytes."""
        return sent({"object": self.chunk, **self._head, "choices": list(choices), **more})

    def piece(self, number: int, text: str, is_first: bool) -> dict[str, object]:
        """Return the next part of an answer, in the shape of a choice."""
        delta = {"role": "assistant", "content": text} if is_first else {"content": text}
        return {"index": number, "delta": delta, "finish_reason": None}

    def last(self, number: int, answer: FinishedAnswer) -> dict[str, object]:
        """Return the last chunk of an answer, with its finish reason."""
        calls = [{"index": i, **each} for i, each in enumerate(self._calls(number, answer))]
        return {
            "index": number,
            "delta": {"tool_calls": calls} if calls else {},
            "finish_reason": answer.reason,
        }

    def _choice(self, number: int, answer: FinishedAnswer) -> dict[str, object]:
        message: dict[str, object] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.calls:
            message["tool_calls"] = self._calls(number, answer)
        return {"index": number, "message": message, "logprobs": None, "finish_reason": answer.reason}

    def _calls(self, number: int, answer: FinishedAnswer) -> list[dict[str, object]]:
        return schema.calls_of(f"{self._ident[-8:]}_{number}", answer.calls)


class Text(ChatResponse):
    """Formats answers for /v1/completions."""

    kind = chunk = "text_completion"

    def piece(self, number: int, text: str, is_first: bool) -> dict[str, object]:  # noqa: ARG002
        """Return the next part of an answer, in the shape of a choice."""
        return {"index": number, "text": text, "logprobs": None, "finish_reason": None}

    def last(self, number: int, answer: FinishedAnswer) -> dict[str, object]:
        """Return the last chunk of an answer, with its finish reason."""
        return self._choice(number, answer) | {"text": ""}

    def _choice(self, number: int, answer: FinishedAnswer) -> dict[str, object]:
        return {"index": number, "text": answer.text, "logprobs": None, "finish_reason": answer.reason}


async def events(
    shape: ChatResponse, answers: Sequence[ServedAnswer], with_usage: bool
) -> AsyncIterator[bytes]:
    """Yield the answers as server-sent events, one answer after the other."""
    replies = []
    wholes = [asyncio.ensure_future(answer.reply()) for answer in answers]
    try:
        for answer, whole in zip(answers, wholes, strict=True):
            is_first = True
            async for more in _pieces(answer, whole):
                yield shape.event(shape.piece(answer.number, more, is_first))
                is_first = False
            reply = await whole
            finished = answer.finished(reply)
            if (rest := answer.left(finished.text)) or is_first:
                yield shape.event(shape.piece(answer.number, rest, is_first))
            yield shape.event(shape.last(answer.number, finished))
            replies.append(reply)
        if with_usage:
            yield shape.event(usage=schema.usage(replies))
        yield b"data: [DONE]\n\n"
    except Refusal as error:  # the HTTP status is already sent
        yield sent(error.body)
    finally:
        for answer, whole in zip(answers, wholes, strict=True):
            answer.drop()
            forget(whole)


def forget(future: asyncio.Future[Any]) -> None:
    """Cancel a future that is no longer awaited, and ignore its result."""
    future.cancel()
    future.add_done_callback(_ignore)


def _ignore(done: asyncio.Future[Any]) -> None:
    """Retrieve an error, so that asyncio does not log it."""
    if not done.cancelled():
        done.exception()


async def _pieces(answer: ServedAnswer, whole: asyncio.Future[Reply]) -> AsyncIterator[str]:
    """Yield the streamed text until the reply is complete."""
    whole.add_done_callback(lambda _: answer.news.set())
    while True:
        answer.news.clear()
        is_done = whole.done()  # read before the text, because all text of an answer comes before its reply
        if more := answer.take():
            yield more
        elif is_done:
            return
        else:
            await answer.news.wait()


def sent(what: dict[str, object]) -> bytes:
    """Return a server-sent event as bytes."""
    return b"data: " + encode(what) + b"\n\n"


def _refusal(error: HeredityError) -> Refusal:
    if isinstance(error, Busy):
        return Refusal(429, str(error), "too_many_requests", error.code)
    status = 503 if isinstance(error, EngineFailure) else 500
    return Refusal(status, str(error), "engine_error", error.code)
