"""A guard model around served answers: in threads, in one batch for all callers, and never in their way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec
import pytest

pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from heredity.application.guarded import BLOCKED, identified
from heredity.application.guards import GuardSpec
from heredity.application.spec import Application
from heredity.core.records import Reply, Request
from heredity.deploy.serve.answers import Served
from heredity.deploy.serve.worker import EngineWorker, shared
from heredity.engines import AddressedRequest, Capabilities, TokenScores
from heredity.lineage.store import scripted
from heredity.redteam.judges.guard import JudgeReaders
from tests.deploy.serve.serving import Saying, listening, saying, until
from tests.support.guard_models import NAME, Batched, LlamaGuard, models

MODEL = "scripted:helpful"


@contextmanager
def guarded(guard: LlamaGuard, *sides: str, says: str = "fine", **how: Any) -> Iterator[str]:
    """The address of a server whose application has this guard, and of another model without it."""
    readers = JudgeReaders(models(guard), shared)
    spec = GuardSpec("model", settings={"model": NAME, "sides": sides or ("user", "answer")})
    layer = identified(Application("desk", "You help.", guards=(spec,)), readers)
    one = Served(scripted(MODEL).record, EngineWorker(Saying(says)), layer)
    other = saying("free")._replace(model=scripted("scripted:careful").record)
    try:
        with listening(one, other, readers=readers, metrics=True, **how) as address:
            yield address
    finally:
        guard.goes_on.set()
        readers.close()


def ask(address: str, text: str = "hello", model: str = MODEL, key: str = "", **how: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **how}
    found = httpx.post(f"{address}/v1/chat/completions", json=body, headers={"x-api-key": key}, timeout=60)
    return msgspec.json.decode(found.content, type=dict[str, Any])


def text_of(found: dict[str, Any]) -> str:
    return str(found["choices"][0]["message"]["content"])


def test_a_question_and_an_answer_are_stopped_and_count_no_tokens_of_what_is_withheld() -> None:
    with guarded(Batched()) as address:
        assert text_of(ask(address, "Where is the plutonium?")) == BLOCKED
        assert text_of(ask(address)) == "fine"
    with guarded(Batched(), says="the plutonium is here " * 20) as address:
        found = ask(address)
        assert text_of(found) == BLOCKED and found["choices"][0]["finish_reason"] == "content_filter"
        assert found["usage"]["completion_tokens"] == 0
        metrics = httpx.get(f"{address}/metrics", timeout=60).text
    assert 'heredity_guarded_answers_total{guard="model"} 1' in metrics


def test_a_guard_that_is_slow_delays_no_other_caller() -> None:
    guard = Batched()
    with guarded(guard) as address:
        guard.goes_on.clear()
        waiting = [threading.Thread(target=ask, args=(address, f"question {n}")) for n in range(3)]
        for each in waiting:
            each.start()
        time.sleep(0.3)
        assert text_of(ask(address, model="scripted:careful")) == "free"
        assert httpx.get(f"{address}/health", timeout=60).status_code == 200
        assert all(each.is_alive() for each in waiting)
        guard.goes_on.set()
        for each in waiting:
            each.join(60)
        assert text_of(ask(address, "question 0")) == "fine"


class Failing(Batched):
    """A guard whose engine fails after its first text."""

    def one(self, request: Any) -> Any:
        if self.asked:
            raise RuntimeError("out of memory")
        return super().one(request)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_guard_that_fails_blocks_and_is_counted(is_streamed: bool) -> None:
    with guarded(Failing()) as address:
        if is_streamed:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": True}
            found = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).text
            assert "content_filter" in found and "fine" not in found
        else:
            assert text_of(ask(address)) == BLOCKED
        assert text_of(ask(address, model="scripted:careful")) == "free"
        assert 'guarded_answers_total{guard="model"} 1' in httpx.get(f"{address}/metrics", timeout=60).text


class Wide(Batched):
    """Waits until three texts are in flight."""

    width = 3

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return Capabilities(is_base=False, streamer=self)  # type: ignore[arg-type]

    def stream(self, requests: Any, _: Any) -> Any:
        some: list[Any] = []
        for request in requests:
            some += [] if request is None else [request]
            if len(some) == (3 if self.asked else 1):
                self.batches.append(len(some))
                yield from map(self.one, some)
                some = []
            elif request is None:
                time.sleep(0.01)


def test_texts_of_several_callers_are_read_in_one_batch() -> None:
    guard = Wide()
    with guarded(guard, "user") as address:
        asking = [threading.Thread(target=ask, args=(address, f"question {n}")) for n in range(3)]
        for each in asking:
            each.start()
        until(lambda: not any(each.is_alive() for each in asking))
    assert guard.batches == [1, 3]


class Noting(Batched):
    """Notes who asks."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: list[str] = []

    def one(self, request: Request) -> Reply:
        self.callers.append(request.caller if isinstance(request, AddressedRequest) else "")
        return super().one(request)


def test_a_guard_reads_the_texts_of_each_key_as_those_of_one_caller() -> None:
    guard = Noting()
    with guarded(guard, "user", keys=("a", "b")) as address:
        for text, key in enumerate("aab"):
            ask(address, f"question {text}", key=key)
    *_, one, again, other = guard.callers
    assert one == again != other and one and other


class Scored(Batched):
    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return Capabilities(is_base=False, scorer=self)  # type: ignore[arg-type]

    def score(self, request: Any, continuations: Any) -> list[TokenScores]:
        return [TokenScores([-1.0]) for _ in continuations]


def test_a_shared_engine_has_the_capabilities_of_its_own() -> None:
    plain, scorer = shared(Batched()), shared(Scored())
    try:
        assert (plain.capabilities.is_base, plain.capabilities.scorer) == (False, None)
        assert scorer.capabilities.scorer is scorer
        assert scorer.score(Request(0, ()), ["a", "b"]) == [([-1.0], False), ([-1.0], False)]
    finally:
        plain.close()
        scorer.close()
