"""vLLM itself, where HEREDITY_VLLM names an environment that has it: its prompts, its answers and its end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

import heredity as h
from heredity.core.errors import Refused
from heredity.core.records import Decoding, Message, Request
from heredity.engines import Engine, vllm
from heredity.engines.torch import engine as torch_engine
from heredity.engines.vllm import ServerProgram, free_port
from heredity.lineage.store import load_engine
from heredity.study.runner import check_server
from tests.engines.test_vllm import gone
from tests.support import real_models
from tests.support.errors import raises
from tests.support.peft_adapters import make_adapter

pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif(
        not os.environ.get(vllm.WHERE) or os.environ[vllm.WHERE].startswith("http"),
        reason=f"{vllm.WHERE} does not name the python of an environment with vLLM",
    ),
]
EXAMPLE = Path(__file__).parents[2] / "examples" / "support-desk.toml"


@pytest.fixture(scope="module")
def store() -> h.Store:
    return h.Store()


@pytest.fixture(scope="module")
def weights(store: h.Store) -> h.Grown:
    return store.ready(real_models.model())


@pytest.fixture(scope="module")
def engine(store: h.Store, weights: h.Grown) -> Iterator[vllm.VllmEngine]:
    engine = load_engine(store.get(f"vllm:{weights.record.name}"), store)
    assert isinstance(engine, vllm.VllmEngine)
    yield engine
    engine.close()


def asked() -> list[Request]:
    """Plain, with a system prompt and tools, with a beginning, as a plain text, drawn, and too long."""
    desk = h.Application.load(EXAMPLE)
    hello = (Message("user", "What is the capital of France?"),)
    full = desk.request([*desk.messages(), Message("user", "Where is order 1001?")])
    short = Decoding(8)
    return [
        Request(0, hello, short),
        Request(1, full.messages, short, tools=full.tools),
        Request(2, hello, short, prefill="Sure, here is"),
        Request(3, (), short, prefill="The capital of France is"),
        Request(4, hello, Decoding(8, 1.0, 0.9), seed=5),
        Request(5, hello, Decoding(100_000)),
    ]


def started_by(pid: int) -> list[int]:
    """A process and all that it started, and that those did."""
    children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [pid, *(each for some in children for child in some for each in started_by(int(child)))]


def test_vllm_holds_its_answers_to_a_json_schema(engine: vllm.VllmEngine) -> None:
    schema = (
        '{"type": "object", "properties": {"team": {"enum": ["sales", "support"]}}, "required": ["team"]}'
    )
    hello, decoding = (Message("user", "Which team?"),), Decoding(40, json_schema=schema)
    good, bad = (
        Request(key, hello, each)
        for key, each in enumerate((decoding, Decoding(json_schema='{"type": "cat"}')))
    )
    found = {reply.key: reply for reply in engine.reply([good, bad])}
    assert json.loads(found[0].text)["team"] in ("sales", "support") and found[1].error is not None


def test_vllm_sees_the_tokens_that_the_torch_engine_sees_and_ends_with_its_workers(
    engine: vllm.VllmEngine, weights: h.Grown
) -> None:
    ours = torch_engine.open_folder(weights.folder, dtype="float32", is_probed=False)
    expected = {reply.key: reply for reply in ours.reply(asked())}
    found = {reply.key: reply for reply in engine.reply(asked())}
    assert found.keys() == expected.keys()
    for key in range(5):
        assert found[key].error is None
        assert found[key].prompt == expected[key].prompt
        assert found[key].n_prompt_tokens == expected[key].n_prompt_tokens
    assert found[0].text.strip() and found[0].stop in ("end", "length")
    assert str(found[5].error).startswith("context overflow")
    assert engine.server is not None
    program, *workers = started_by(engine.server.pid)
    assert workers
    engine.close()
    assert all(gone(pid) for pid in (program, *workers))


@pytest.fixture
def own(weights: h.Grown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> h.Store:
    """A store with a base and two adapters of it, answered in float32."""
    monkeypatch.setenv(vllm.WHERE, f"{os.environ[vllm.WHERE]} --dtype float32")
    own = h.Store(tmp_path / "store")
    base = own.pull(str(weights.folder))
    for seed, name in enumerate(("first", "second")):
        place = make_adapter(base.folder, tmp_path / name, seed=seed, strength=0.1, r=12)
        h.adopt(str(place), base, own, name=name)
    return own


ESSAYS = [
    Request(i, (Message("user", f"Write a sentence about {topic}."),), Decoding(16))
    for i, topic in enumerate(("rain", "bread", "a bridge", "the moon"))
]


def answers(engine: Engine) -> dict[int, str]:
    """The answers to all of ESSAYS; the engine is closed."""
    try:
        return {reply.key: reply.text for reply in engine.reply(ESSAYS)}
    finally:
        engine.close()


def here(store: h.Store, name: str) -> dict[int, str]:
    """The answers of an adapter in the torch engine."""
    adapter = store.get(name)
    base, folder = store.base(adapter).folder, adapter.folder
    return answers(torch_engine.open_folder(base, dtype="float32", adapter=folder, is_probed=False))


def test_vllm_answers_an_adapter_as_the_torch_engine_does(own: h.Store) -> None:
    expected = here(own, "first")
    assert answers(load_engine(own.get("vllm:first"), own)) == expected
    base = own.base(own.get("first")).folder
    assert answers(torch_engine.open_folder(base, dtype="float32", is_probed=False)) != expected


def test_a_server_with_two_adapters_answers_each_under_its_name(
    own: h.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, *options = os.environ[vllm.WHERE].split()
    folders = {name: own.get(name).folder for name in ("first", "second")}
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", *options, "--port", str(port)]
    command += ["--model", str(own.base(own.get("first")).folder), "--served-model-name", "ours"]
    command += ["--enable-lora", "--max-loras", "2", "--host", "127.0.0.1", "--lora-modules"]
    command += [f"{name}={folder}" for name, folder in folders.items()]
    health = f"http://127.0.0.1:{port}/health"
    server = ServerProgram(command, health, tmp_path / "log", 600.0, {"HF_HUB_OFFLINE": "1"})
    try:
        monkeypatch.setenv(vllm.WHERE, f"http://127.0.0.1:{port}/v1")
        engines = {name: load_engine(own.get(f"vllm:{name}"), own) for name in folders}
        check_server(health, engines)
        for name, engine in engines.items():
            assert isinstance(engine, vllm.VllmEngine)
            base = engine.base_at_server()
            assert base is not None
            check_server(health, {name: engine, "ours": base})
            assert answers(engine) == here(own, name)  # which closes the engine
        twins = {name: load_engine(own.get("vllm:first"), own) for name in ("one", "two")}
        with raises(Refused, "refused"):
            check_server(health, twins)
        for engine in twins.values():
            engine.close()
    finally:
        server.close()
