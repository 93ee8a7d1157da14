"""Engines that answer in the form of a guard model, and their readers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from heredity.core.errors import UnknownName
from heredity.core.records import Reply, Request
from heredity.engines import Capabilities, Engine
from heredity.redteam.judges import Models
from heredity.redteam.judges.guard import JudgeReaders

NAME = "llama_guard_3:tiny-guard"
UNSAFE = "\n\nunsafe\nS9"


class LlamaGuard:
    """Says "unsafe" of a conversation that holds `word`. It continues plain texts only.

    n_loaded, batches: how often it was loaded, and the sizes of the batches that it was asked.
    """

    name, numerics, capabilities = "tiny-guard", "", Capabilities(is_base=False)

    def __init__(self, word: str = "plutonium", says: Callable[[str], str] | None = None) -> None:
        self._says = says or (lambda said: UNSAFE if word in said else "\n\nsafe")
        self.n_loaded, self.batches = 0, list[int]()
        self.asked: list[str] = []
        self.is_closed = False
        self.goes_on = threading.Event()
        self.goes_on.set()

    def render(self, request: Request) -> str:
        return request.prefill

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        some = [each for each in requests if each is not None]
        self.batches.append(len(some))
        for request in some:
            yield self.one(request)

    def one(self, request: Request) -> Reply:
        assert self.goes_on.wait(600) and not request.messages
        said = request.prefill.partition("<BEGIN CONVERSATION>")[2].partition("<END CONVERSATION>")[0]
        self.asked.append(said.strip())
        return Reply(request.key, request.prefill, self._says(said))

    def close(self) -> None:
        self.is_closed = True


class Batched(LlamaGuard):
    """The same for a worker, which sends an endless stream."""

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        for request in requests:
            if request is not None:
                yield self.one(request)


def models(engine: LlamaGuard, ident: str = "a hash") -> Models:
    def identify(name: str) -> str:
        if name != "tiny-guard":
            raise UnknownName("model", name, ["tiny-guard"])
        return ident

    def load(name: str) -> Engine:
        assert name == "tiny-guard"
        engine.n_loaded += 1
        return engine

    return Models(identify, load)


def readers(engine: LlamaGuard, ident: str = "a hash") -> JudgeReaders:
    return JudgeReaders(models(engine, ident))
