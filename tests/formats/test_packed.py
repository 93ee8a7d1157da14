"""Packed weights: the exact numbers of each tool's format come back, and a folder of them answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file

from heredity import engines
from heredity.core.errors import Damaged, Unavailable
from heredity.core.records import Decoding, Message, Request
from heredity.formats.packed import packing_of, unpack
from heredity.lineage.store import Store, load_engine
from heredity.recipes.dequantize import unpack_folder
from tests.support import architectures, packed_models
from tests.support.errors import raises
from tests.support.model_sources import store as store
from tests.support.tiny_models import make_model

REQUEST = Request(0, (Message("user", "the quick brown fox"),), Decoding(8))


def packed(folder: Path, name: str) -> dict[str, torch.Tensor]:
    make_model(folder, "llama", num_hidden_layers=1)
    return packed_models.pack_folder(folder, name)


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: each for path in folder.glob("*.safetensors") for name, each in load_file(path).items()}


@pytest.mark.parametrize("name", sorted(packed_models.FORMATS))
def test_the_exact_numbers_of_a_format_come_back(name: str, tmp_path: Path) -> None:
    exact = packed(tmp_path / "packed", name)
    (tmp_path / "whole").mkdir()
    unpack_folder(tmp_path / "packed", tmp_path / "whole", "float32")
    found = all_tensors(tmp_path / "whole")
    assert found.keys() == exact.keys()
    for key, tensor in exact.items():
        assert torch.allclose(found[key], tensor.float(), atol=1e-6, rtol=1e-6), key
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"


def test_a_large_model_is_written_in_several_files_with_an_index(tmp_path: Path) -> None:
    exact = packed(tmp_path / "packed", "awq")
    (tmp_path / "whole").mkdir()
    unpack_folder(tmp_path / "packed", tmp_path / "whole", "float32", shard=1 << 14)
    index = json.loads((tmp_path / "whole" / "model.safetensors.index.json").read_text())["weight_map"]
    assert (
        len(set(index.values())) > 2
        and index.keys() == exact.keys() == all_tensors(tmp_path / "whole").keys()
    )
    for file in set(index.values()):
        assert set(load_file(tmp_path / "whole" / file)) == {name for name in index if index[name] == file}


def test_a_gptq_folder_is_pulled_and_answered_by_the_fast_engine(store: Store, tmp_path: Path) -> None:
    packed(tmp_path / "packed", "gptq")
    grown = store.pull(str(tmp_path / "packed"))
    assert grown.record.quantization == "gptq" and engines.choose(grown.record) == "torch"
    ready = store.ready(grown)
    assert ready.record.parents == (grown.record.id,) and ready.record.recipe.kind == "dequantize"
    assert not ready.record.quantization and store.whole(grown) == ready
    engine = load_engine(grown, store)
    assert engine.name.startswith("torch ")
    (reply,) = engine.reply([REQUEST])
    assert len(reply.tokens) == 8


def test_a_packed_model_of_another_architecture_is_answered_too(store: Store, tmp_path: Path) -> None:
    folder = architectures.make(tmp_path / "stablelm", "stablelm", num_hidden_layers=1)
    packed_models.pack_folder(folder, "pack-4")
    engine = load_engine(store.pull(str(folder)), store)
    assert engine.name.startswith("transformers ")
    (reply,) = engine.reply([REQUEST])
    assert reply.error is None and reply.tokens


@pytest.mark.parametrize("how", [{"quant_method": "aqlm"}, {"quant_method": "gptq", "bits": 3}])
def test_a_format_that_is_not_read_is_named_with_what_else_would(
    how: dict[str, object], store: Store, tmp_path: Path
) -> None:
    packed(tmp_path / "packed", "gptq")
    place = tmp_path / "packed" / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "quantization_config": how}))
    grown = store.pull(str(tmp_path / "packed"))
    with raises(Unavailable, "architecture-unsupported", mentions=[how["quant_method"]]):
        store.whole(grown)


def test_a_format_that_needs_a_library_names_it(store: Store, tmp_path: Path) -> None:
    packed(tmp_path / "packed", "gptq")
    place = tmp_path / "packed" / "config.json"
    how = {"quant_method": "aqlm", "in_group_size": 8, "out_group_size": 1, "num_codebooks": 1}
    place.write_text(json.dumps({**json.loads(place.read_text()), "quantization_config": how}))
    grown = store.pull(str(tmp_path / "packed"))
    assert engines.choose(grown.record) == "transformers"
    with raises(Unavailable, "package-missing", mentions=["aqlm"]):
        load_engine(grown, store)


@pytest.mark.parametrize("name", ["gptq", "awq", "pack-4", "nf4", "fp8"])
def test_tensors_that_do_not_fit_each_other_are_damaged(name: str, tmp_path: Path) -> None:
    packed(tmp_path / "packed", name)
    place = tmp_path / "packed" / "model.safetensors"
    tensors = load_file(place)
    base = "model.layers.0.mlp.down_proj"
    ending = {"gptq": "scales", "awq": "qzeros", "pack-4": "weight_shape", "nf4": "weight.absmax"}
    key = f"{base}.{ending.get(name, 'weight_scale_inv')}"
    tensors[key] = tensors[key][:1].clone() if name != "fp8" else tensors[key].repeat(3, 1)
    save_file(tensors, place, {"format": "pt"})
    (tmp_path / "whole").mkdir()
    with raises(Damaged, "damaged", mentions=[base]):
        unpack_folder(tmp_path / "packed", tmp_path / "whole", "bfloat16")


@pytest.mark.parametrize("key", ["blocksize", "nested_blocksize"])
@pytest.mark.parametrize("number", [0, -1, 2**40, 1e400])
def test_the_size_of_a_block_allocates_nothing(key: str, number: float) -> None:
    state = {"blocksize": 64, "nested_blocksize": 1, "nested_offset": 0.0, "shape": [8, 8], key: number}
    data = bytearray(json.dumps(state).encode())
    tensors = {
        "m.weight": torch.zeros(32, 1, dtype=torch.uint8),
        "m.weight.absmax": torch.zeros(1, dtype=torch.uint8),
        "m.weight.quant_map": torch.ones(16), "m.weight.nested_absmax": torch.ones(1),
        "m.weight.nested_quant_map": torch.ones(256),
        "m.weight.quant_state.bitsandbytes__nf4": torch.frombuffer(data, dtype=torch.uint8),
    }  # fmt: skip
    packing = packing_of({"quant_method": "bitsandbytes"}, tensors)
    if number == 2**40:  # one block is as large as its numbers
        assert unpack(packing, "m", tensors.__getitem__).shape == (8, 8)
        return
    with raises(Damaged, "damaged"):
        unpack(packing, "m", tensors.__getitem__)
