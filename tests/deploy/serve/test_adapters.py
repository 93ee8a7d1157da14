"""Adapters over one base behind the API: each under its name, loaded, replaced and unloaded while it runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
torch = pytest.importorskip("torch")

from heredity.application.guarded import BLOCKED, identified
from heredity.application.guards import GuardSpec
from heredity.application.spec import Application
from heredity.core.records import Decoding, Message, Request
from heredity.deploy.serve import chat
from heredity.deploy.serve.model_registry import AdapterLoader, ServingRules, SharedServices, by_base, share
from heredity.deploy.serve.request_log import RequestLog
from heredity.deploy.serve.worker import shared as sharing
from heredity.lineage.store import Store, load_engine
from heredity.lineage.types import Grown
from heredity.recipes.adopt import adopt
from heredity.redteam.judges.guard import JudgeReaders
from tests.deploy.serve.serving import client, listening, until
from tests.support.errors import raises
from tests.support.guard_models import NAME, Batched, models
from tests.support.random_adapters import random_adapter
from tests.support.tiny_models import WORDS, make_model

LONG = 600


@dataclass
class Shop:
    """A store with a base, adapters of it, and a model that is none."""

    store: Store
    grown: dict[str, Grown] = field(default_factory=dict)
    engines: dict[str, Any] = field(default_factory=dict)

    def answer(self, name: str, text: str, n: int = 16) -> str:
        """What the model's own engine says."""
        if name not in self.engines:
            self.engines[name] = load_engine(self.grown[name], self.store, is_batched=False)
        (reply,) = self.engines[name].reply([Request(0, (Message("user", text),), Decoding(n))])
        return str(reply.text)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    found = Shop(Store(folder / "store"))
    base = found.store.pull(str(make_model(folder / "base", "llama", max_position_embeddings=2048)))
    other = found.store.pull(str(make_model(folder / "other", "llama", hidden_size=32)))
    found.grown = {"base": base, "other": other}
    settings: dict[str, dict[str, Any]] = {
        "one": {"rank": 8},
        "two": {"targets": ["q_proj", "v_proj", "down_proj"]},
        "biased": {"targets": ["q_proj"], "lora_bias": True, "more": ["lora_B.bias"]},
    }
    for seed, (name, given) in enumerate(settings.items()):
        made = random_adapter(base.folder, folder / name, seed, **given)
        found.grown[name] = adopt(str(made), base, found.store)
    made = random_adapter(other.folder, folder / "stranger", 1, targets=["q_proj"])
    found.grown["stranger"] = adopt(str(made), other, found.store)
    return found


@contextmanager
def running(
    shop: Shop, *names: str, may_load: bool = False, layers: Any = (None,), **how: Any
) -> Iterator[tuple[str, SharedServices]]:
    """The address of a server of these models, and what it shares."""
    told: list[str] = []
    with ExitStack() as stack:
        models = [shop.grown[name] for name in names]
        shared = share(
            stack, shop.store, models, lambda one: load_engine(one, shop.store, is_batched=False), 256,
            may_load, told.append,
        )  # fmt: skip
        rules = ServingRules(layers)
        served = [each for one in models for each in rules.served(one.record, shared.services[one.record.id])]
        desk = AdapterLoader(shop.store, shared.bases, rules) if may_load else None
        yield stack.enter_context(listening(*served, adapters=desk, **how)), shared


def said(address: str, model: str, text: str, n: int | None = 16) -> str:
    asked: Any = [{"role": "user", "content": text}]
    most: Any = {} if n is None else {"max_tokens": n, "temperature": 0}
    found = client(address).chat.completions.create(model=model, messages=asked, **most)
    assert found.model == model
    return str(found.choices[0].message.content)


def change(address: str, verb: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{address}/v1/{verb}_lora_adapter", json=body, timeout=60)


def test_each_model_answers_under_its_own_name_with_the_base_loaded_once(shop: Shop) -> None:
    names = ["base", "one", "two"]
    texts = [" ".join(WORDS[i : i + 4]) for i in range(8)]
    with running(shop, *names) as (address, shared):
        asked = [(name, text) for text in texts for name in names]
        with ThreadPoolExecutor(12) as callers:
            found = list(callers.map(lambda one: said(address, *one), asked))
        assert found == [shop.answer(*one) for one in asked] and len(set(found)) > len(texts)
        assert len(shared.bases) == 1 and len(shared.services) == 3
        listed = client(address).models.list().data
        assert [each.id for each in listed] == names
        assert [each.heredity["id"] for each in listed] == [shop.grown[name].record.id for name in names]
        open_ = httpx.get(f"{address}/health", timeout=60).json()["open"]
        assert open_ == dict.fromkeys(names, 0)
        n_tokens = sum(each.n_tokens for each in shared.services.values())
        assert n_tokens == shared.bases[0].worker.n_tokens > 0


def test_models_with_a_base_of_their_own_are_not_grouped(shop: Shop) -> None:
    grown = shop.grown
    assert by_base([grown["one"]], False) == {} == by_base([grown["base"], grown["other"]], False)
    assert by_base([grown["one"], grown["stranger"]], False) == {}
    found = by_base([grown["base"], grown["one"], grown["other"]], False)
    assert found == {grown["base"].folder: [grown["base"], grown["one"]]}
    assert len(by_base([grown["base"], grown["other"]], True)) == 2


def test_an_adapter_of_another_form_is_named_and_has_its_own_engine(shop: Shop) -> None:
    told: list[str] = []
    with ExitStack() as stack:
        models = [shop.grown[name] for name in ("base", "one", "biased")]
        load = lambda one: load_engine(one, shop.store, is_batched=False)  # noqa: E731
        found = share(stack, shop.store, models, load, 8, False, told.append)
    assert set(found.services) == {shop.grown[name].record.id for name in ("base", "one")}
    assert any("biased has an engine of its own" in line and "a bias" in line for line in told)


def test_an_adapter_is_loaded_replaced_and_unloaded_while_it_runs(shop: Shop) -> None:
    text = "the quick brown fox"
    with running(shop, "base", may_load=True) as (address, shared):
        assert said(address, "base", text) == shop.answer("base", text)
        with raises(openai.NotFoundError, "model_not_found"):
            said(address, "one", text)
        found = change(address, "load", lora_name="one")
        assert (found.status_code, found.text) == (200, "Success: LoRA adapter 'one' added successfully.")
        assert said(address, "one", text) == shop.answer("one", text) != shop.answer("base", text)
        assert [each.id for each in client(address).models.list()] == ["base", "one"]
        assert change(address, "load", lora_name="one").json()["error"]["reason"] == "name-twice"
        swapped = {"lora_name": "one", "lora_path": "two", "load_inplace": True}
        assert change(address, "load", **swapped).status_code == 200
        assert said(address, "one", text) == shop.answer("two", text) != shop.answer("one", text)
        (about,) = [each for each in client(address).models.list() if each.id == "one"]
        assert about.heredity["id"] == shop.grown["two"].record.id
        assert change(address, "load", lora_name="alias", lora_path=shop.grown["one"].record.id).is_success
        assert said(address, "alias", text) == shop.answer("one", text)
        assert change(address, "unload", lora_name="one", lora_int_id=7).text.endswith(
            "removed successfully."
        )
        with raises(openai.NotFoundError, "model_not_found"):
            said(address, "one", text)
        assert said(address, "alias", text) == shop.answer("one", text)
        assert change(address, "unload", lora_name="alias").is_success
        until(lambda: not len(shared.bases[0].shared._adapters))
        assert said(address, "base", text) == shop.answer("base", text)


def test_a_request_ends_with_the_adapter_that_it_began_with(shop: Shop) -> None:
    with running(shop, "base", "one", may_load=True) as (address, shared):
        texts = (" ".join(WORDS[i : i + 3]) for i in range(12))
        text, expected = next(
            (text, answer) for text in texts if len(answer := said(address, "one", text, LONG)) > LONG // 2
        )
        asked: Any = [{"role": "user", "content": text}]
        stream = client(address).chat.completions.create(
            model="one", messages=asked, max_tokens=LONG, temperature=0, stream=True, logprobs=True
        )
        parts = [next(stream)]
        swapped = {"lora_name": "one", "lora_path": "two", "load_inplace": True}
        assert change(address, "load", **swapped).is_success
        held = shared.bases[0].shared._adapters
        assert 1 in held, "the answer was over too soon for this test"
        assert said(address, "one", text) == shop.answer("two", text)
        parts += stream
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == expected
        scored = [part.choices[0].logprobs for part in parts if part.choices and part.choices[0].logprobs]
        assert sum(len(each.content) for each in scored) > 100
        until(lambda: 1 not in held and 2 in held)


def test_an_adapter_that_is_unloaded_while_a_request_is_read_answers_it_and_is_unknown_to_the_next(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, may_go, parse = threading.Event(), threading.Event(), chat.parse

    def slow(*given: Any) -> Any:
        reading.set()
        assert may_go.wait(60)
        return parse(*given)

    def post(model: str, **more: Any) -> httpx.Response:
        asked = {"model": model, "messages": [{"role": "user", "content": "the old oak"}], "temperature": 0}
        return httpx.post(f"{address}/v1/chat/completions", json={**asked, **more}, timeout=60)

    monkeypatch.setattr(chat, "parse", slow)
    with (
        running(shop, "base", "one", may_load=True) as (address, shared),
        ThreadPoolExecutor(1) as caller,
    ):
        early = caller.submit(post, "one", max_tokens=16, response_format={"type": "text"})
        assert reading.wait(60) and change(address, "unload", lora_name="one").is_success
        may_go.set()
        found = early.result().json()
        assert found["model"] == "one"
        assert found["choices"][0]["message"]["content"] == shop.answer("one", "the old oak")
        late, unknown = post("one"), post("two")
        assert late.status_code == unknown.status_code == 404
        assert late.json() == json.loads(unknown.text.replace("'two'", "'one'"))
        until(lambda: not len(shared.bases[0].shared._adapters))


def test_unloading_while_callers_ask_never_answers_with_another_model(shop: Shop) -> None:
    text = "seven wise owls"
    expected = {shop.answer(name, text) for name in ("one", "two")}
    with running(shop, "base", may_load=True) as (address, _):
        stop, seen = threading.Event(), set()

        def ask() -> None:
            while not stop.is_set():
                try:
                    seen.add(said(address, "it", text))
                except openai.NotFoundError:
                    seen.add("404")

        with ThreadPoolExecutor(4) as callers:
            done = [callers.submit(ask) for _ in range(4)]
            for i in range(6):
                ref = ("one", "two")[i % 2]
                assert change(address, "load", lora_name="it", lora_path=ref, load_inplace=True).is_success
                if i % 3 == 2:
                    assert change(address, "unload", lora_name="it").is_success
            stop.set()
            for each in done:
                each.result()
        assert seen <= {*expected, "404"} and seen & expected


@pytest.mark.parametrize(
    ("verb", "body", "status", "param", "words"),
    [
        ("load", {"lora_name": "/etc/passwd"}, 400, "lora_name", "name"),
        ("load", {"lora_name": "x", "lora_path": "../one"}, 400, "lora_path", "never a path"),
        ("load", {"lora_name": "x", "lora_path": "hf:org/repo"}, 400, "lora_path", "never a path"),
        ("load", {"lora_name": "x", "lora_path": "call:os:system"}, 404, "lora_path", "no adapter"),
        ("load", {"lora_name": "nowhere"}, 404, "lora_path", "nowhere"),
        ("load", {"lora_name": "base"}, 400, "lora_name", "no adapter"),
        ("load", {"lora_name": "other"}, 400, "lora_path", "no adapter"),
        ("load", {"lora_name": "biased"}, 400, "lora_path", "bias"),
        ("load", {"lora_name": "stranger"}, 400, "lora_path", "base"),
        ("load", {"lora_path": "one"}, 400, "lora_name", "lora_name"),
        ("load", {"lora_name": 3}, 400, "lora_name", "str"),
        ("load", {"lora_name": "x", "colour": "red"}, 400, "colour", "colour"),
        ("unload", {"lora_name": "nowhere"}, 404, "lora_name", "nowhere"),
        ("unload", {"lora_name": "base"}, 400, "lora_name", "no adapter"),
    ],
)
def test_what_cannot_be_loaded_is_refused_and_changes_nothing(
    open_place: tuple[str, SharedServices], verb: str, body: Any, status: int, param: str, words: str
) -> None:
    address, shared = open_place
    found = change(address, verb, **body)
    error = found.json()["error"]
    assert (found.status_code, error["param"]) == (status, param) and words in error["message"]
    assert "/" not in error["message"].replace("/etc/passwd", "").replace("../one", "")
    assert [each.id for each in client(address).models.list()] == ["base"]
    assert not len(shared.bases[0].shared._adapters)


@pytest.fixture(scope="module")
def open_place(shop: Shop) -> Iterator[tuple[str, SharedServices]]:
    with running(shop, "base", may_load=True) as place:
        yield place


def test_bodies_that_are_no_json_object_are_refused(open_place: tuple[str, SharedServices]) -> None:
    for raw in (b"[]", b"{", b'"one"', b"\xff", b"[" * 100_000):
        found = httpx.post(
            f"{open_place[0]}/v1/load_lora_adapter",
            content=raw,
            headers={"content-type": "application/json"},
            timeout=60,
        )
        assert (found.status_code, found.json()["error"]["code"]) == (400, "invalid_request")


def test_no_caller_loads_an_adapter_unless_it_is_on_and_the_key_is_right(shop: Shop) -> None:
    with running(shop, "base", "one") as (address, _):
        assert change(address, "load", lora_name="two").status_code == 404
        assert change(address, "unload", lora_name="one").status_code == 404
    with running(shop, "base", may_load=True, keys=["secret"]) as (address, _):
        assert change(address, "load", lora_name="two").status_code == 401


def test_an_adapter_that_comes_later_answers_in_every_application(shop: Shop) -> None:
    layers = (Application("desk", "seven wise owls"), Application("shop", "an old oak tree"))
    with running(shop, "base", may_load=True, layers=layers) as (address, _):
        assert change(address, "load", lora_name="one").is_success
        names = [each.id for each in client(address).models.list()]
        assert names == ["desk@base", "shop@base", "desk@one", "shop@one"]
        assert len({said(address, name, "the fox") for name in names}) == 4
        assert change(address, "unload", lora_name="one").is_success
        assert len(client(address).models.list().data) == 2


def test_an_adapter_that_comes_later_has_the_guards_and_the_request_log(shop: Shop, tmp_path: Path) -> None:
    guard, log = Batched(), RequestLog(tmp_path / "log.jsonl")
    readers = JudgeReaders(models(guard), sharing)
    spec = GuardSpec("model", settings={"model": NAME, "sides": ("user",)})
    layers = (identified(Application("desk", guards=(spec,)), readers),)
    how: dict[str, Any] = {"readers": readers, "log": log, "metrics": True}
    try:
        with running(shop, "base", may_load=True, layers=layers, **how) as (address, _):
            assert change(address, "load", lora_name="late", lora_path="one").is_success
            text = "the quick brown fox"
            assert said(address, "late", "Where is the plutonium?", None) == BLOCKED
            assert said(address, "late", text, None) == shop.answer("one", text, Decoding().max_tokens)
            with raises(openai.BadRequestError, "invalid_request"):
                client(address).chat.completions.create(
                    model="late", messages=[{"role": "user", "content": "fox"}], logprobs=True
                )
            counted = 'heredity_guarded_answers_total{guard="model"} 1'
            assert counted in httpx.get(f"{address}/metrics", timeout=60).text
            assert change(address, "unload", lora_name="late").is_success
            assert counted in httpx.get(f"{address}/metrics", timeout=60).text, "a count never falls"
    finally:
        readers.close()
        log.close()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    assert {(row["model"], row["model_id"]) for row in rows} == {("desk@late", shop.grown["one"].record.id)}
    assert len(rows) == 2 and rows[0]["response"] == BLOCKED


def test_however_an_answer_ends_its_adapter_can_be_freed(shop: Shop) -> None:
    body: dict[str, Any] = {"model": "one", "messages": [{"role": "user", "content": "the old oak tree"}]}
    with running(shop, "base", "one", may_load=True) as (address, shared):
        service = shared.services[shop.grown["one"].record.id]
        chat = f"{address}/v1/chat/completions"
        for more in ({}, {"stream": True}, {"n": 3}, {"logprobs": True}, {"stop": ["a"], "max_tokens": 8}):
            assert httpx.post(chat, json={**body, "max_tokens": 4, **more}, timeout=60).status_code == 200
        long = {**body, "messages": [{"role": "user", "content": "fox " * 4000}]}
        assert httpx.post(chat, json=long, timeout=60).status_code == 400
        assert httpx.post(chat, json={**body, "n": 99999}, timeout=60).status_code == 400
        for is_streamed in (False, True):  # the caller leaves
            with suppress(httpx.TimeoutException), httpx.Client(timeout=0.2) as leaving:
                asked = {**body, "max_tokens": LONG, "stream": is_streamed, "temperature": 0}
                with leaving.stream("POST", chat, json=asked) as found:
                    next(found.iter_raw(1))
        until(lambda: not service._n_held and not service.n_open)
        assert change(address, "unload", lora_name="one").is_success
        until(lambda: not len(shared.bases[0].shared._adapters))
