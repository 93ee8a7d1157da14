"""How a model answers. An engine is a model loaded and answering; each file here is one kind.

A file `engines/<name>.py` has one function, `load`, as `Load` below says; which file answers for a model says
`choose`. A local model comes with its files, a remote one with a record whose recipe says where it is.

Promises (every engine): replies may come in any order, each carries its request's key; an answer depends on
its request alone, not on company, order or restart; a failed request comes back as a reply with stop "error".
Leaves to others: what is asked (attacks/, application.py) and whether the answer was bad (judges/).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from heredity.records import Model, Reply, Request

BY_FORMAT = {"safetensors": "torch", "gguf": "torch", "remote": "remote", "scripted": "scripted"}


def choose(model: Model) -> str:
    """The name of the file of the engine that answers for this model.

    It is what the model's recipe recorded as its setting `engine`, else the usual one of the model's format
    (a GGUF's is torch, by way of its dequantized child).
    """
    return str(model.recipe.settings.get("engine") or BY_FORMAT[model.format])


class Load(Protocol):
    """What an engine's file has under the name `load`."""

    def __call__(self, model: Model, folder: Path, tuning: Path | None = None) -> Engine:
        """The model, loaded. Raises Unavailable, saying what to do, where it cannot be on this machine.

        folder: the model's files, verified; empty for a remote model. tuning: a file of the store, there or
        not, for what the engine measured about this model on this machine.
        """


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
        """The full text the model will see for this request, prefill included; of a remote model, whose
        template is not known, a text that is the same exactly for the same request. No clock, no network."""

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Answer a stream of requests, as many at a time as is fast.

        `requests` is pulled as room frees up, always by the thread that iterates over the replies: an engine
        may wait for many answers in threads of its own. None in the stream means "nothing ready now, but
        replies under way will bring more": the engine goes on with what it has and asks again after its next
        reply. What fails for one request (a refused key does not) is a reply with stop "error"; what fails
        for all is raised as EngineFailure and ends the run, which keeps what was answered. Closed early, the
        iterator gives up what is under way.
        """

    def close(self) -> None:
        """Free the memory."""


class Scorer(Protocol):
    """An engine that gives log-probabilities of given continuations."""

    def score(self, request: Request, continuations: Sequence[str]) -> list[list[float]]:
        """Natural-log probability of every token of each continuation, given the rendered request."""
