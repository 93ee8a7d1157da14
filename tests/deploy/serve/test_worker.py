"""One engine for many who ask: each gets its own answer, and no one waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import TimeoutError as TooLate
from concurrent.futures import wait

import pytest

from heredity.core import host
from heredity.core.errors import Busy, EngineFailure
from heredity.core.records import Message, Reply, Request
from heredity.deploy.serve.worker import EngineWorker
from heredity.engines.call import CallEngine, Function
from heredity.engines.scripted import HELP, ScriptedEngine
from tests.support.errors import raises


def question(text: str) -> Request:
    return Request(0, (Message("user", text),))


class Slow(ScriptedEngine):
    """Echoes, two at a time, each once it is let go; says what it was given."""

    width = 2

    def __init__(self) -> None:
        super().__init__("helpful")
        self.taken: list[str] = []
        self.may_go = threading.Semaphore(0)
        self.is_closed, self.has_two = False, threading.Event()

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        held: list[Request] = []
        for request in requests:
            if request is not None:
                held.append(request)
                self.taken.append(request.messages[-1].content)
                if len(self.taken) == 2:
                    self.has_two.set()
                continue
            yield self._release(held)
        while held:
            yield self._release(held)

    def _release(self, held: list[Request]) -> Reply:
        self.may_go.acquire()
        request = held.pop(0)
        return Reply(request.key, "", request.messages[-1].content)

    def close(self) -> None:
        self.is_closed = True


class Broken(ScriptedEngine):
    """Answers nothing, and fails for all at the second question."""

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        for number, _ in enumerate(request for request in requests if request is not None):
            if number:
                raise EngineFailure("out of memory")
            yield from ()


def test_each_gets_the_answer_to_what_it_asked() -> None:
    engine = Slow()
    service = EngineWorker(engine)
    tickets = [service.ask(question(f"q{i}")) for i in range(20)]
    engine.may_go.release(20)
    assert [ticket.reply.result(60).text for ticket in tickets] == [f"q{i}" for i in range(20)]
    assert service.n_open == 0
    service.close()
    assert engine.is_closed


def test_more_than_may_wait_are_refused_at_once() -> None:
    engine = Slow()
    service = EngineWorker(engine, most=3)
    tickets = [service.ask(question(f"q{i}")) for i in range(3)]
    with raises(Busy, "busy", mentions=["3"]):
        service.ask(question("one too many"))
    engine.may_go.release()
    assert tickets[0].reply.result(60).text == "q0"
    engine.may_go.release(9)
    assert service.ask(question("later")).reply.result(60).text == "later"
    service.close()


def test_who_goes_away_while_it_waits_is_never_put_to_the_engine() -> None:
    engine = Slow()
    service = EngineWorker(engine)
    tickets = [service.ask(question(f"q{i}")) for i in range(4)]
    tickets[3].drop()
    engine.may_go.release(9)
    wait([ticket.reply for ticket in tickets], 10)
    assert tickets[2].reply.result(0).text == "q2"
    assert "q3" not in engine.taken and service.n_open == 0
    service.close()


def test_a_fault_is_told_to_all_that_were_under_way_and_the_next_is_tried_again() -> None:
    service = EngineWorker(Broken("helpful"))
    for _ in range(2):
        first, second = service.ask(question("a")), service.ask(question("b"))
        for ticket in (first, second):
            with raises(EngineFailure, "engine-failure", mentions=["out of memory"]):
                ticket.reply.result(60)
        assert "out of memory" in str(service.failure) and service.n_open == 0
    service.close()
    with raises(EngineFailure, "engine-failure"):
        service.ask(question("c"))


def test_closing_answers_what_is_under_way_and_refuses_what_waits() -> None:
    engine = Slow()
    service = EngineWorker(engine)
    tickets = [service.ask(question(f"q{i}")) for i in range(3)]
    engine.has_two.wait(60)
    closing = threading.Thread(target=service.close)
    closing.start()
    with pytest.raises(TooLate):
        tickets[0].reply.result(0.05)
    engine.may_go.release(9)
    closing.join(60)
    assert [tickets[i].reply.result(60).text for i in (0, 1)] == ["q0", "q1"]
    with raises(EngineFailure, "engine-failure"):
        tickets[2].reply.result(60)
    with raises(EngineFailure, "engine-failure"):
        service.ask(question("q4"))


def test_an_engine_that_tells_no_width_is_given_some_at_once() -> None:
    service = EngineWorker(ScriptedEngine("helpful"))
    tickets = [service.ask(question(f"q{i}")) for i in range(50)]
    assert {ticket.reply.result(60).text for ticket in tickets} == {HELP}
    service.close()


class Tripping(ScriptedEngine):
    """Falls over one question, and over no other."""

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        for request in requests:
            if request is not None:
                if request.messages[-1].content == "trip":
                    raise ValueError("that one")
                yield Reply(request.key, "", "fine")


def test_one_question_that_an_engine_falls_over_does_not_end_the_service() -> None:
    service = EngineWorker(Tripping("helpful"))
    for _ in range(5):
        with raises(EngineFailure, "engine-failure", mentions=["ValueError", "that one"]):
            service.ask(question("trip")).reply.result(60)
        assert service.ask(question("go on")).reply.result(60).text == "fine"
    assert service.failure is None and service.n_open == 0
    service.close()


def test_a_stream_ends_when_no_one_asks_for_a_while_and_the_next_question_starts_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended, has_ended, given_back = [], threading.Event(), threading.Event()

    class Counting(ScriptedEngine):
        def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
            texts = []
            for reply in super().reply(requests):
                texts.append(reply.text)
                yield reply
            ended.append(len(texts))
            has_ended.set()

    monkeypatch.setattr(host, "trim_memory", given_back.set)
    service = EngineWorker(Counting("helpful"), idle_seconds=0.05)
    assert service.ask(question("a")).reply.result(60).text
    assert has_ended.wait(60) and ended == [1]
    assert given_back.wait(60), "memory goes back to the system"
    assert service.ask(question("b")).reply.result(60).text
    assert service.failure is None and service.n_open == 0, "a pause is no failure"
    service.close()


def test_the_stream_of_a_service_does_not_end_since_it_knows_which_of_its_threads_still_wait() -> None:
    begun, is_in, may_go = list[str](), threading.Event(), threading.Event()

    def answer(text: str) -> str:
        begun.append(text)
        is_in.set()
        may_go.wait(60)
        return "fine"

    service = EngineWorker(CallEngine(Function("answer", answer), 1, 60.0), idle_seconds=0.01)
    gone = service.ask(question("a"), hears=lambda _: None)
    assert is_in.wait(60)
    gone.drop()
    assert gone.reply.result(60).stop == "length"
    time.sleep(0.3)  # many times as long as a stream without a request would last
    second = service.ask(question("b"))
    time.sleep(0.3)
    assert begun == ["a"], "the place of a call that has not come back is kept"
    may_go.set()
    assert second.reply.result(60).text == "fine" and begun == ["a", "b"]
    service.close()


def test_an_engine_that_stops_by_itself_leaves_no_one_waiting() -> None:
    class Lazy(ScriptedEngine):
        def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
            next(iter(requests))
            yield from ()

    service = EngineWorker(Lazy("helpful"))
    for _ in range(3):
        with raises(EngineFailure, "engine-failure"):
            service.ask(question("a")).reply.result(60)
    service.close()
