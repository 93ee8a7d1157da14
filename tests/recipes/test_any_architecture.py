"""Children of architectures that the fast engine lacks: every recipe makes one, or says what would work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from heredity.core.errors import Refused, Unavailable, UsageError
from heredity.formats.safetensors_io import read_all
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.distill import Distill
from heredity.recipes.finetune import Finetune
from heredity.recipes.lora import Lora
from heredity.recipes.merge import Merge
from heredity.recipes.merge_adapter import MergeAdapter
from heredity.recipes.prune import Prune
from heredity.recipes.quantize import Quantize
from heredity.train.data.chat import Data
from tests.support.architectures import make
from tests.support.errors import raises

DATA = Data.of("rows", [(f"the quick fox {i}", "jumps over a lazy dog") for i in range(8)])
FEW = {"steps": 3, "batch_size": 4, "dtype": "float32"}
TEXT = torch.tensor([[5, 9, 33, 71, 14, 8]])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def pulled(store: Store, tmp_path: Path, name: str, **settings: object) -> Grown:
    return store.pull(str(make(tmp_path / name, name, **settings)))


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=TEXT, use_cache=False).logits


@pytest.mark.parametrize("name", ["gpt2", "phi3", "mixtral"])
def test_a_merged_adapter_is_the_adapter_over_its_base(store: Store, tmp_path: Path, name: str) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = pulled(store, tmp_path, name)
    child = store.grow_once(Lora(DATA, **FEW, lr=1e-2, rank=4), [base])
    assert child.record.format == "adapter"
    (out := tmp_path / "merged").mkdir()
    MergeAdapter("float32").apply([child, base], out)
    whole = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(whole, child.folder).eval()(input_ids=TEXT, use_cache=False)
    torch.testing.assert_close(logits(out), theirs.logits, atol=1e-3, rtol=1e-3)
    assert float((logits(out) - logits(base.folder)).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["gpt2", "olmo2"])
def test_a_tuned_student_learns_from_its_teacher(store: Store, tmp_path: Path, name: str) -> None:
    parent = pulled(store, tmp_path, name)
    tuned = store.grow_once(Finetune(DATA, **FEW, lr=1e-3), [parent])
    pruned = store.grow_once(Prune(2), [parent])
    student = store.grow_once(Distill(DATA, **FEW, lr=1e-3), [pruned, tuned])
    assert logits(student.folder).shape == logits(parent.folder).shape
    assert not torch.equal(logits(tuned.folder), logits(parent.folder))


@pytest.mark.parametrize(("name", "count"), [("gpt2", "n_layer"), ("bloom", "n_layer"), ("gpt_neox", "")])
def test_layers_are_found_by_whatever_name_they_have(
    store: Store, tmp_path: Path, name: str, count: str
) -> None:
    parent = pulled(store, tmp_path, name)
    child = store.grow_once(Prune(2), [parent])
    config = json.loads((child.folder / "config.json").read_text())
    assert config[count or "num_hidden_layers"] == 2
    assert logits(child.folder).isfinite().all()


def test_layers_of_several_kinds_are_not_renumbered(store: Store, tmp_path: Path) -> None:
    parent = pulled(store, tmp_path, "deepseek_v3")
    with raises(Refused, "refused", mentions=["first_k_dense_replace"]):
        store.grow_once(Prune(2), [parent])


def test_models_of_one_foundation_are_merged_and_others_are_not(store: Store, tmp_path: Path) -> None:
    parent = pulled(store, tmp_path, "gpt2")
    tuned = store.grow_once(Finetune(DATA, **FEW, lr=1e-3), [parent])
    merged = store.grow_once(Merge(), [parent, tuned])
    one, two, mean = (read_all(each.folder) for each in (parent, tuned, merged))
    name = "transformer.h.0.mlp.c_fc.weight"
    torch.testing.assert_close(mean[name], (one[name] + two[name]) / 2)
    (tmp_path / "wider").mkdir()
    wider = pulled(store, tmp_path / "wider", "gpt2", hidden_size=32, n_embd=32)
    with raises(UsageError, "bad-usage"):
        store.grow_once(Merge(), [parent, wider])


@pytest.mark.parametrize("name", ["gpt2", "falcon", "mixtral", "phi3"])
def test_the_matrices_of_any_architecture_are_rounded_on_a_grid(
    store: Store, tmp_path: Path, name: str
) -> None:
    parent = pulled(store, tmp_path, name)
    child = store.grow_once(Quantize("rtn4", group_size=32), [parent])
    before, after = read_all(parent.folder), read_all(child.folder)
    changed = {each for each in before if not torch.equal(before[each], after[each])}
    assert changed and not any("embed" in each or "wte" in each or "norm" in each for each in changed)
    assert not any(each.endswith(("gate.weight", "lm_head.weight")) for each in changed)
    assert (name == "mixtral") == any("experts" in each for each in changed)
    sample = min(changed)
    matrix = after[sample].t() if name == "gpt2" else after[sample]
    assert all(len(group.unique()) <= 16 for row in matrix for group in row.split(32))


def test_experts_in_one_tensor_are_refused(store: Store, tmp_path: Path) -> None:
    parent = pulled(store, tmp_path, "gpt_oss")
    with raises(Refused, "refused", mentions=["experts"]):
        store.grow_once(Quantize("rtn4", group_size=32), [parent])


def test_a_tuned_child_of_a_model_in_shards_has_no_index_of_other_shards(
    store: Store, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder = make(tmp_path / "sharded", "gpt2")
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    parent = store.pull(str(folder))
    child = store.grow_once(Finetune(DATA, **FEW, lr=1e-3), [parent])
    assert not (child.folder / "model.safetensors.index.json").exists()
    assert logits(child.folder).isfinite().all()


@pytest.mark.parametrize("name", ["gpt2", "phi3", "bloom"])
def test_gptq_is_nearer_than_rounding_in_any_architecture(store: Store, tmp_path: Path, name: str) -> None:
    data = Data.of("rows", [(f"the quick brown fox {i}", "jumps over a lazy dog " * 3) for i in range(24)])
    parent = pulled(store, tmp_path, name)
    child = store.grow_once(
        Quantize("gptq3", data=data, group_size=32, sequences=16, sequence_length=48, dtype="float32"),
        [parent],
    )
    said = child.record.notes["output error"]
    share, nearest = (float(part.split("%")[0].split()[-1]) for part in said.split(";"))
    assert share < nearest
    rounded = store.grow_once(Quantize("rtn3", group_size=32), [parent])
    changed = [
        {each for each, tensor in read_all(g.folder).items() if not torch.equal(tensor, before[each])}
        for before in [read_all(parent.folder)]
        for g in (child, rounded)
    ]
    assert changed[0] == changed[1]


def test_gptq_names_what_rounds_experts(store: Store, tmp_path: Path) -> None:
    parent = pulled(store, tmp_path, "mixtral")
    with raises(Unavailable, "unavailable", mentions=["rtn4"]):
        store.grow_once(Quantize("gptq4", data=DATA, group_size=32), [parent])
