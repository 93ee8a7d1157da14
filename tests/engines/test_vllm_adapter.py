"""An adapter in a vLLM server: over its base, under its own name; one served in part is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.torch import load_file, save_file

from heredity.core.errors import Damaged, Unavailable
from heredity.core.records import Message, Request
from heredity.engines import vllm
from heredity.engines.transformers import TransformersEngine
from heredity.engines.vllm import VllmEngine, server_options
from heredity.lineage.store import Store, load_engine
from heredity.lineage.types import Grown
from heredity.recipes.adopt import adopt
from heredity.study import plan as plans
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from tests.engines.test_vllm import STANDIN
from tests.support.errors import raises
from tests.support.peft_adapters import make_adapter
from tests.support.studies import APPLICATION, by_index, probes
from tests.support.tiny_models import exchange_two_tokens, make_model

pytestmark = pytest.mark.slow
ASK = Request(0, (Message("user", "the quick brown fox"),))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def tiny(store: Store, tmp_path: Path) -> Grown:
    return store.pull(str(make_model(tmp_path / "tiny", "llama", max_position_embeddings=1024)))


@pytest.fixture
def tuned(store: Store, tiny: Grown, tmp_path: Path) -> Grown:
    return adopt(str(make_adapter(tiny.folder, tmp_path / "tuned", r=4)), tiny, store)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for vLLM's server, which keeps the options that it was given."""
    python, options = tmp_path / "python", tmp_path / "options"
    python.write_text(f'#!/bin/sh\nshift 2\necho "$@" > {options}\nexec {sys.executable} {STANDIN} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv(vllm.WHERE, str(python))
    monkeypatch.delenv(vllm.KEY, raising=False)
    return options


def test_a_server_has_the_adapter_over_its_base_and_is_asked_for_the_adapter(
    store: Store, tiny: Grown, tuned: Grown, server: Path
) -> None:
    name = tuned.record.name
    child = store.get(f"vllm:{name}")
    assert child.record.format == "adapter" and child.record.files == tuned.record.files
    assert child.record.parents == (tuned.record.id, tiny.record.id)
    assert store.base(child).record.id == tiny.record.id
    engine = load_engine(child, store)
    try:
        (reply,) = engine.reply([ASK])
        assert isinstance(engine, VllmEngine)
        base = engine.base_at_server()
        assert base is not None
        (of_base,) = base.reply([ASK])
    finally:
        engine.close()
    assert reply.error is None and reply.text.startswith(f"{name} heard ")
    assert of_base.text.startswith(f"{name}-base heard ")
    given = server.read_text().split()
    assert given[given.index("--model") + 1] == str(tiny.folder)
    assert given[given.index("--max-lora-rank") + 1] == "8", "vLLM takes 8, 16, 32, ..."
    assert str(child.folder) in server.read_text()


def test_a_study_has_the_edge_from_base_to_adapter_in_vllm(
    store: Store, tuned: Grown, server: Path, tmp_path: Path
) -> None:
    names = [f"vllm:{each}" for each in ("tiny", tuned.record.name)]
    models = [store.get(name) for name in names]
    study = Study(StudySpec(models, APPLICATION, probes=probes(2), out=tmp_path / "study"), store=store)
    study.run()
    rows = by_index(tmp_path / "study").values()
    heard = {row.exchanges[-1].text.split(" heard ")[0] for row in rows}
    assert heard == {"tiny", tuned.record.name}
    plan = plans.read_plan(tmp_path / "study")
    ids = {model.id: model.name for model in plan.models}
    assert [(ids[edge.parent], ids[edge.child]) for edge in plan.edges] == [tuple(names)]


def test_the_transformers_engine_answers_an_adapter_by_name(store: Store, tuned: Grown) -> None:
    named = load_engine(store.get(f"transformers:{tuned.record.name}"), store, is_batched=False)
    assert isinstance(named, TransformersEngine)
    (ours,) = load_engine(tuned, store, is_batched=False).reply([ASK])
    assert [reply.text for reply in named.reply([ASK])] == [ours.text] and ours.text


def test_the_weights_behind_an_adapter_in_another_engine_are_those_of_the_adapter(
    store: Store, tuned: Grown
) -> None:
    merged = [store.whole(each).folder for each in (tuned, store.get(f"vllm:{tuned.record.name}"))]
    one, other = (load_file(folder / "model.safetensors") for folder in merged)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def change(folder: Path, **settings: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
def test_ranks_of_single_modules_are_refused_since_older_servers_ignore_them(
    tiny: Grown, tmp_path: Path, setting: str
) -> None:
    folder = make_adapter(tiny.folder, tmp_path / "one", r=4, **{setting: {"q_proj": 8}})
    with raises(Unavailable, "unavailable", mentions=[setting, "merge_adapter one"]):
        server_options("one", folder, tiny.folder)


def test_an_embedding_that_the_adapter_holds_whole_is_refused(tiny: Grown, tmp_path: Path) -> None:
    folder = make_adapter(tiny.folder, tmp_path / "one", r=4)
    path = folder / "adapter_model.safetensors"
    whole = {"base_model.model.model.embed_tokens.weight": torch.ones(4, 4)}
    save_file(load_file(path) | whole, path)
    with raises(Unavailable, "unavailable", mentions=["embed_tokens"]):
        server_options("one", folder, tiny.folder)


def test_other_tokens_than_the_base_are_refused(tiny: Grown, tmp_path: Path) -> None:
    folder = make_adapter(tiny.folder, tmp_path / "one", r=4)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny.folder / name).read_bytes())
    assert "--enable-lora" in server_options("one", folder, tiny.folder)
    exchange_two_tokens(folder)
    with raises(Unavailable, "unavailable", mentions=["tokenizer"]):
        server_options("one", folder, tiny.folder)
    path = folder / "tokenizer.json"
    same = json.loads((tiny.folder / "tokenizer.json").read_bytes())
    path.write_text(json.dumps(same | {"truncation": None, "padding": None}))
    assert "--enable-lora" in server_options("one", folder, tiny.folder)
    path.write_text(json.dumps(same | {"normalizer": {"type": "Lowercase"}}))
    with raises(Unavailable, "unavailable", mentions=["tokenizer"]):
        server_options("one", folder, tiny.folder)
    path.write_text("[]")
    with raises(Damaged, "damaged"):
        server_options("one", folder, tiny.folder)


def test_names_that_differ_from_the_base_s_are_refused_since_the_server_would_skip_them(
    tiny: Grown, tmp_path: Path
) -> None:
    """Our engine finds model.language_model.layers... in a base that has model.layers...; vLLM does not."""
    folder = make_adapter(tiny.folder, tmp_path / "one", r=4)
    path = folder / "adapter_model.safetensors"
    renamed = {
        name.replace("model.layers", "language_model.model.layers"): t for name, t in load_file(path).items()
    }
    save_file(renamed, path)
    with raises(Unavailable, "unavailable", mentions=["language_model"]):
        server_options("one", folder, tiny.folder)


def test_an_adapter_that_vllm_cannot_serve_is_refused_where_it_is_named(
    store: Store, tiny: Grown, tmp_path: Path
) -> None:
    folder = make_adapter(tiny.folder, tmp_path / "my dora", r=4, use_dora=True)
    adopt(str(folder), tiny, store, name="dora")
    with raises(Unavailable, "unavailable", mentions=["use_dora", "merge_adapter dora tiny"]):
        store.get("vllm:dora")


@pytest.mark.parametrize("rank", [513, "4", 0.5])
def test_a_rank_that_vllm_has_not_is_refused(tiny: Grown, tmp_path: Path, rank: object) -> None:
    folder = make_adapter(tiny.folder, tmp_path / "one", r=4)
    change(folder, r=rank)
    with raises(Unavailable, "unavailable", mentions=["rank"]):
        server_options("one", folder, tiny.folder)


def test_files_that_do_not_read_are_damaged(tiny: Grown, tmp_path: Path) -> None:
    folder = make_adapter(tiny.folder, tmp_path / "one", r=4)
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 40)
    with raises(Damaged, "damaged", mentions=["adapter_model"]):
        server_options("one", folder, tiny.folder)
    (folder / "adapter_config.json").write_text("[]")
    with raises(Damaged, "damaged", mentions=["adapter_config"]):
        server_options("one", folder, tiny.folder)
