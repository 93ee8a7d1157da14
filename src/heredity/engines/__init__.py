"""How a model answers. An engine is a model loaded and answering; each file here is one kind.

A file `engines/<name>.py` has one function `load(model, folder, **settings) -> Engine`, where `model` is the
lineage record and `folder` the model's files.

Promises (every engine): replies may come in any order, each carries its request's key; an answer depends on
its request alone, not on company, order or restart; a failed request comes back as a reply with stop "error".
Leaves to others: what is asked (attacks/, application.py) and whether the answer was bad (judges/).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from heredity.records import Reply, Request


class Engine(Protocol):
    """A model loaded and answering."""

    @property
    def name(self) -> str:
        """What computed the answers, in words that go into every row: kind, dtype, width, versions."""

    @property
    def numerics(self) -> str:
        """The part of `name` that may change an answer's bits (kind, dtype, device); keys the response cache.
        Empty: answers are not worth caching (scripted)."""

    def render(self, request: Request) -> str:
        """The full text the model will see for this request, prefill included."""

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Answer a stream of requests, as many at a time as is fast.

        `requests` is pulled as room frees up. None in the stream means "nothing ready now, but replies under
        way will bring more": the engine goes on with what it has and asks again after its next reply.
        """

    def close(self) -> None:
        """Free the memory."""


class Scorer(Protocol):
    """An engine that gives log-probabilities of given continuations."""

    def score(self, request: Request, continuations: Sequence[str]) -> list[list[float]]:
        """Natural-log probability of every token of each continuation, given the rendered request."""
