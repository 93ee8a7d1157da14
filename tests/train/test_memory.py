"""What does not fit into memory is refused before it begins, with what it needs and what to lower."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from heredity.core import host
from heredity.core.errors import OutOfMemory
from heredity.deploy import export
from heredity.engines.chat import Document
from heredity.lineage.store import Store
from heredity.lineage.types import Description, Grown
from heredity.recipes.finetune import Finetune
from heredity.recipes.lora import Lora
from heredity.train import loop
from heredity.train.data import chat
from heredity.train.data.chat import ConversationEncoder, TokenizedExample
from heredity.train.models import causal_lm
from heredity.train.models.causal_lm import FullFinetune
from heredity.train.models.causal_lm import LowRankAdapters as Adapters
from heredity.train.models.shapes import flops_per_token
from tests.support.errors import raises

QUICK = {"steps": 2, "batch_size": 4, "dtype": "float32"}


def test_a_training_that_does_not_fit_is_refused_with_numbers_and_leaves_nothing(
    store: Store, parent: Grown, data_file: Path
) -> None:
    data = chat.read_data(data_file)
    small = dict(**QUICK, memory=0.0001)
    with raises(OutOfMemory, "out-of-memory", mentions=["GiB", "masters", "0.00", 4, 1024]):
        store.grow_once(Finetune(data, **small), [parent])
    with raises(OutOfMemory, "out-of-memory", mentions=["batch_size"]):
        store.grow_once(Lora(data, **small), [parent])
    assert [model.id for model in store.models()] == [parent.record.id]
    assert not list((store.root / "tmp").glob("*/")) and not list(store.root.rglob("training.jsonl"))


def test_how_much_may_be_used_is_no_part_of_what_a_child_is(
    store: Store, parent: Grown, data_file: Path
) -> None:
    data = chat.read_data(data_file)
    child = store.grow_once(Finetune(data, **QUICK), [parent])
    assert "memory" not in child.record.recipe.settings
    again = store.grow_once(Finetune(data, **QUICK, memory=900.0), [parent])
    assert again.record.id == child.record.id


def test_more_examples_a_step_and_longer_ones_need_more_and_an_adapter_less(
    parent: Grown, data_file: Path
) -> None:
    net = causal_lm.load(parent.folder, "float32")
    examples = ConversationEncoder(parent.folder).prepare(chat.read_data(data_file).dialogues, 1024).examples

    def total(trainable: Any, kept: Sequence[Any], batch: int) -> int:
        return sum(loop.estimate_memory(net, trainable, "adamw", kept, batch).values())

    short = sorted(examples, key=lambda e: e.n_tokens)[:4]
    assert total(FullFinetune(), examples, 1) < total(FullFinetune(), examples, 8)
    assert total(FullFinetune(), short, 1) < total(FullFinetune(), examples, 1)
    assert total(Adapters(rank=2), examples, 8) < total(FullFinetune(), examples, 8)
    n = sum(each.numel() for each in net.model.parameters())
    parts = loop.estimate_memory(net, FullFinetune(), "adamw", examples, 1)
    assert (parts["masters"], parts["gradients"], parts["optimizer"]) == (4 * n, 4 * n, 8 * n)
    assert parts["weights"] == 4 * n
    adapters = loop.estimate_memory(net, Adapters(rank=2), "adamw", examples, 1)["masters"]
    assert adapters == 4 * sum(p.numel() for _, p in Adapters(rank=2).open(net, 0))


def test_the_operations_of_a_loaded_model_are_those_counted_by_hand(parent: Grown) -> None:
    shape = loop.shape_of_model(causal_lm.load(parent.folder, "float32"))
    attention = 64 * (4 + 2 + 2) * 16 + (4 * 16) * 64  # queries, keys and values; the output
    matrices = 3 * (attention + 3 * 64 * 96) + len_of_head(parent) * 64
    scores = 3 * 2 * (4 * 16) * 32  # per layer a query with the mean of 32 keys, and as many values
    assert flops_per_token(shape, 64) == 3 * 2 * (matrices + scores)


def len_of_head(parent: Grown) -> int:
    return int(json.loads((parent.folder / "config.json").read_text())["vocab_size"])


def test_the_memory_of_a_full_tuning_is_the_one_counted_by_hand() -> None:
    """A layer of Qwen2 with the vocabulary of Qwen2.5, whose logits and head are most of a step."""
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    config = {"model_type": "qwen2", "vocab_size": 151_936, "num_hidden_layers": 1, "pad_token_id": 0}
    net = causal_lm.from_config({**config, **shape, "tie_word_embeddings": True}, 0, "float32")
    document = Document(tuple(range(600)), (False,) + (True,) * 599)
    parts = loop.estimate_memory(net, FullFinetune(), "adamw", [TokenizedExample(document)] * 2, 2)
    n = 151_936 * 64 + 64 * 128 + 128 + 64 * 64 + 3 * 64 * 96 + 3 * 64  # tied; qkv with a bias; three norms
    assert [parts[each] for each in ("weights", "masters", "gradients", "optimizer")] == [
        4 * n, 4 * n, 4 * n, 8 * n
    ]  # fmt: skip
    norms = 3 * 4 * (64 + 1)
    layer = 4 * (2 * 64 + 64) + 4 * (2 * 64 + 2 * 32) + 4 * 4 + 4 * 4 * 96
    around = 2 * 4 * 16 + 16 + 4 * 64  # rotary positions, ids, the gradient at the head
    logits = 1024 * 151_936 * 4 * 3  # logits, log-probabilities, and their gradient
    assert parts["a step of 1,200 tokens"] == 1200 * (norms + layer + around) + logits + 4 * 151_936 * 64


def test_weights_that_are_loaded_are_no_reason_to_refuse() -> None:
    host.require_memory("It", {"weights": 100, "gradients": 50}, "", limit=150, held=100)
    with raises(OutOfMemory, "out-of-memory"):
        host.require_memory("It", {"weights": 100, "gradients": 50}, "", limit=149, held=100)
    there = host.available_memory()
    assert there is not None
    host.require_memory("It", {"weights": there, "gradients": 1}, "", held=there)


def test_a_recipe_that_runs_out_records_nothing(store: Store, parent: Grown) -> None:
    class Greedy:
        kind = "greedy"

        def settings(self) -> dict[str, Any]:
            return {}

        def apply(self, parents: Sequence[Grown], out: Path) -> Description:
            (out / "half").write_bytes(torch.empty(2**52).numpy().tobytes())
            raise AssertionError

    with raises(OutOfMemory, "out-of-memory", mentions=["greedy"]):
        store.grow_once(Greedy(), [parent])
    assert [model.id for model in store.models()] == [parent.record.id]


def test_an_export_that_does_not_fit_is_refused_and_leaves_nothing(
    store: Store, parent: Grown, tmp_path: Path
) -> None:
    with raises(OutOfMemory, "out-of-memory", mentions=["GiB"]):
        export.export(store, parent, "hf", tmp_path / "out", memory=1000)
    assert not (tmp_path / "out").exists()
