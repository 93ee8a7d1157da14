"""The answers of a loaded model to a person: passed on while they grow, and stopped on demand.

    listener = AnswerListener(print_part)
    for request, reply in replies(engine, conversation.turn("What is a heat pump?"), listener):
        ...

Promises: a part is heard once, in order, before the reply that holds it. An engine that cannot stream
answers as well, and nothing is heard.
Leaves to others: the messages of the conversation (conversation.py), and the terminal (cli/).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from heredity.core.errors import EngineFailure
from heredity.core.records import Reply, Request
from heredity.engines.protocols import Engine, Streamer

T = TypeVar("T")


class AnswerListener:
    """Hears the answers of one turn while they are generated (protocols.Listener).

    hear: takes each part; None: answers are not wanted in parts. begin: takes each request before it is sent.
    n_heard: characters so far of the reply in progress.
    """

    def __init__(
        self, hear: Callable[[str], None] | None, begin: Callable[[Request], None] | None = None
    ) -> None:
        self._hear, self._begin = hear, begin
        self.n_heard, self.is_stopped = 0, False

    def begin(self, request: Request) -> None:
        """Prepare for the reply to a request."""
        self.n_heard = 0
        if self._begin is not None:
            self._begin(request)

    def stop(self) -> None:
        """End the answer in progress, and any after it in this turn. Any thread may call it."""
        self.is_stopped = True

    def is_heard(self, key: int) -> bool:  # noqa: ARG002
        """Whether answers are wanted in parts."""
        return self._hear is not None

    def hear(self, key: int, more: str) -> None:  # noqa: ARG002
        """Pass the next part on."""
        if self._hear is not None:
            self._hear(more)
            self.n_heard += len(more)

    def is_wanted(self, key: int) -> bool:  # noqa: ARG002
        """False once it was stopped."""
        return not self.is_stopped


def replies(
    engine: Engine, conversation: Generator[Request, Reply, T], listener: AnswerListener | None = None
) -> Generator[tuple[Request, Reply], None, T]:
    """Each request of a conversation with its reply; returns the end of the conversation.

    Raises EngineFailure, with its code, for a reply that is an error. The conversation is closed then.
    """
    try:
        request = next(conversation)
        while True:
            if listener is not None:
                listener.begin(request)
            (reply,) = (
                engine.stream([request], listener)
                if listener is not None and isinstance(engine, Streamer)
                else engine.reply([request])
            )
            if reply.error is not None:
                raise EngineFailure(reply.error)
            yield request, reply
            request = conversation.send(reply)
    except StopIteration as end:
        found: T = end.value
        return found
    finally:
        conversation.close()
