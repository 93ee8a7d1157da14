"""An adapter begins as no change, reads in PEFT to the same logits, and merged it says the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from heredity.core.errors import Unavailable
from heredity.core.records import Decoding, Message, Request
from heredity.engines.torch.engine import open_folder
from heredity.formats import weights
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.finetune import Finetune
from heredity.recipes.lora import Lora
from heredity.train.data import chat
from heredity.train.models import causal_lm
from tests.support.errors import raises
from tests.train.test_causal_lm import DOCUMENTS, TokenizedExample

ASK = Request(0, (Message("user", "the quick brown fox"),), Decoding(max_tokens=12))
TOKENS = torch.tensor([[5, 9, 33, 71, 14, 8]])


@pytest.fixture
def child(store: Store, parent: Grown, data_file: Path) -> Grown:
    training = {"steps": 6, "batch_size": 4, "lr": 2e-2, "dtype": "float32"}
    return store.grow_once(Lora(chat.read_data(data_file), **training, rank=4), [parent])


def test_an_adapter_that_has_learned_nothing_changes_nothing(tiny_llama: Path) -> None:
    net = causal_lm.load(tiny_llama, "float32")
    batch = causal_lm.collate([TokenizedExample(d) for d in DOCUMENTS])
    before = net.logits(net.hidden(batch)).detach()
    causal_lm.LowRankAdapters(rank=4).open(net, 0)
    assert torch.equal(net.logits(net.hidden(batch)).detach(), before)


def test_peft_reads_the_files_and_gives_the_engines_logits(child: Grown, parent: Grown) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(parent.folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, child.folder)(TOKENS).logits[0, -1]
    engine = open_folder(parent.folder, dtype="float32", adapter=child.folder)
    with torch.inference_mode():
        decoder = engine.decoder
        slots = decoder.slots(1, 64)
        ids = tuple(TOKENS[0].tolist())
        hidden = decoder.prefill(decoder.prefix(()), slots, 0, ids)[len(ids) - 1]
        ours = decoder.logits(hidden[None])[0]
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "setting", [{"velora_config": {"rank": 1}}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}]
)
def test_an_adapter_that_would_be_applied_otherwise_than_it_was_trained_is_refused(
    child: Grown, parent: Grown, tmp_path: Path, setting: dict[str, object]
) -> None:
    (copy := tmp_path / "adapter").mkdir()
    config = json.loads((child.folder / "adapter_config.json").read_text()) | setting
    (copy / "adapter_config.json").write_text(json.dumps(config))
    (copy / "adapter_model.safetensors").write_bytes(
        (child.folder / "adapter_model.safetensors").read_bytes()
    )
    with raises(Unavailable, "unavailable", mentions=list(setting)):
        open_folder(parent.folder, dtype="float32", adapter=copy)


def test_the_merged_model_says_what_base_and_adapter_say(store: Store, child: Grown, parent: Grown) -> None:
    merged = store.whole(child)
    assert merged.record.parents == (child.record.id, parent.record.id)
    over = open_folder(parent.folder, dtype="float32", adapter=child.folder)
    alone = open_folder(merged.folder, dtype="float32")
    plain = open_folder(parent.folder, dtype="float32")
    said = [next(iter(e.reply([ASK]))).tokens for e in (over, alone, plain)]
    assert said[0] == said[1] != said[2]


def test_adapters_share_one_resident_base(child: Grown, parent: Grown) -> None:
    one = open_folder(parent.folder, dtype="float32", adapter=child.folder)
    two = open_folder(parent.folder, dtype="float32", adapter=child.folder)
    assert one.decoder.weights.embedding is two.decoder.weights.embedding
    assert len(weights._RESIDENT) >= 1


def test_the_child_is_recorded_with_its_base_its_data_and_its_settings(child: Grown, parent: Grown) -> None:
    record = child.record
    assert record.format == "adapter" and record.parents == (parent.record.id,)
    settings = record.recipe.settings
    assert (settings["rank"], settings["steps"], settings["data"]["rows"]) == (4, 6, 24)
    assert not any("/" in str(value) for value in settings.values())
    paths = {file.path for file in record.files}
    assert {"adapter_model.safetensors", "adapter_config.json", "training.jsonl", "training.svg"} == paths
    assert json.loads((child.folder / "adapter_config.json").read_text())["use_rslora"] is True


def test_the_same_recipe_is_not_run_twice_and_leaves_no_checkpoint(
    store: Store, parent: Grown, data_file: Path
) -> None:
    recipe = Finetune(chat.read_data(data_file), steps=2, batch_size=2, dtype="float32")
    first, second = store.grow_once(recipe, [parent]), store.grow_once(recipe, [parent])
    assert first.record.id == second.record.id
    assert not any((store.root / "training").glob("*/*.safetensors"))
    assert not store.verify(first.record)
