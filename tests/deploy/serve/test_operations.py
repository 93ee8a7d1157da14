"""What an operator turns on: a log without contents, counts, named origins, and limits for each caller."""

from __future__ import annotations

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from heredity.deploy.serve import app
from heredity.deploy.serve.answers import Served
from heredity.deploy.serve.app import MemoryFloor, Metrics, RateLimit
from heredity.deploy.serve.schema import Refusal
from heredity.deploy.serve.worker import EngineWorker
from heredity.engines import Capabilities
from heredity.lineage.store import scripted
from tests.deploy.serve.serving import HELLO, Saying, client, listening, named

SECRET = "zebra-4417"
BODY: Any = {"model": "scripted:helpful", "messages": [{"role": "user", "content": SECRET}]}


def test_a_line_of_the_log_holds_no_contents(capsys: pytest.CaptureFixture[str]) -> None:
    with listening(named("helpful"), keys=[SECRET], access_log=True) as address:
        asking = client(address, SECRET)
        asking.chat.completions.create(**BODY)
        list(asking.chat.completions.create(stream=True, **BODY))
        for path in (f"/v1/models/{SECRET}", f"/{SECRET}?{SECRET}"):
            httpx.get(address + path, headers={"authorization": f"Bearer {SECRET}"}, timeout=60)
        httpx.request(SECRET.upper(), address + "/health", timeout=60)
        httpx.post(f"{address}/v1/chat/completions", json=BODY, timeout=60)
    lines = capsys.readouterr().out.splitlines()
    assert not re.search(f"(?i){SECRET}|127.0.0.1|hello|Sure", "".join(lines))
    found = [json.loads(line) for line in lines]
    assert [(each["method"], each["route"], each["status"]) for each in found] == [
        ("POST", "/v1/chat/completions", 200),
        ("POST", "/v1/chat/completions", 200),
        ("GET", "/v1/models/{name:path}", 404),
        ("GET", "other", 404),
        ("other", "/health", 405),
        ("POST", "/v1/chat/completions", 401),
    ]
    assert all(each["seconds"] >= 0 and each["bytes"] > 0 for each in found)


def test_metrics_count_what_was_asked() -> None:
    with listening(named("helpful"), keys=[SECRET], metrics=True) as address:
        usage = [client(address, SECRET).chat.completions.create(**BODY).usage for _ in range(3)]
        assert httpx.get(f"{address}/metrics", timeout=60).status_code == 401
        found = httpx.get(f"{address}/metrics", headers={"authorization": f"Bearer {SECRET}"}, timeout=60)
    assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(line.rsplit(" ", 1) for line in found.text.splitlines() if not line.startswith("#"))
    route = 'route="/v1/chat/completions"'
    assert values[f'heredity_requests_total{{{route},status="200"}}'] == "3"
    assert values['heredity_requests_total{route="/metrics",status="401"}'] == "1"
    assert values[f'heredity_request_seconds_bucket{{{route},le="+Inf"}}'] == "3"
    assert values[f"heredity_request_seconds_count{{{route}}}"] == "3"
    model = 'model="scripted:helpful"'
    assert int(values[f"heredity_completion_tokens_total{{{model}}}"]) == sum(
        u.completion_tokens for u in usage
    )
    assert int(values[f"heredity_prompt_tokens_total{{{model}}}"]) == sum(u.prompt_tokens for u in usage)
    assert values[f"heredity_open_requests{{{model}}}"] == "0"
    assert float(values["process_resident_memory_bytes"]) > 1e6
    assert SECRET not in found.text


def test_a_large_count_is_written_whole() -> None:
    text = Metrics().text({"x_total": {'a"b': 123_456_789}}, {})
    assert 'x_total{model="a\\"b"} 123456789' in text.splitlines()


def test_metrics_are_off_unless_they_are_turned_on() -> None:
    with listening(named("helpful")) as address:
        assert httpx.get(f"{address}/metrics", timeout=60).status_code == 404


def test_only_a_named_origin_may_ask() -> None:
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-stainless-os",
    }
    with listening(named("helpful"), cors=("https://a.example",)) as address:
        post = f"{address}/v1/chat/completions"
        for origin, is_named in (("https://a.example", True), ("https://b.example", False), ("null", False)):
            before = httpx.options(post, headers=asked | {"origin": origin})
            assert (before.status_code == 200) == is_named
            answered = httpx.post(post, json=BODY, headers={"origin": origin}, timeout=60)
            assert answered.headers.get("access-control-allow-origin") == (origin if is_named else None)


def test_each_key_has_its_own_rate() -> None:
    with listening(named("helpful"), keys=("one", "two"), requests_per_minute=2) as address:
        first, second = client(address, "one").chat.completions, client(address, "two").chat.completions
        for _ in range(2):
            assert first.create(**BODY).choices
        with pytest.raises(openai.RateLimitError) as caught:
            first.create(**BODY)
        assert caught.value.code == "rate_limit_exceeded"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
        assert second.create(**BODY).choices
        assert httpx.get(f"{address}/health", timeout=60).status_code == 200


def test_a_bucket_refills(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rate = RateLimit(60)
    for _ in range(60):
        rate.admit("a")
    with pytest.raises(Refusal) as refused:
        rate.admit("a")
    assert (refused.value.status, refused.value.wait) == (429, 1)
    rate.admit("b")
    now = 1.0
    rate.admit("a")
    with pytest.raises(Refusal):
        rate.admit("a")


def test_callers_without_number_use_no_memory_without_end() -> None:
    rate = RateLimit(1)
    for number in range(3 * app._CALLERS):
        rate.admit(str(number))
    assert len(rate._buckets) <= app._CALLERS


def test_little_free_memory_refuses_new_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    free: int | None = app.FLOOR - 1
    monkeypatch.setattr(app, "available_memory", lambda: free)
    with listening(named("helpful")) as address:
        with pytest.raises(openai.RateLimitError) as caught:
            client(address).chat.completions.create(model="scripted:helpful", messages=HELLO)
        assert caught.value.body["reason"] == "busy"
        assert httpx.get(f"{address}/health", timeout=60).status_code == 200
    free = None  # the system does not report it
    MemoryFloor().admit()


def test_the_largest_body_is_the_operators() -> None:
    with listening(named("helpful"), max_body=1) as address:
        said = [{"role": "user", "content": "x" * (1 << 20)}]
        found = httpx.post(
            f"{address}/v1/messages", json={"model": "scripted:helpful", "messages": said}, timeout=60
        )
        assert (found.status_code, found.json()["error"]["type"]) == (413, "request_too_large")
        assert client(address).chat.completions.create(model="scripted:helpful", messages=HELLO).choices


def test_schemas_that_take_long_to_compile_hold_up_nobody_else() -> None:
    done = threading.Event()

    class Slow(Saying):
        capabilities = Capabilities(check_schema=lambda _: done.wait(600))  # type: ignore[assignment]

    one = Served(scripted("scripted:helpful").record, EngineWorker(Slow("fine")))
    body = {"model": "scripted:helpful", "messages": HELLO}
    with listening(one) as address, ThreadPoolExecutor() as pool:
        slow = {**body, "response_format": {"type": "json_object"}}
        url = f"{address}/v1/chat/completions"
        waiting = [pool.submit(httpx.post, url, json=slow, timeout=600) for _ in range(6)]
        try:
            time.sleep(0.5)
            assert httpx.post(url, json=body, timeout=60).status_code == 200
        finally:
            done.set()
        assert {each.result().status_code for each in waiting} == {200}
