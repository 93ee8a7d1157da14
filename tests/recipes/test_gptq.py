"""Children in 4 and 3 bits with a scale for each group: calibrated, and rounded to nearest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from heredity.core.errors import UsageError
from heredity.core.records import Message, Request
from heredity.engines.torch.engine import open_folder
from heredity.formats import gptq
from heredity.formats.gptq import GptqSettings, RoundingGrid, calibrate
from heredity.formats.safetensors_io import read_all
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes import recipe
from heredity.recipes.quantize import Quantize
from heredity.train.data.chat import Data
from tests.support.errors import raises
from tests.support.marks import or_proof
from tests.support.tiny_models import ARCHITECTURES, WORDS, make_model

ASK = Request(0, (Message("user", "the quick brown fox"),))
TEXTS = ["jumps over a lazy dog while seven wise owls watch"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def parent(store: Store, tmp_path: Path) -> Grown:
    return store.pull(str(make_model(tmp_path / "tiny", "qwen2")))


@pytest.fixture(scope="module")
def data() -> Data:
    rows = [(" ".join(WORDS[i % 7 :]), " ".join(WORDS[: 5 + i % 11])) for i in range(40)]
    return Data.of("calibration", rows)


def _logs(folder: Path) -> list[float]:
    return open_folder(folder, dtype="float32", is_probed=False).score(ASK, TEXTS)[0].logs


@pytest.mark.parametrize("architecture", or_proof(sorted(ARCHITECTURES), ("gemma3_text", "qwen2")))
def test_a_calibrated_child_changes_its_layers_outputs_less_than_a_plain_one(
    store: Store, tmp_path: Path, data: Data, architecture: str
) -> None:
    parent = store.pull(str(make_model(tmp_path / "tiny", architecture)))
    child = store.grow_once(Quantize("gptq3", data, group_size=32, dtype="float32"), [parent])
    assert child.record.format == "safetensors" and not store.verify(child.record)
    stream = torch.randint(3, 40, (20, 128), generator=torch.Generator().manual_seed(2)).tolist()
    tokens = [tuple(each) for each in stream]
    found = calibrate(parent.folder, tokens, 4, GptqSettings(RoundingGrid(3, 32)), "float32")
    assert len(found.errors) == 3 * 4 and 0 < found.mean_error.gptq < 0.9 * found.mean_error.nearest
    before, after = read_all(parent.folder), read_all(child.folder)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj.weight" in name}
    assert max(abs(a - b) for a, b in zip(_logs(parent.folder), _logs(child.folder), strict=True)) > 0


def test_each_group_of_a_child_lies_on_its_grid(store: Store, parent: Grown, data: Data) -> None:
    for made in (Quantize("gptq3", data, group_size=32, dtype="float32"), Quantize("rtn3", group_size=32)):
        weights = read_all(store.grow_once(made, [parent]).folder)
        for group in weights["model.layers.1.mlp.down_proj.weight"].split(32, dim=1):
            assert max(len(set(row.tolist())) for row in group) <= 8


def test_a_child_without_calibration_is_its_parent_rounded_to_nearest(store: Store, parent: Grown) -> None:
    child = store.grow_once(Quantize("rtn4", group_size=32), [parent])
    assert child.record.recipe.settings == {"to": "rtn4", "group_size": 32}
    name = "model.layers.0.mlp.up_proj.weight"
    before, after = (read_all(each.folder)[name] for each in (parent, child))
    assert torch.equal(after, gptq.round_to_nearest(before, RoundingGrid(4, 32)))
    assert "not smaller" in child.record.notes["weights"]


def test_the_second_layer_is_calibrated_on_what_the_rounded_first_one_gives(
    store: Store, parent: Grown, data: Data
) -> None:
    """Its Hessian is that of the child's own first layer, not of the parent's."""
    from transformers import AutoModelForCausalLM

    tokens = [tuple(range(3 + 40 * i, 43 + 40 * i)) for i in range(5)]
    grid = RoundingGrid(3, 32)
    found = calibrate(parent.folder, [*tokens, tokens[0]], 1, GptqSettings(grid), "float32").weights
    model = AutoModelForCausalLM.from_pretrained(parent.folder, dtype=torch.float32)
    first = {name: each for name, each in found.items() if ".layers.0." in name}
    model.load_state_dict(first, strict=False)
    hessian = torch.zeros(64, 64)
    with torch.no_grad():
        for each in tokens:
            x = model(torch.tensor([each]), output_hidden_states=True).hidden_states[1]
            x = model.model.layers[1].input_layernorm(x)[0]
            hessian += 2 * x.T @ x
        names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
        whole = torch.cat([model.get_parameter(name).float() for name in names])
        wanted = gptq.gptq(whole, hessian, grid).weight
    assert torch.allclose(torch.cat([found[name] for name in names]), wanted, atol=1e-3)


def test_the_record_says_where_the_damping_was_raised(store: Store, parent: Grown, data: Data) -> None:
    """The same few words again and again: a Hessian of low rank, which 1e-9 of its mean does not mend."""
    same = Data.of("same", [("the fox", "jumps")] * 60)
    raised = Quantize("gptq4", same, group_size=32, damp=1e-9, sequence_length=16, dtype="float32")
    note = store.grow_once(raised, [parent]).record.notes["damping"]
    assert note.startswith("1e-09 of the mean diagonal; raised to up to ") and " of 12 Hessians" in note
    enough = store.grow_once(Quantize("gptq4", data, group_size=32, damp=0.05, dtype="float32"), [parent])
    assert enough.record.notes["damping"] == "0.05 of the mean diagonal, in all 12 Hessians"


def test_the_same_data_gives_the_same_child_and_other_settings_another(
    store: Store, parent: Grown, data: Data
) -> None:
    made = Quantize("gptq4", data, group_size=32, dtype="float32")
    child = store.grow_once(made, [parent])
    assert store.grow(made, [parent]).record.id == child.record.id
    assert child.record.recipe.settings["data"]["digest"] == data.digest
    ordered = store.grow_once(
        recipe("quantize", to="gptq4", data=data, group_size=32, act_order=False), [parent]
    )
    assert ordered.record.id != child.record.id


def test_what_a_type_does_not_use_or_lacks_is_refused(store: Store, parent: Grown, data: Data) -> None:
    for settings, key in (
        ({"to": "q4_0", "data": data}, "data"),
        ({"to": "q4_0", "group_size": 64}, "group_size"),
        ({"to": "rtn4", "damp": 0.1}, "damp"),
        ({"to": "gptq4", "data": data, "damp": 0.0}, "damp"),
        ({"to": "gptq4", "data": data, "sequences": 0}, "sequences"),
    ):
        with raises(UsageError, "bad-setting", mentions=[key]):
            Quantize(**settings)  # type: ignore[arg-type]
    with raises(UsageError, "missing-key", mentions=["gptq4"]):
        Quantize("gptq4")
    with raises(UsageError, "bad-usage"):
        store.grow_once(Quantize("gptq4", Data.of("few", [("the fox", "jumps")])), [parent])


def test_the_settings_of_the_older_types_are_recorded_as_before() -> None:
    assert Quantize("q4_0").settings() == {"to": "q4_0"}
    assert json.dumps(Quantize("int8").settings()) == '{"to": "int8"}'
