"""Which engine answers for a model: by its record, by its files, and where torch does not read it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET

pytest.importorskip("torch")

from heredity import engines
from heredity.core.errors import UsageError
from heredity.core.records import Decoding, Message, Request
from heredity.engines import Engine
from heredity.lineage.store import Store, load_engine
from heredity.lineage.types import Grown
from tests.support import architectures
from tests.support.errors import raises
from tests.support.model_sources import store as store
from tests.support.model_sources import tiny_gguf as tiny_gguf
from tests.support.tiny_models import make_model

REQUEST = Request(0, (Message("user", "the quick brown fox"),), Decoding(6))


def pulled(store: Store, tmp_path: Path, name: str = "phi") -> Grown:
    return store.pull(str(architectures.make(tmp_path / name, name)))


def answer(engine: Engine) -> tuple[int, ...]:
    (reply,) = engine.reply([REQUEST])
    assert reply.error is None
    return reply.tokens


def test_an_architecture_that_torch_lacks_is_answered_by_transformers(store: Store, tmp_path: Path) -> None:
    grown = pulled(store, tmp_path)
    assert grown.record.architecture == "phi"
    assert engines.choose(grown.record) == "transformers" and not engines.holds_weights(grown.record)
    engine = load_engine(grown, store)
    assert engine.name.startswith("transformers ")
    assert len(answer(engine)) == 6
    assert store.get(grown.record.id).record == grown.record


def test_a_record_of_an_earlier_version_is_read_with_its_files(store: Store, tmp_path: Path) -> None:
    grown = pulled(store, tmp_path)
    path = grown.folder.parent / "model.json"
    data = json.loads(path.read_text())
    del data["architecture"]
    path.write_text(json.dumps(data))
    assert store.get("phi").record == grown.record


def test_a_record_without_its_architecture_still_finds_the_engine(store: Store, tmp_path: Path) -> None:
    grown = pulled(store, tmp_path)
    bare = Grown(msgspec.structs.replace(grown.record, architecture=UNSET), grown.folder)
    assert engines.choose(bare.record) == "torch"
    assert load_engine(bare, store).name.startswith("transformers ")


def test_a_model_that_torch_reads_keeps_it_and_can_be_given_to_transformers(
    store: Store, tmp_path: Path
) -> None:
    llama = store.pull(str(make_model(tmp_path / "llama", "llama")))
    assert engines.choose(llama.record) == "torch"
    other = store.get("transformers:llama")
    assert other.record.parents == (llama.record.id,)
    engine = load_engine(other, store)
    assert engine.name.startswith("transformers ")
    assert answer(engine) == answer(load_engine(store.get("float32:llama"), store))


def test_a_setting_of_the_torch_engine_is_refused_elsewhere(store: Store, tmp_path: Path) -> None:
    pulled(store, tmp_path)
    with raises(UsageError, "bad-usage"):
        store.get("kv4:phi")


def test_a_gguf_is_not_given_to_transformers_as_it_is(store: Store, tiny_gguf: Path) -> None:
    store.pull(str(tiny_gguf))
    with raises(UsageError, "bad-usage"):
        store.get(f"transformers:{tiny_gguf.stem}")
