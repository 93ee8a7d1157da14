"""A base is trained further: on a corpus or on conversations, as a child with an edge, and its files stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from heredity.core.errors import UsageError
from heredity.lineage import graph
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.finetune import Finetune
from heredity.recipes.pretrain import recipe as pretrain
from heredity.train.data.chat import Data
from tests.recipes.test_pretrain import recipe as recipe
from tests.support.corpora import Build
from tests.support.corpora import built as built
from tests.support.corpora import shelf as shelf
from tests.support.corpora import small_corpus as small_corpus
from tests.support.errors import raises
from tests.support.tiny_models import make_model

LITTLE = {"tokens": 2048, "evaluations": 1}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def base(store: Store, recipe: Path) -> Grown:
    return store.grow(pretrain.read(recipe, {"tokens": 10_000}))


def losses(grown: Grown) -> list[float]:
    rows = (grown.folder / "training.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]


def test_a_base_is_continued_as_a_child_that_begins_where_it_ended(
    store: Store, base: Grown, recipe: Path
) -> None:
    made = pretrain.read(recipe, {**LITTLE, "base": base, "name": "further"})
    child = made.grow(store)
    assert child is not None and child.record.parents == (base.record.id,)
    assert losses(child)[0] < losses(base)[0] - 1.0, "it does not begin with random weights"
    models = store.models()
    (edge,) = graph.edges(models, {model.id: model for model in models})
    assert (edge.parent, edge.child, edge.recipe) == (base.record.id, child.record.id, "pretrain")
    settings = child.record.recipe.settings
    assert not {"size", "architecture", "width", "layers", "vocabulary"} & settings.keys()
    assert settings["corpus"] == made.text.fingerprint and settings["tokens"] == 2048
    assert (child.record.name, child.record.family) == ("further", base.record.family)
    again = pretrain.read(recipe, {**LITTLE, "base": base, "name": "further"}).grow(store)
    assert again is not None and again.record.id == child.record.id
    assert store.verify(base.record) == store.verify(child.record) == []


def test_a_base_that_was_pulled_is_continued_on_a_corpus_of_its_own_tokens(
    store: Store, tmp_path: Path, built: Build
) -> None:
    folder = make_model(tmp_path / "pulled", "qwen2", template=None, num_hidden_layers=2)
    base = store.pull(str(folder))
    built(tail=f'[tokenizer]\nfolder = "{folder.as_posix()}"\n[shards]\nvalidation = 0.2\n')
    made = pretrain.Pretrain(
        corpus=tmp_path / "out", base=base, context=32, batch_size=512, evaluations=1, dtype="float32",
        optimizer="adamw",
    )  # fmt: skip
    assert made.dial.tokens == made.text.n_tokens("train"), "one pass, unless tokens are given"
    assert made.dial.shape.layers == 2 and made.architecture == "qwen2"
    child = store.grow(made, base)
    assert child.record.parents == (base.record.id,) and losses(child)[-1] < losses(child)[0]
    assert child.record.name == "pulled-continued" and child.record.licence == base.record.licence
    words = [file for file in child.record.files if file.path == "tokenizer.json"]
    assert words == [file for file in base.record.files if file.path == "tokenizer.json"]


def test_what_the_base_sets_cannot_be_something_else(
    store: Store, base: Grown, recipe: Path, tmp_path: Path
) -> None:
    for given, code, mentions in (
        ({"layers": 3}, "bad-input", ["layers", 2, 3]),
        ({"context": 4096}, "bad-setting", ["context", "4,096"]),
        ({"architecture": "llama"}, "bad-setting", ["qwen3"]),
        ({"compile": "yes"}, "bad-setting", ["compile"]),
    ):
        with raises(UsageError, code, mentions=mentions):
            pretrain.read(recipe, {**LITTLE, **given, "base": base}).settings()
    other = store.pull(str(make_model(tmp_path / "other", "qwen3")))
    text = "".join(line for line in recipe.read_text().splitlines(True) if line[:4] not in SHAPE)
    recipe.write_text(text.replace("context = 64", "context = 32"))
    with raises(UsageError, "bad-input", mentions=["other", "[tokenizer]"]):
        pretrain.read(recipe, {**LITTLE, "base": other}).grow(store)
    with raises(UsageError, "bad-usage"):
        store.grow(pretrain.read(recipe, LITTLE), base)


SHAPE = ("hidd", "head", "kv_h", "ffn_", "laye")


def test_a_base_is_tuned_on_conversations_and_remains_its_parent(store: Store, base: Grown) -> None:
    data = Data.of("talk", [(f"What is {i} + 1?", f"It is {i + 1}.") for i in range(8)])
    tuned = store.grow_once(Finetune(data, steps=12, batch_size=4, lr=1e-2, dtype="float32"), [base])
    assert tuned.record.parents == (base.record.id,) and losses(tuned)[-1] < losses(tuned)[0]
    known = {model.id: model for model in store.models()}
    assert graph.is_base(base.record, known) and not graph.is_base(tuned.record, known)
