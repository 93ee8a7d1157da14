"""The API over a real socket, asked by OpenAI's own client, by heredity's remote engine, and by hand."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

openai = pytest.importorskip("openai")
uvicorn = pytest.importorskip("uvicorn")

from heredity.application.spec import Application
from heredity.core.records import Decoding, Message, Reply, Request, Tool
from heredity.deploy.serve import MAX_BODY, app
from heredity.deploy.serve.answers import Served
from heredity.deploy.serve.worker import EngineWorker
from heredity.engines.scripted import HELP, ScriptedEngine
from heredity.lineage.store import Store, engine_loader, scripted
from heredity.lineage.types import Grown
from tests.deploy.serve.serving import HELLO, client, listening, named, until
from tests.support.errors import raises

DESK = Application("desk", "You help.", tools=(Tool("issue_refund", "Refunds."),), max_turns=2)
JSON = {"content-type": "application/json"}


def held(engine: Any, most: int = 256) -> Served:
    return Served(scripted("scripted:helpful").record, EngineWorker(engine, most))


def text_of(chunks: Iterable[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.fixture(scope="module")
def desk() -> Iterator[str]:
    with listening(named("helpful", DESK), named("leaky", DESK)) as address:
        yield address


@pytest.fixture(scope="module")
def alone() -> Iterator[str]:
    with listening(named("helpful"), named("flaky")) as address:
        yield address


def test_an_answer_comes_whole_or_as_a_stream(desk: str) -> None:
    ask = client(desk).chat.completions.create
    whole = ask(model="scripted:helpful", messages=HELLO)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (HELP, "stop")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens > 0
    with_usage = {"include_usage": True}
    chunks = list(ask(model="scripted:helpful", messages=HELLO, stream=True, stream_options=with_usage))
    assert text_of(chunks) == HELP
    assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == "stop"
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_tool_call_is_handed_out_and_its_result_taken(desk: str, is_streamed: bool) -> None:
    ask = client(desk).chat.completions.create
    said: list[Any] = [{"role": "user", "content": "use issue_refund"}]
    if is_streamed:
        last = list(ask(model="scripted:leaky", messages=said, stream=True))[-1].choices[0]
        calls, content = last.delta.tool_calls, "Sure."
    else:
        last = ask(model="scripted:leaky", messages=said).choices[0]
        calls, content = last.message.tool_calls, last.message.content
    (call,) = calls
    assert (last.finish_reason, call.function.name) == ("tool_calls", "issue_refund")
    called = {"id": call.id, "type": "function", "function": {"name": "issue_refund", "arguments": "{}"}}
    said += [
        {"role": "assistant", "content": content, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]
    assert ask(model="scripted:leaky", messages=said).choices[0].finish_reason != "tool_calls"


def test_what_is_served_says_where_it_came_from(desk: str) -> None:
    first, second = client(desk).models.list().data
    assert first.heredity["application"] == {"name": "desk", "digest": DESK.digest}
    assert first.heredity["id"] == scripted("scripted:helpful").record.id and first.id != second.id
    assert httpx.get(f"{desk}/health", timeout=60).json()["failed"] == {}


SHOP = Application("shop", "You sell ZEBRA-1234.")


def test_a_model_is_served_in_several_applications_by_name() -> None:
    engine = EngineWorker(ScriptedEngine("leaky"))
    model = scripted("scripted:leaky").record
    with listening(Served(model, engine, DESK), Served(model, engine, SHOP)) as address:
        asking = client(address)
        names = ["desk@scripted:leaky", "shop@scripted:leaky"]
        assert [each.id for each in asking.models.list()] == names
        digests = [asking.models.retrieve(name).heredity["application"]["digest"] for name in names]
        assert digests == [DESK.digest, SHOP.digest]
        for name, is_shop in zip((*names, f"shop@{model.id}"), (False, True, True), strict=True):
            found = asking.chat.completions.create(model=name, messages=HELLO)
            assert ("ZEBRA-1234" in found.choices[0].message.content) == is_shop
            assert found.model == names[is_shop]
        for plain in ("scripted:leaky", model.id):
            with raises(openai.NotFoundError, "model_not_found", mentions=names):
                asking.chat.completions.create(model=plain, messages=HELLO)


def test_a_model_in_one_application_has_the_long_name_too(desk: str) -> None:
    asking = client(desk)
    assert asking.models.retrieve("desk@scripted:leaky").id == "scripted:leaky"
    with raises(openai.NotFoundError, "model_not_found", mentions=["scripted:leaky"]):
        asking.models.retrieve("shop@scripted:leaky")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_is_ignored_is_named_in_a_header(is_streamed: bool) -> None:
    """garak sends a temperature with each request, and counts a refused one as no attempt."""
    with listening(named("helpful", DESK, ignores=True)) as address:
        ask = client(address).chat.completions.with_raw_response.create
        held = {"temperature": 0.7, "frequency_penalty": 0.5, "stream": is_streamed}
        found = ask(model="scripted:helpful", messages=HELLO, **held)
        assert found.headers[app.IGNORED] == "temperature,frequency_penalty"
        answer = found.parse()
        assert (text_of(answer) if is_streamed else answer.choices[0].message.content) == HELP
        assert app.IGNORED not in ask(model="scripted:helpful", messages=HELLO).headers


@pytest.mark.parametrize("stop", ["help", ["nowhere", "help"]])
def test_a_text_of_the_callers_cuts_an_answer(alone: str, stop: Any) -> None:
    ask, cut = client(alone).chat.completions.create, HELP.partition("help")[0]
    whole = ask(model="scripted:helpful", messages=HELLO, stop=stop).choices[0]
    assert (whole.message.content, whole.finish_reason) == (cut, "stop")
    chunks = list(ask(model="scripted:helpful", messages=HELLO, stream=True, stop=stop))
    assert (text_of(chunks), chunks[-1].choices[0].finish_reason) == (cut, "stop")


def test_several_answers_are_numbered(alone: str) -> None:
    found = client(alone).chat.completions.create(model="scripted:helpful", messages=HELLO, n=3)
    assert [choice.index for choice in found.choices] == [0, 1, 2]


def test_mistakes_have_their_status_and_say_what_to_do(desk: str) -> None:
    ask = client(desk).chat.completions.create
    with raises(openai.NotFoundError, "model_not_found", mentions=["scripted:helpful"]):
        ask(model="scripted:helpfull", messages=HELLO)
    with raises(openai.BadRequestError, "invalid_request", mentions=[2]) as refused:
        ask(model="scripted:helpful", messages=3 * HELLO)
    assert refused.value.body["reason"] == "bad-usage"
    with raises(openai.BadRequestError, "not_supported", mentions=["scripted:helpful"]):
        client(desk).completions.create(model="scripted:helpful", prompt="x")
    assert httpx.get(f"{desk}/v2/else", timeout=60).json()["error"]["code"] == "not_found"
    other = httpx.get(f"{desk}/v1/chat/completions", timeout=60)
    assert (other.status_code, other.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_that_fails_is_an_error_and_no_answer(alone: str, is_streamed: bool) -> None:
    def ask(number: int) -> None:
        said = [{"role": "user", "content": f"hello {number}"}]
        made = client(alone).chat.completions.create(
            model="scripted:flaky", messages=said, stream=is_streamed
        )
        if is_streamed:
            list(made)

    with raises(openai.APIError, "engine_error", mentions=["scripted failure"]):
        for number in range(100):
            ask(number)


def test_no_page_of_a_browser_can_make_it_answer(alone: str) -> None:
    body = json.dumps({"model": "scripted:helpful", "messages": HELLO})
    post = f"{alone}/v1/chat/completions"
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert httpx.post(post, content=body, headers={"content-type": kind}, timeout=60).status_code == 415
    assert (
        httpx.post(post, content=body, headers=JSON | {"host": "evil.example"}, timeout=60).status_code == 400
    )
    assert httpx.options(post, headers={"origin": "http://evil.example"}).status_code == 405
    answered = httpx.post(post, content=body, headers=JSON, timeout=60)
    assert answered.status_code == 200 and "access-control-allow-origin" not in answered.headers


def test_a_body_has_its_bounds(alone: str) -> None:
    said = [{"role": "user", "content": "x" * ((MAX_BODY << 20) + 1)}]
    body = json.dumps({"model": "scripted:helpful", "messages": said})
    found = httpx.post(f"{alone}/v1/chat/completions", content=body, headers=JSON, timeout=60)
    assert (found.status_code, found.json()["error"]["code"]) == (413, "too_large")


def test_a_body_that_never_ends_is_refused_while_others_are_answered() -> None:
    head = "POST {} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{}\r\n\r\n"
    with listening(named("helpful"), body_seconds=1.0) as address:
        place = address.removeprefix("http://")
        slow, begun = [], {"content-length: 100": b"{", "transfer-encoding: chunked": b"1\r\n{\r\n"}
        for path in ("/v1/chat/completions", "/v1/completions"):
            for length, first in begun.items():
                slow.append(opened(place))
                slow[-1].sendall(head.format(path, length).encode() + first)
        assert client(address).chat.completions.create(model="scripted:helpful", messages=HELLO).choices
        for line in slow:
            with line:
                answered = everything(line)
            assert b" 408 " in answered and b'"too_slow"' in answered and b"connection: close" in answered


def test_headers_that_never_end_are_refused_while_others_are_answered() -> None:
    with listening(named("helpful"), header_seconds=1.0) as address:
        place = address.removeprefix("http://")
        with opened(place) as silent, opened(place) as slow, opened(place) as later:
            later.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            for _ in range(8):
                for line in (slow, later):
                    with suppress(OSError):  # the server closes
                        line.sendall(b"GET /health HTTP/1.1\r\nx: "[:8])
                assert httpx.get(f"{address}/health", timeout=60).status_code == 200
                time.sleep(0.2)
            assert everything(silent) == b""
            assert b" 408 " in everything(slow)
            assert b" 200 " in (answered := everything(later)) and b" 408 " in answered


def test_a_chunked_body_without_end_is_refused_and_its_connection_closed() -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    head += b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with listening(named("helpful")) as address, opened(address.removeprefix("http://")) as line:
        n_sent, reader = 0, ThreadPoolExecutor(1)
        found = reader.submit(everything, line)
        with suppress(OSError):  # the server closes
            line.sendall(head)
            while n_sent < 20 * (MAX_BODY << 20) and not found.done():
                line.sendall(piece)
                n_sent += 0x10000
        assert b" 413 " in found.result(60) and n_sent < 20 * (MAX_BODY << 20)
        reader.shutdown()
        assert httpx.get(f"{address}/health", timeout=60).status_code == 200


def opened(place: str) -> socket.socket:
    host, _, port = place.partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def everything(line: socket.socket) -> bytes:
    """What comes until the server closes."""
    found = bytearray()
    with suppress(ConnectionResetError):
        while more := line.recv(4096):
            found += more
    return bytes(found)


def test_a_key_is_asked_for() -> None:
    with listening(named("helpful"), keys=["s3cret"]) as address:
        for wrong in ("none", "s3cre", "s3crets"):
            with pytest.raises(openai.AuthenticationError):
                client(address, wrong).models.list()
        assert client(address, "s3cret").models.list().data
        assert httpx.get(f"{address}/health", timeout=60).status_code == 200


class Held(ScriptedEngine):
    """Tells a word at a time, until it is let go or no one listens; one answer at a time."""

    width = 1

    def __init__(self) -> None:
        super().__init__("helpful")
        self.may_go = threading.Event()

    def stream(self, requests: Iterable[Request | None], listener: Any) -> Iterator[Reply]:
        for request in requests:
            if request is None:
                continue
            said = []
            while not self.may_go.wait(0.01) and listener.is_wanted(request.key):
                said.append("word ")
                if listener.is_heard(request.key):
                    listener.hear(request.key, "word ")
            yield Reply(request.key, "", "".join(said))


def test_a_stream_is_read_while_it_is_said_and_who_leaves_frees_the_place() -> None:
    engine = Held()
    with listening(held(engine)) as address:
        ask = client(address).chat.completions.create
        told = ask(model="scripted:helpful", messages=HELLO, stream=True)
        # A part has several words where the reader is slower than the model.
        assert text_of([next(told) for _ in range(3)]).startswith("word word word ")
        told.close()
        with pytest.raises(openai.APITimeoutError):
            ask(model="scripted:helpful", messages=HELLO, timeout=0.3)
        # Were one of the two still under way, nothing would end it: the engine is let go for the third alone.
        until(lambda: not httpx.get(f"{address}/health", timeout=60).json()["open"]["scripted:helpful"])
        engine.may_go.set()
        assert ask(model="scripted:helpful", messages=HELLO).choices


@pytest.mark.parametrize("is_streamed", [False, True])
def test_who_closes_only_the_sending_side_has_left(is_streamed: bool) -> None:
    """Over TCP it looks like a caller who has closed both, and an answer to nobody would hold a place."""
    body = json.dumps({"model": "scripted:helpful", "messages": HELLO, "stream": is_streamed}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    with listening(held(Held())) as address, opened(address.removeprefix("http://")) as line:
        line.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        until(lambda: httpx.get(f"{address}/health", timeout=60).json()["open"]["scripted:helpful"] == 1)
        line.shutdown(socket.SHUT_WR)
        assert b"[DONE]" not in everything(line)
        # Were it still under way, nothing would end it.
        until(lambda: not httpx.get(f"{address}/health", timeout=60).json()["open"]["scripted:helpful"])


class Spinning(ScriptedEngine):
    """Holds the interpreter lock between words, as an engine whose work is in Python does."""

    width = 8

    def stream(self, requests: Iterable[Request | None], listener: Any) -> Iterator[Reply]:
        live: dict[int, int] = {}
        for request in requests:
            if request is not None:
                live[request.key] = 0
                if len(live) < self.width:
                    continue
            ended: list[int] = []
            while live and not ended:
                spin(0.01)
                for key in live:
                    listener.hear(key, "word ")
                    live[key] += 1
                ended = [key for key, n in live.items() if n >= 200 or not listener.is_wanted(key)]
            for key in ended[:1]:
                yield Reply(key, "", "word " * live.pop(key))


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(100))


async def leave(port: int, number: int, gate: asyncio.Semaphore) -> None:
    """Ask for a stream, and go away before it ends."""
    body = json.dumps({"model": "scripted:helpful", "messages": HELLO, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
    async with gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05 * (number % 8)):
                await reader.read(4096)
        writer.transport.abort()


def storm(n: int, caplog: pytest.LogCaptureFixture) -> list[float]:
    """How long /health took, each time, while n streams were asked for and left."""
    seconds, is_over = list[float](), threading.Event()

    def watch(address: str) -> None:
        while not is_over.wait(0.02):
            started = time.monotonic()
            assert httpx.get(f"{address}/health", timeout=120).status_code == 200
            seconds.append(time.monotonic() - started)

    with listening(held(Spinning("helpful"), most=4096)) as address, ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch, address)
        # In a process of their own: callers do not hold the server's interpreter lock.
        code = (
            f"from tests.deploy.serve.test_app import all_leave; all_leave({address.rpartition(':')[2]}, {n})"
        )
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True, timeout=120)
        until(lambda: not httpx.get(f"{address}/health", timeout=60).json()["open"]["scripted:helpful"])
        is_over.set()
        watching.result(120)
    gc.collect()  # where asyncio tells of errors that no one took
    assert [each.getMessage() for each in caplog.records if each.levelname in ("ERROR", "CRITICAL")] == []
    return seconds


def all_leave(port: int, n: int) -> None:
    """Ask for n streams, at most 400 at once, and leave all of them."""

    async def run() -> None:
        gate = asyncio.Semaphore(400)
        await asyncio.gather(*(leave(port, number, gate) for number in range(n)))

    asyncio.run(run())


def test_health_is_told_while_many_streams_are_left_and_nothing_is_logged_of_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert storm(300, caplog)


@pytest.mark.proof
def test_a_storm_of_three_thousand_left_streams_stalls_no_one(caplog: pytest.LogCaptureFixture) -> None:
    found = sorted(storm(3000, caplog))
    assert found[len(found) // 2] < 0.5 and found[-1] < 5  # the first burst, on a busy machine


def test_a_caller_who_waits_and_leaves_frees_its_place_at_once() -> None:
    engine = Held()
    with listening(held(engine, most=2)) as address:
        ask = client(address).chat.completions.create
        told = ask(model="scripted:helpful", messages=HELLO, stream=True)
        next(told)
        for _ in range(3):
            with pytest.raises(openai.APITimeoutError):
                ask(model="scripted:helpful", messages=HELLO, timeout=0.3)
            until(lambda: httpx.get(f"{address}/health", timeout=60).json()["open"]["scripted:helpful"] == 1)
        assert next(told)
        engine.may_go.set()
        told.close()


def test_more_than_may_wait_are_told_to_come_again() -> None:
    engine = Held()

    def post(address: str) -> int:
        body = {"model": "scripted:helpful", "messages": HELLO}
        return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=20).status_code

    with listening(held(engine, most=2)) as address, ThreadPoolExecutor(8) as pool:
        found = [pool.submit(post, address) for _ in range(6)]
        until(lambda: sum(each.done() for each in found) == 4)
        engine.may_go.set()
        assert sorted(each.result() for each in found) == [200, 200, 429, 429, 429, 429]


def test_more_answers_than_may_be_open_are_never_to_be_had() -> None:
    refused = raises(openai.BadRequestError, "invalid_request", mentions=[2])
    with listening(held(ScriptedEngine("helpful"), most=2)) as address, refused as caught:
        client(address).chat.completions.create(model="scripted:helpful", messages=HELLO, n=3)
    assert caught.value.body["reason"] == "too-many-answers"


def test_what_ends_the_engine_is_told_to_all() -> None:
    class Broken(ScriptedEngine):
        def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
            next(iter(requests))
            raise MemoryError("no room")

    with listening(held(Broken("helpful"))) as address:
        for _ in range(6):
            with raises(openai.InternalServerError, "engine_error", mentions=["no room"]):
                client(address).chat.completions.create(model="scripted:helpful", messages=HELLO)
        assert httpx.get(f"{address}/health", timeout=60).status_code == 503


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    """A tiny random model in a store."""
    pytest.importorskip("torch")
    from tests.support.tiny_models import make_model

    folder = make_model(tmp_path_factory.mktemp("tiny") / "tiny", "llama")
    return Store(tmp_path_factory.mktemp("store")).pull(str(folder))


def test_served_answers_are_the_engines_own_in_any_company(tiny: Grown) -> None:
    from heredity.engines.torch.engine import open_folder

    short = Decoding(max_tokens=48)
    layer = Application("desk", "the quick brown fox", max_turns=2, decoding=short)
    texts = [f"the fox {'and the dog ' * (i % 5)} {i}" for i in range(24)]
    engine = open_folder(tiny.folder, dtype="float32")
    asked = [layer.request([*layer.messages(), Message("user", text)]) for text in texts]
    own = [next(iter(engine.reply([request]))).text for request in asked]

    def ask(address: str, number: int) -> str:
        said, is_streamed = [{"role": "user", "content": texts[number]}], number % 2 == 0
        made = client(address).chat.completions.create(
            model=tiny.record.name, messages=said, stream=is_streamed
        )
        return text_of(made) if is_streamed else str(made.choices[0].message.content)

    with (
        listening(Served(tiny.record, EngineWorker(engine), layer)) as address,
        ThreadPoolExecutor(12) as pool,
    ):
        assert list(pool.map(lambda i: ask(address, i), range(24))) == own


def test_a_model_alone_goes_on_with_a_text_and_is_a_target_of_a_study(
    tiny: Grown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heredity.engines.torch.engine import open_folder

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    engine = open_folder(tiny.folder, dtype="float32")
    short = Decoding(max_tokens=48)
    asked = Request(0, (Message("user", "the quick fox"),), short)
    own, on = engine.reply([asked, Request(1, (), short, prefill="the quick")])
    if own.key:
        own, on = on, own
    with listening(Served(tiny.record, EngineWorker(engine))) as address:
        text = client(address).completions.create(
            model=tiny.record.name, prompt="the quick", max_tokens=asked.decoding.max_tokens
        )
        assert text.choices[0].text == on.text
        target = Store(tmp_path).pull(f"remote:openai:{tiny.record.name}@{address}/v1")
        remote = engine_loader(target.record)(target.record, Path())
        (reply,) = remote.reply([asked])
        assert (reply.text, reply.stop) == (own.text, own.stop)
        remote.close()


class Failing(ScriptedEngine):
    """Fails each request with an error of this kind, in words that name another."""

    def __init__(self, code: str) -> None:
        super().__init__("helpful")
        self._code = code

    def _one(self, request: Request) -> Reply:
        words = "context overflow: the chat template refuses this"
        return Reply(request.key, "", "", stop="error", error=words, error_code=self._code)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("context-overflow", 400, "context_length_exceeded"),
        ("template-refuses", 400, "invalid_request"),
        ("engine-failure", 500, "engine_error"),
    ],
)
def test_the_status_of_a_failed_answer_follows_its_code_and_not_its_words(
    code: str, status: int, said: str
) -> None:
    one = Served(scripted("scripted:helpful").record, EngineWorker(Failing(code)))
    with listening(one) as address:
        body = {"model": one.model.name, "messages": HELLO}
        reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, said)


def test_a_model_answers_to_the_name_that_it_was_started_with() -> None:
    model = scripted("scripted:leaky").record
    served = [Served(model, EngineWorker(ScriptedEngine("leaky")), DESK, started_as=("short",))]
    served.append(served[0]._replace(application=SHOP))
    served.append(Served(scripted("scripted:helpful").record, EngineWorker(ScriptedEngine("helpful"))))
    served[-1] = served[-1]._replace(started_as=("brief",))
    with listening(*served) as address:
        asking = client(address)
        names = [each.id for each in asking.models.list()]
        ask = asking.chat.completions.create
        shorts = ["desk@scripted:leaky", "desk@short", "shop@scripted:leaky", "shop@short"]
        assert names == [*shorts, "scripted:helpful", "brief"]
        found = {ask(model=name, messages=HELLO).choices[0].message.content for name in names[:4]}
        assert len(found) == 2  # one for each application
        assert ask(model="brief", messages=HELLO).model == "scripted:helpful"
        assert asking.models.retrieve("brief").heredity["id"] == served[-1].model.id
        with raises(openai.NotFoundError, "model_not_found", mentions=["desk@scripted:leaky"]):
            ask(model="short", messages=HELLO)  # in which application?
