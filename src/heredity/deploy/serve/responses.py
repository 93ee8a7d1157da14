"""An answer on its way to who asked for it: as a whole, or piece by piece as server-sent events.

Promises: the pieces, end to end, are the answer; who goes away frees the answer's place; a stream that fails
ends with an error event, never as if it were whole.
Leaves to others: which requests there are (wire.py, serve.py), and the engine (service.py).
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

# What fails by what was asked: a reply's error code, and the one that the caller gets.
_THEIRS: dict[str | None, str] = {
    ContextOverflow.code: "context_length_exceeded",
    "template-refuses": "invalid_request",
}


class Served(NamedTuple):
    """A model that answers, in an application or alone."""

    model: Model
    service: EngineWorker
    application: Application | None = None
    may_draw: bool = False  # whether a caller may say how answers are drawn, other than the application does

    @property
    def fingerprint(self) -> str:
        """Of all that an answer hangs on: weights, application, arithmetic."""
        layer = "" if self.application is None else self.application.digest
        return f"fp_{digest([self.model.id, layer, self.service.engine.numerics])[:16]}"


class AnswerStream:
    """One answer on its way, cut where a text of the caller's stands. Made inside an event loop."""

    def __init__(self, one: Served, asked: ParsedRequest, number: int) -> None:
        self._one, self._asked, self.number = one, asked, number
        self._ends = StopTexts(asked.stops)
        self._loop = asyncio.get_running_loop()
        self._ticket: Ticket | None = None
        self._told = ""
        self._untaken: deque[str] = deque()  # written by the engine's thread, read by the loop
        self._is_waking = self._is_dropped = False
        self.news = asyncio.Event()

    def ask(self) -> None:
        """Put it to the engine. Raises Refusal."""
        is_heard = self._asked.is_streamed or bool(self._asked.stops)
        request = self._asked.requests[self.number]
        try:
            self._ticket = self._one.service.ask(request, self._hear if is_heard else None)
        except HeredityError as error:
            raise _refusal(error) from None

    def drop(self) -> None:
        """No one waits any more."""
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
        """In the engine's thread: what was said more, as far as it is known to be of the answer.

        At most one wake-up of the loop is pending: a fast engine must not fill the loop's queue.
        """
        told = self._ends.feed(more)
        if self._ends.is_over:
            self._end()
        self._told += told
        if self._is_dropped or not told:
            return
        self._untaken.append(told)
        if not self._is_waking:
            self._is_waking = True
            with suppress(RuntimeError):  # the loop is closed, and with it the caller's line
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_waking = False  # before the text is taken: what comes later wakes the loop again
        self.news.set()

    async def reply(self) -> Reply:
        """The engine's reply. Raises Refusal where it failed."""
        assert self._ticket is not None
        engine_reply = asyncio.wrap_future(self._ticket.reply)
        engine_reply.add_done_callback(_ignore)  # a caller who left retrieves no error
        try:
            reply = await asyncio.shield(engine_reply)
        except HeredityError as error:
            raise _refusal(error) from None
        if reply.stop == "error":
            said = reply.error or "the engine gave no reason"
            code = _THEIRS.get(reply.error_code, "engine_error")
            raise Refusal(500 if code == "engine_error" else 400, said, code)
        return reply

    def said(self, reply: Reply) -> FinishedAnswer:
        """What is sent of it, with the tools that are called in that."""
        ends = StopTexts(self._asked.stops)
        text = ends.feed(reply.text) + ends.rest()
        layer, calls = self._one.application, tuple[ToolCall, ...]()
        if layer is not None and layer.tools:
            calls = layer.calls("", Reply(reply.key, "", text, tool_calls=reply.tool_calls))
        return FinishedAnswer(text, calls, schema.reason(reply, calls, ends.is_over))

    def left(self, text: str) -> str:
        """What a stream has not told of an answer. Raises Refusal where it told another."""
        if not text.startswith(self._told):
            raise Refusal(500, "what was streamed is not the answer", "engine_error")
        return text[len(self._told) :]


class FinishedAnswer(NamedTuple):
    """An answer as it is sent, and why it ended."""

    text: str
    calls: tuple[ToolCall, ...]
    reason: str


class ChatResponse:
    """Answers in the shape of /v1/chat/completions."""

    kind, chunk = "chat.completion", "chat.completion.chunk"

    def __init__(self, one: Served) -> None:
        self._ident = f"chatcmpl-{secrets.token_hex(12)}"
        self._head = {
            "id": self._ident,
            "created": int(time.time()),
            "model": one.model.name,
            "system_fingerprint": one.fingerprint,
        }

    def whole(self, answers: Sequence[AnswerStream], replies: Sequence[Reply]) -> dict[str, Any]:
        """All answers in one body."""
        choices = [self._choice(a.number, a.said(r)) for a, r in zip(answers, replies, strict=True)]
        return {"object": self.kind, **self._head, "choices": choices, "usage": schema.usage(replies)}

    def event(self, *choices: dict[str, Any], **more: Any) -> bytes:
        """A piece of a stream, as it is sent."""
        return sent({"object": self.chunk, **self._head, "choices": list(choices), **more})

    def piece(self, number: int, text: str, is_first: bool) -> dict[str, Any]:
        """What an answer has grown by."""
        delta = {"role": "assistant", "content": text} if is_first else {"content": text}
        return {"index": number, "delta": delta, "finish_reason": None}

    def last(self, number: int, said: FinishedAnswer) -> dict[str, Any]:
        """The end of an answer."""
        calls = [{"index": i, **each} for i, each in enumerate(self._calls(number, said))]
        return {
            "index": number,
            "delta": {"tool_calls": calls} if calls else {},
            "finish_reason": said.reason,
        }

    def _choice(self, number: int, said: FinishedAnswer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
        if said.calls:
            message["tool_calls"] = self._calls(number, said)
        return {"index": number, "message": message, "logprobs": None, "finish_reason": said.reason}

    def _calls(self, number: int, said: FinishedAnswer) -> list[dict[str, Any]]:
        return schema.calls_of(f"{self._ident[-8:]}_{number}", said.calls)


class Text(ChatResponse):
    """Answers in the shape of /v1/completions."""

    kind = chunk = "text_completion"

    def piece(self, number: int, text: str, is_first: bool) -> dict[str, Any]:  # noqa: ARG002
        """What an answer has grown by."""
        return {"index": number, "text": text, "logprobs": None, "finish_reason": None}

    def last(self, number: int, said: FinishedAnswer) -> dict[str, Any]:
        """The end of an answer."""
        return self._choice(number, said) | {"text": ""}

    def _choice(self, number: int, said: FinishedAnswer) -> dict[str, Any]:
        return {"index": number, "text": said.text, "logprobs": None, "finish_reason": said.reason}


async def events(
    shape: ChatResponse, answers: Sequence[AnswerStream], with_usage: bool
) -> AsyncIterator[bytes]:
    """Answers as server-sent events, one after another where there are several."""
    replies = []
    wholes = [asyncio.ensure_future(answer.reply()) for answer in answers]
    try:
        for answer, whole in zip(answers, wholes, strict=True):
            is_first = True
            async for more in _pieces(answer, whole):
                yield shape.event(shape.piece(answer.number, more, is_first))
                is_first = False
            reply = await whole
            said = answer.said(reply)
            if (rest := answer.left(said.text)) or is_first:
                yield shape.event(shape.piece(answer.number, rest, is_first))
            yield shape.event(shape.last(answer.number, said))
            replies.append(reply)
        if with_usage:
            yield shape.event(usage=schema.usage(replies))
        yield b"data: [DONE]\n\n"
    except Refusal as error:  # the status is sent already
        yield sent(error.body)
    finally:
        for answer, whole in zip(answers, wholes, strict=True):
            answer.drop()
            forget(whole)


def forget(future: asyncio.Future[Any]) -> None:
    """Let go of what no one waits for any more, whatever comes of it."""
    future.cancel()
    future.add_done_callback(_ignore)


def _ignore(done: asyncio.Future[Any]) -> None:
    """Mark an error as seen, so that asyncio does not log it."""
    if not done.cancelled():
        done.exception()


async def _pieces(answer: AnswerStream, whole: asyncio.Future[Reply]) -> AsyncIterator[str]:
    """What is told before the reply is there, and what was told by then."""
    whole.add_done_callback(lambda _: answer.news.set())
    while True:
        answer.news.clear()
        is_done = whole.done()  # read before the text: all of an answer's text comes before its reply
        if more := answer.take():
            yield more
        elif is_done:
            return
        else:
            await answer.news.wait()


def sent(what: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + encode(what) + b"\n\n"


def _refusal(error: HeredityError) -> Refusal:
    if isinstance(error, Busy):
        return Refusal(429, str(error), "too_many_requests", error.code)
    status = 503 if isinstance(error, EngineFailure) else 500
    return Refusal(status, str(error), "engine_error", error.code)
