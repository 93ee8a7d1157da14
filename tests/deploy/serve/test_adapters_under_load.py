"""Adapters that come and go while many callers ask: each answer is that of its adapter alone, or an error."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

pytest.importorskip("openai")
pytest.importorskip("uvicorn")
torch = pytest.importorskip("torch")

from heredity.application.guards import GuardSpec
from heredity.application.spec import Application
from heredity.core.records import Decoding, Message, Request
from heredity.deploy.serve.model_registry import AdapterLoader, BaseService, ServingRules, share
from heredity.engines.torch.decoder import number_of
from heredity.lineage.store import Store, load_engine
from heredity.lineage.types import Grown
from heredity.recipes.adopt import adopt
from tests.deploy.serve.serving import listening, until
from tests.support.random_adapters import random_adapter
from tests.support.tiny_models import WORDS, make_model

N_TOKENS, N_CALLERS, N_ASKED = 24, 16, 25
ADAPTERS: dict[str, dict[str, Any]] = {
    "one": {"rank": 8},
    "two": {"targets": ["q_proj", "v_proj", "down_proj"]},
    "late": {"rank": 4, "alora_invocation_tokens": []},  # of the assistant's turn
    "later": {"rank": 8, "targets": ["o_proj"], "alora_invocation_tokens": []},
}
NAMES = ("base", *ADAPTERS)
SHARED = " ".join(WORDS[i % len(WORDS)] for i in range(300))  # more than one chunk of the cache
TEXTS = [f"{SHARED} {WORDS[0]}", f"{SHARED} {WORDS[1]}", "seven wise owls", "an old oak tree"]
DRAWN = Decoding(N_TOKENS, temperature=1.0)  # the likeliest tokens of a random model say little
GUARDED = Application("desk", decoding=DRAWN, guards=(GuardSpec("injection"),))


@dataclass
class Hub:
    """A store with a base and its adapters, and what each says alone to each text."""

    store: Store
    grown: dict[str, Grown] = field(default_factory=dict)
    said: dict[tuple[str, str, int], str] = field(default_factory=dict)  # by name, text and seed

    def answers(self, name: str) -> None:
        engine = load_engine(self.grown[name], self.store, is_batched=False)
        for text in TEXTS:
            for seed in (0, 1):
                (reply,) = engine.reply([Request(0, (Message("user", text),), DRAWN, seed)])
                self.said[name, text, seed] = reply.text
        engine.close()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    folder = tmp_path_factory.mktemp("hub")
    found = Hub(Store(folder / "store"))
    base = found.store.pull(str(make_model(folder / "base", "llama", max_position_embeddings=2048)))
    found.grown["base"] = base
    engine: Any = load_engine(base, found.store, is_batched=False)
    invocation = [*engine.codec.continuation("<|im_start|>assistant\n")]
    engine.close()
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        given = {key: value or invocation for key, value in settings.items()}
        found.grown[name] = adopt(
            str(random_adapter(base.folder, folder / name, seed, **given)), base, found.store
        )
    for name in NAMES:
        found.answers(name)
    for text, seed in itertools.product(TEXTS, (0, 1)):
        assert len({found.said[name, text, seed] for name in NAMES}) == len(NAMES), (
            "an answer tells its adapter"
        )
    return found


class Caller:
    """Asks at random: whole, in parts, twice at once; leaves early, or names what is not there."""

    def __init__(self, hub: Hub, address: str, seed: int, is_guarded: bool) -> None:
        self._hub, self._stream, self._is_guarded = hub, random.Random(seed), is_guarded
        self._line = httpx.Client(base_url=address, timeout=120)
        self.n_right, self.wrong = 0, list[str]()

    def run(self, n: int) -> None:
        with self._line:
            for _ in range(n):
                self._ask()

    def _ask(self) -> None:
        name, text = self._stream.choice((*NAMES, "it", "it", "nobody")), self._stream.choice(TEXTS)
        how = self._stream.choice(("whole", "parts", "two", "leaves", "whole"))
        body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": text}]}
        body |= {} if self._is_guarded else {"max_tokens": N_TOKENS, "temperature": 1}
        body |= {"n": 2 if how == "two" else 1, "stream": how in ("parts", "leaves")}
        with self._line.stream("POST", "/v1/chat/completions", json=body) as found:
            if found.status_code == 200 and how == "leaves":
                next(found.iter_raw(1), b"")
                return
            found.read()
        if found.status_code == 404 and name in ("it", "nobody"):
            return
        allowed = ADAPTERS if name == "it" else (name,)
        for seed, answer in enumerate(answers(found)):
            right = {self._hub.said.get((each, text, seed)) for each in allowed}
            if found.status_code == 200 and answer in right:
                self.n_right += 1
            else:
                self.wrong.append(f"{name} {how} {found.status_code}: {answer[:200]!r}")


def answers(found: httpx.Response) -> Iterator[str]:
    """The answers of a body or of a stream, or the error."""
    if found.status_code != 200:
        yield found.text
    elif found.headers["content-type"].startswith("text/event-stream"):
        events = [line[6:] for line in found.text.splitlines() if line.startswith("data: ")]
        parts = [json.loads(each) for each in events if each != "[DONE]"]
        if events[-1:] != ["[DONE]"] or any("error" in each for each in parts):
            yield found.text[-300:]
        else:
            yield "".join(c["delta"].get("content") or "" for each in parts for c in each["choices"])
    else:
        for choice in found.json()["choices"]:
            yield choice["message"]["content"]


def change(address: str, stop: threading.Event) -> list[str]:
    """Load, replace and drop adapters until the callers are done; return what was answered wrongly."""
    wrong, n = [], 0
    with httpx.Client(base_url=address, timeout=120) as line:
        while not stop.is_set():
            ref = [*ADAPTERS][n % len(ADAPTERS)]
            for verb, body, status in (
                ("load", {"lora_name": "it", "lora_path": ref, "load_inplace": True}, 200),
                ("load", {"lora_name": ref, "load_inplace": True}, 200),  # the same one anew
                ("load", {"lora_name": "it", "lora_path": "../it"}, 400),
                ("load", {"lora_name": "base", "lora_path": ref, "load_inplace": True}, 400),
                ("unload", {"lora_name": "it" if n % 3 == 2 else "nobody"}, 200 if n % 3 == 2 else 404),
            ):
                found = line.post(f"/v1/{verb}_lora_adapter", json=body)
                if found.status_code != status:
                    wrong.append(f"{verb} {body}: {found.status_code} {found.text[:200]}")
            n += 1
        for name in (*ADAPTERS, "it"):
            line.post("/v1/unload_lora_adapter", json={"lora_name": name})
    return wrong


@pytest.mark.proof
@pytest.mark.parametrize("is_guarded", [False, True])
def test_every_answer_is_that_of_its_adapter_alone_while_adapters_come_and_go(
    hub: Hub, is_guarded: bool
) -> None:
    rules, stop = ServingRules((GUARDED if is_guarded else None,)), threading.Event()
    with ExitStack() as stack:
        load = lambda one: load_engine(one, hub.store, is_batched=False)  # noqa: E731
        models = [hub.grown[name] for name in NAMES]
        shared = share(stack, hub.store, models, load, 256, True, lambda _: None)
        (home,) = shared.bases
        pool = home.shared.base.pool
        pool._cache._budget = 400_000  # two of the shared beginnings: those of other adapters are dropped
        served = [each for one in models for each in rules.served(one.record, shared.services[one.record.id])]
        desk = AdapterLoader(hub.store, shared.bases, rules)
        address = stack.enter_context(listening(*served, adapters=desk))
        workers = stack.enter_context(ThreadPoolExecutor(N_CALLERS + 1))
        callers = [Caller(hub, address, seed, is_guarded) for seed in range(N_CALLERS)]
        changing = workers.submit(change, address, stop)
        try:
            for each in [workers.submit(caller.run, N_ASKED) for caller in callers]:
                each.result(900)
        finally:
            stop.set()
        assert not changing.result(120)
        assert not [line for caller in callers for line in caller.wrong]
        assert sum(caller.n_right for caller in callers) > N_CALLERS * N_ASKED // 3
        until(lambda: not home.worker.n_open and len(home.shared._members) == 1)
        left_behind(home)


def left_behind(home: BaseService) -> None:
    """Assert that nothing of any adapter is kept."""
    pool, adapters = home.shared.base.pool, home.shared._adapters
    assert not len(adapters)
    assert not [key for key in pool._prefixes if key and number_of(key[-1])]
    assert not [tokens for _, tokens in pool._cache._kept if number_of(tokens[-1])]
    assert pool._cache._size <= pool._cache._budget
