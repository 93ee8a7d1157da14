"""An int8 child: near its parent, the same in any company, small, whole, and a parent of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from heredity.core.errors import Damaged, EngineFailure, Refused, Unavailable
from heredity.core.records import Decoding, Message, Request
from heredity.deploy import export
from heredity.engines.torch.engine import TorchEngine, open_folder
from heredity.formats import int8, weights
from heredity.formats.architectures import ARCHITECTURES as LAYERS
from heredity.formats.architectures import MATRIX
from heredity.formats.safetensors_io import read_all, read_safetensors, write_safetensors
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.prune import Prune
from heredity.recipes.quantize import Quantize
from tests.support.errors import raises
from tests.support.marks import or_proof
from tests.support.tiny_models import ARCHITECTURES, NEWER, make_model

ASK = Request(0, (Message("user", "the quick brown fox"),))
SAID = ["jumps over a lazy dog while seven wise owls watch"]
NAMES = ("gate", "up", "down")
NEAR = 0.1  # nats a token, of a random model
OF_EXPERTS = 0.3  # the same; a rounded row may be sent to another expert


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def parent(store: Store, tmp_path: Path) -> Grown:
    return store.pull(str(make_model(tmp_path / "tiny", "qwen2")))


def _logs(folder: Path) -> list[float]:
    return open_folder(folder, dtype="float32", is_probed=False).score(ASK, SAID)[0].logs


@pytest.mark.parametrize(
    "architecture",
    or_proof(
        sorted({*ARCHITECTURES, *NEWER} - {"llama4_text"}),
        ("gemma3_text", "llama", "mixtral", "phi3", "qwen2", "qwen3_moe"),
    ),
)
def test_an_int8_child_is_near_its_parent_and_smaller(
    store: Store, tmp_path: Path, architecture: str
) -> None:
    parent = store.pull(str(make_model(tmp_path / "tiny", architecture)))
    child = store.grow_once(Quantize("int8"), [parent])
    assert child.record.format == "int8" and child.record.parents == (parent.record.id,)
    assert child.record.recipe.settings == {"to": "int8"} and not store.verify(child.record)
    wide, whole = _logs(parent.folder), _logs(child.folder)
    names = LAYERS[weights.read_shape(parent.folder)[0].model_type]
    bound = OF_EXPERTS if names.experts else NEAR
    assert 0 < max(abs(a - b) for a, b in zip(wide, whole, strict=True)) < bound
    kinds = {name: each.dtype for name, each in read_safetensors(child.folder / "model.safetensors").items()}
    assert kinds["model.embed_tokens.weight"] == "F32"
    matrices = {name for name in kinds if name.endswith(".weight") and MATRIX.fullmatch(name)}
    assert {name for name, kind in kinds.items() if kind == "I8"} == matrices
    assert {name.split(".")[2] for name in matrices} == {"0", "1", "2"}
    for name in (*names.qkv, *names.out, *(() if names.experts else (*names.gate_up, *names.down))):
        assert f"model.layers.0.{name}.weight" in matrices
    sizes = [(each.folder / "model.safetensors").stat().st_size for each in (parent, child)]
    assert sizes[1] < 0.6 * sizes[0]


def test_experts_are_rounded_and_their_router_is_not(store: Store, tmp_path: Path) -> None:
    parent = store.pull(str(make_model(tmp_path / "tiny", "qwen3_moe")))
    child = store.grow_once(Quantize("int8"), [parent])
    kinds = {name: each.dtype for name, each in read_safetensors(child.folder / "model.safetensors").items()}
    assert {kinds[f"model.layers.0.mlp.experts.{i}.{n}_proj.weight"] for i in range(6) for n in NAMES} == {
        "I8"
    }
    assert kinds["model.layers.0.mlp.gate.weight"] == "F32"


def test_experts_in_one_tensor_are_not_rounded(store: Store, tmp_path: Path) -> None:
    parent = store.pull(str(make_model(tmp_path / "tiny", "llama4_text")))
    with raises(Refused, code="refused"):
        store.grow_once(Quantize("int8"), [parent])


def test_an_int8_answer_is_the_same_alone_in_company_and_in_any_order(store: Store, parent: Grown) -> None:
    child = store.grow_once(Quantize("int8"), [parent])
    texts = [f"the fox {'jumps over a lazy dog ' * (i % 5)}number {i}" for i in range(20)]
    asked = [Request(i, (Message("user", t),), Decoding(max_tokens=12)) for i, t in enumerate(texts)]
    engine = open_folder(child.folder)
    together = _said(engine, asked)
    assert _said(engine, asked[::-1]) == together
    assert {key: said for one in asked for key, said in _said(engine, [one]).items()} == together


def _said(engine: TorchEngine, asked: list[Request]) -> dict[int, tuple[int, ...]]:
    return {reply.key: tuple(reply.tokens) for reply in engine.reply(asked)}


def test_a_row_of_a_product_keeps_its_bits_whatever_lies_beside_it() -> None:
    stream = torch.Generator().manual_seed(3)
    weight, scale = int8.quantize(torch.randn(48, 96, generator=stream))
    multiply = int8.quantized_linear(weight, scale, torch.randn(48, generator=stream))
    rows = torch.randn(33, 96, generator=stream)
    rows[7] *= 1000  # under one scale for all rows it would take the digits of the others
    together = multiply(rows)
    assert all(torch.equal(multiply(rows[i : i + 1])[0], together[i]) for i in range(33))


def test_rounding_is_within_half_a_step_and_refuses_what_is_no_number() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    weight[3] = 0
    whole, scale = int8.quantize(weight)
    assert whole.dtype == torch.int8 and int(whole.abs().max()) == 127 and bool((whole[3] == 0).all())
    error = (int8.dequantize(whole, scale, torch.float32) - weight).abs()
    assert bool((error <= scale / 2 * 1.0001).all())
    weight[0, 0] = torch.nan
    with raises(Damaged, "damaged"):
        int8.quantize(weight)


def test_where_the_product_is_not_exact_the_weights_are_widened_and_the_name_says_so(
    store: Store, parent: Grown, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = store.grow_once(Quantize("int8"), [parent])
    assert int8.is_exact() is (int8.EXACT in open_folder(child.folder, is_probed=False).name)
    monkeypatch.setattr(int8, "is_exact", lambda: False)
    weights._RESIDENT.clear()
    engine = open_folder(child.folder, dtype="float32", is_probed=False)
    assert int8.WIDENED in engine.name and "float32" in engine.numerics
    wanted = open_folder(_widened(store, child), dtype="float32", is_probed=False).score(ASK, SAID)[0].logs
    assert engine.score(ASK, SAID)[0].logs == pytest.approx(wanted, abs=0.05)  # bf16 on the one side


def _widened(store: Store, child: Grown) -> Path:
    whole = store.whole(child)
    assert whole.record.recipe.kind == "dequantize" and whole.record.parents == (child.record.id,)
    return whole.folder


def test_a_child_of_an_int8_model_is_one_of_its_widened_form(store: Store, parent: Grown) -> None:
    child = store.grow_once(Quantize("int8"), [parent])
    pruned = store.grow_once(Prune(2), [child])
    assert [m.recipe.kind for m in store.ancestors(pruned.record)] == ["dequantize", "quantize", "pull"]
    name = "model.layers.0.mlp.up_proj.weight"
    before, after = (read_all(each.folder) for each in (child, pruned))
    wanted = int8.dequantize(before[name], before[name + int8.SCALE], torch.bfloat16)
    assert torch.equal(after[name], wanted)
    assert "quantization_config" not in json.loads((pruned.folder / "config.json").read_text())


def test_an_int8_child_is_exported_as_files_that_transformers_reads(store: Store, tmp_path: Path) -> None:
    model = store.pull(
        str(make_model(tmp_path / "tiny", "llama", hidden_size=128, max_position_embeddings=1024))
    )
    child = store.grow_once(Quantize("int8"), [model])
    done = export.export(store, child, "hf", tmp_path / "out")
    assert [p.n > 0 and not p.problem for p in done.parities] == [True]


def test_a_search_on_gradients_says_that_int8_has_none(store: Store, parent: Grown) -> None:
    engine = open_folder(store.grow_once(Quantize("int8"), [parent]).folder, is_probed=False)
    with raises(EngineFailure, "engine-failure", mentions=["int8"]):
        engine.suffix(ASK, "fox", "jumps", 1, 0)


def test_weights_that_another_method_rounded_are_not_read_as_if_they_were_whole(
    parent: Grown, tmp_path: Path
) -> None:
    config = json.loads((parent.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "fp8"}})
    )
    with raises(Unavailable, "architecture-unsupported", mentions=["fp8"]):
        weights.read_config(tmp_path)


def test_a_file_written_tensor_by_tensor_is_that_of_the_safetensors_package(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = {
        "b": torch.randn(3, 5).bfloat16(),
        "a": torch.tensor(2.5),
        "c": torch.ones(7, dtype=torch.int8),
    }
    shapes = {"a": ("F32", []), "b": ("BF16", [3, 5]), "c": ("I8", [7])}
    write_safetensors(tmp_path / "x.safetensors", shapes, tensors.__getitem__)
    assert set(read_safetensors(tmp_path / "x.safetensors")) == set(tensors)
    assert all(torch.equal(v, tensors[k]) for k, v in load_file(tmp_path / "x.safetensors").items())
    with raises(Damaged, "damaged"):
        write_safetensors(tmp_path / "y.safetensors", {**shapes, "c": ("I8", [8])}, tensors.__getitem__)
