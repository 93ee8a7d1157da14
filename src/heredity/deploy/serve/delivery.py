"""Deliver answers to a caller who may leave: a body, or a stream of events.

Promises: a caller who disconnects frees the places of all answers of the request.
Leaves to others: the answers and their events (answers.py), and their form.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.requests import ClientDisconnect
from starlette.requests import Request as Call
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from heredity.core.records import Reply
from heredity.deploy.serve import answers
from heredity.deploy.serve.answers import AnswerFormat, ServedAnswer
from heredity.deploy.serve.limits import RequestGate


class EventStream(StreamingResponse):
    """Server-sent events, cancelled when the caller disconnects, a few callers per pass of the event
    loop."""

    def __init__(
        self,
        shape: AnswerFormat,
        sent: Sequence[ServedAnswer],
        headers: dict[str, str],
        gate: RequestGate,
    ) -> None:
        super().__init__(answers.events(shape, sent), headers=headers, media_type="text/event-stream")
        self._answers, self._gate = sent, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send all events, or stop when the caller disconnects."""
        sending = asyncio.ensure_future(self.stream_response(send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                drop(self._answers)
                async with self._gate:
                    sending.cancel()
        finally:
            drop(self._answers)  # a stream that never began ends none
            for each in (sending, gone):
                answers.forget(each)


def drop(dropped: Sequence[ServedAnswer]) -> None:
    """End answers: their caller no longer waits."""
    for answer in dropped:
        answer.drop()


async def unless_gone(call: Call, asked: Sequence[ServedAnswer]) -> list[Reply]:
    """Return the replies. Raises ClientDisconnect if the caller disconnects first."""
    gone = asyncio.ensure_future(_gone(call.receive))
    replies = [asyncio.ensure_future(answer.reply()) for answer in asked]
    try:
        for reply in replies:
            both: set[asyncio.Future[None] | asyncio.Future[Reply]] = {gone, reply}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not reply.done():
                raise ClientDisconnect
        return [reply.result() for reply in replies]
    finally:
        for each in (gone, *replies):
            answers.forget(each)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def refuse_gone(call: Call) -> None:
    """Raise ClientDisconnect if the caller disconnected while the request waited for its turn."""
    if await call.is_disconnected():
        raise ClientDisconnect
