"""One model under two settings of the torch engine: an edge without new weights, named in every row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from heredity.cli import main
from heredity.core.errors import Unavailable, UsageError
from heredity.core.records import Message, Request
from heredity.engines.torch.engine import TorchEngine
from heredity.lineage.graph import Edge
from heredity.lineage.store import Store, load_engine
from heredity.lineage.types import Grown
from heredity.recipes.lora import Lora
from heredity.recipes.prune import Prune
from heredity.recipes.quantize import Quantize
from heredity.study import plan as plans
from heredity.train.data.chat import Data
from tests.support.cli import DESK
from tests.support.errors import raises
from tests.support.tiny_models import make_model

ASK = Request(0, (Message("user", "the quick brown fox jumps over a lazy dog " * 12),))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def tiny(store: Store, tmp_path: Path) -> Grown:
    return store.pull(str(make_model(tmp_path / "tiny", "llama", max_position_embeddings=1024)))


def _engine(store: Store, grown: Grown) -> TorchEngine:
    engine = load_engine(grown, store, is_batched=False)
    assert isinstance(engine, TorchEngine)
    return engine


@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_with_a_rounded_cache_is_a_child_with_the_same_files_and_other_numerics(
    store: Store, tiny: Grown, bits: int
) -> None:
    child = store.get(f"kv{bits}:tiny")
    assert store.get(f"kv{bits}:tiny") == child and child.record.name == f"kv{bits}:tiny"
    assert child.record.files == tiny.record.files and child.record.parents == (tiny.record.id,)
    assert (child.record.recipe.kind, child.record.recipe.settings) == ("kv_cache", {"bits": bits})
    plain, ours = _engine(store, tiny), _engine(store, child)
    assert f"kv int{bits}" in ours.numerics and f"kv int{bits}" in ours.name
    assert "kv" not in plain.numerics and "kv" not in plain.name
    far = [
        abs(a - b)
        for a, b in zip(
            *(e.score(ASK, [" from an old oak tree"])[0].logs for e in (plain, ours)), strict=True
        )
    ]
    assert max(far) > 0


def test_a_model_in_another_dtype_is_a_child_that_computes_in_it(store: Store, tiny: Grown) -> None:
    for dtype in ("float32", "bfloat16"):
        engine = _engine(store, store.get(f"{dtype}:tiny"))
        assert engine.numerics.startswith(f"torch {dtype} ") and engine.decoder.dtype == getattr(torch, dtype)


def test_a_gguf_is_dequantized_first_and_int8_stays_int8(store: Store, tiny: Grown) -> None:
    gguf = store.grow_once(Quantize("q8_0", name="small"), [tiny])
    child = store.get("kv4:small")
    assert child.record.name == "kv4:small" and child.record.format == "safetensors"
    assert [m.recipe.kind for m in store.ancestors(child.record)] == ["dequantize", "quantize", "pull"]
    whole = store.grow_once(Quantize("int8", name="whole"), [tiny])
    assert store.get("kv8:whole").record.format == "int8"
    assert "int8" in _engine(store, store.get("kv8:whole")).name and gguf.record.format == "gguf"
    assert whole.record.id in store.get("kv8:whole").record.parents


def test_what_has_no_such_setting_is_refused(store: Store, tiny: Grown) -> None:
    adapter = Lora(
        data=Data.of("rows", [("the fox", "jumps")]), steps=1, rank=2, name="tuned", dtype="float32"
    )
    store.grow_once(adapter, [tiny])
    for name in ("kv4:tuned", "kv4:scripted:careful", "kv4:kv8:tiny", "float32:kv4:tiny"):
        with raises(UsageError, "bad-usage", mentions=[name]):
            store.get(name)
    with raises(UsageError, "bad-usage", mentions=["reads gguf"]):
        store.get("llamacpp:tuned")
    with raises(Unavailable, "unavailable", mentions=["kv4:tiny"]):
        store.grow_once(Prune(2), [store.get("kv4:tiny")])


def test_a_study_has_both_and_an_edge_between_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    model = Store().pull(str(make_model(tmp_path / "tiny", "llama", max_position_embeddings=1024)))
    Store().grow_once(Quantize("q8_0", name="small"), [model])
    Path("desk.toml").write_text(DESK + "\n[decoding]\nmax_tokens = 2\n")
    names = ("small", "kv4:small", "float32:small")
    given = [part for name in names for part in ("--model", name)]
    ask = ["--application", "desk.toml", "--probes", "planted_secret/*-01", "--out", "study"]
    assert main(["study", *given, *ask]) in (0, 4)  # random weights: nearly every answer is unclear
    parent, rounded, wide = (Store().get(name).record.id for name in names)
    assert plans.read_plan(tmp_path / "study").edges == (
        Edge(parent, rounded, "kv_cache"), Edge(parent, wide, "dtype"),
    )  # fmt: skip
    rows = [json.loads(line) for line in Path("study/responses.jsonl").read_text("utf-8").splitlines()]
    engines = {row["model"]: row["engine"] for row in rows if "model" in row}
    assert "kv int4" in engines[rounded] and "float32" in engines[wide] and "kv" not in engines[parent]
    family = Store().family(Store().get("small").record)
    assert rounded in {each.id for each in family.asked} and wide in {each.id for each, _ in family.left_out}
