"""Embeddings by a tiny random encoder of the store, and their fusion with BM25."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heredity.application.retrieval.build import build
from heredity.application.retrieval.index import FUSED, PassageIndex
from heredity.application.retrieval.models import open_embedder
from heredity.core.errors import Damaged, NotComparable, Unavailable, UsageError
from heredity.core.progress import PREPARE, Progress
from heredity.lineage.store import Store, load_engine
from heredity.lineage.types import Description, Grown
from tests.support.damage import flip_bit
from tests.support.errors import raises

torch = pytest.importorskip("torch")
WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK] heat pump tea green parcel refund the a of is how long""".split()  # noqa: SIM905


@dataclass(frozen=True)
class TinyEncoder:
    """A recipe for a random sentence encoder."""

    seed: int = 0
    pooling: str = "pooling_mode_mean_tokens"
    name: str = "tiny-encoder"
    modality: str = "text-embedding"
    words: tuple[str, ...] = tuple(WORDS)
    kind = "tiny"

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, "pooling": self.pooling}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        import transformers

        torch.manual_seed(self.seed)
        config = transformers.BertConfig(
            vocab_size=len(self.words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=64,
        )  # fmt: skip
        transformers.BertModel(config, add_pooling_layer=False).save_pretrained(out)
        (out / "vocab.txt").write_text("\n".join(self.words))
        transformers.BertTokenizerFast(vocab=str(out / "vocab.txt")).save_pretrained(out)
        (out / "1_Pooling").mkdir()
        (out / "1_Pooling" / "config.json").write_text(json.dumps({self.pooling: True}))
        (out / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
        return Description(self.name, "bert", "apache-2.0", "safetensors", modality=self.modality)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.grow(TinyEncoder(), [])
    return store


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, text in {"a": "the heat pump", "b": "green tea", "c": "the refund of a parcel"}.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_an_embedding_is_the_normed_mean_of_the_last_states(store: Store):
    import transformers

    folder = store.named("tiny-encoder").folder
    tokens = transformers.AutoTokenizer.from_pretrained(folder)("the heat pump", return_tensors="pt")
    with torch.no_grad():
        states = transformers.AutoModel.from_pretrained(folder)(**tokens).last_hidden_state[0].mean(0)
    wanted = (states / states.norm()).numpy()
    assert np.allclose(open_embedder("tiny-encoder", store).embed("the heat pump"), wanted, atol=1e-6)


def test_a_long_text_is_cut_and_an_empty_one_has_an_embedding(store: Store):
    embedder = open_embedder("tiny-encoder", store)
    assert np.array_equal(embedder.embed("tea " * 500), embedder.embed("tea " * 30))
    assert np.linalg.norm(embedder.embed("")) == pytest.approx(1, abs=1e-5)


def test_the_same_text_is_the_nearest_and_hybrid_adds_reciprocal_ranks(
    store: Store, docs: Path, tmp_path: Path
):
    build(docs, tmp_path / "index", embed="tiny-encoder", store=store)
    index = PassageIndex.open(tmp_path / "index", store)
    best = index.search("the heat pump", 3, "dense")
    assert best[0].chunk.path == "a.txt"
    assert best[0].score == pytest.approx(1, abs=1e-5)
    ranks = {
        method: [each.chunk.id for each in index.search("the heat pump", 3, method)]
        for method in ("bm25", "dense")
    }
    for found in index.search("the heat pump", 3):
        places = [ids.index(found.chunk.id) for ids in ranks.values() if found.chunk.id in ids]
        assert found.score == pytest.approx(sum(1 / (FUSED + 1 + place) for place in places))


def test_an_unchanged_chunk_is_not_embedded_again_and_the_bytes_are_those_of_a_new_build(
    store: Store, docs: Path, tmp_path: Path
):
    first = build(docs, tmp_path / "index", embed="tiny-encoder", store=store)
    (docs / "b.txt").write_text("a green pump")
    second = build(docs, tmp_path / "index", embed="tiny-encoder", store=store)
    assert (first.n_embedded, second.n_embedded) == (3, 1)
    fresh = build(docs, tmp_path / "fresh", embed="tiny-encoder", store=store)
    assert second.manifest.hash == fresh.manifest.hash


def test_embeddings_are_added_to_an_index_without_reading_again(store: Store, docs: Path, tmp_path: Path):
    plain = build(docs, tmp_path / "index")
    dense = build(docs, tmp_path / "index", embed="tiny-encoder", store=store)
    assert (dense.n_read, dense.n_embedded) == (0, 3)
    assert dense.manifest.hash != plain.manifest.hash
    assert build(docs, tmp_path / "index", store=store).manifest.hash == dense.manifest.hash  # kept
    assert build(docs, tmp_path / "index", embed="").manifest.hash == plain.manifest.hash


def test_an_index_shows_that_it_loads_its_model_and_writes(store: Store, docs: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    build(docs, tmp_path / "i", embed="tiny-encoder", store=store, watch=seen.append)
    steps = list(
        dict.fromkeys(each.phase or each.step for each in seen if each.phase or each.step != PREPARE)
    )
    assert steps == ["loading", "read", "embed", "writing"] and seen[0].model == "tiny-encoder"


def test_another_model_of_the_same_name_is_refused(store: Store, docs: Path, tmp_path: Path):
    build(docs, tmp_path / "index", embed="tiny-encoder", store=store)
    other = Store(tmp_path / "other")
    other.grow(TinyEncoder(seed=1), [])
    with raises(NotComparable, "not-comparable"):
        PassageIndex.open(tmp_path / "index", other).search("tea")


def test_bytes_that_changed_since_the_model_was_recorded_are_refused(store: Store) -> None:
    flip_bit(store.named("tiny-encoder").folder / "model.safetensors")
    with raises(Damaged, "damaged", ["tiny-encoder"]):
        open_embedder("tiny-encoder", store)


def test_a_folder_of_sentence_transformers_is_pulled_as_a_sentence_encoder(
    store: Store, tmp_path: Path
) -> None:
    for name, has_pooling in (("mine", True), ("bare", False)):
        TinyEncoder().apply([], tmp_path / name)
        if not has_pooling:
            shutil.rmtree(tmp_path / name / "1_Pooling")
    pulled, bare = (store.pull(str(tmp_path / name)).record for name in ("mine", "bare"))
    assert (pulled.modality, bare.modality) == ("text-embedding", "text")
    assert np.array_equal(
        open_embedder("mine", store).embed("tea"), open_embedder("tiny-encoder", store).embed("tea")
    )
    with raises(Unavailable, "unavailable", ["mine", "--embed mine"]):
        load_engine(store.named("mine"), store)


def test_what_is_no_sentence_encoder_is_refused(store: Store):
    store.grow(TinyEncoder(name="chat", modality="text", seed=2), [])
    with raises(UsageError, "bad-usage", ["chat"]):
        open_embedder("chat", store)
    store.grow(TinyEncoder(name="max", pooling="pooling_mode_max_tokens"), [])
    with raises(Damaged, "damaged", ["pooling_mode_max_tokens"]):
        open_embedder("max", store)
