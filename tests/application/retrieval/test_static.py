"""Embeddings by a static model: those of its tokens, in any company, wherever an embedding model serves."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heredity.application.retrieval.build import build
from heredity.application.retrieval.index import PassageIndex
from heredity.application.retrieval.models import StaticEmbedder, open_embedder
from heredity.core.errors import Damaged, Unavailable, UsageError
from heredity.lineage.store import Store, load_engine
from tests.support.errors import raises
from tests.support.static_models import WORDS, vectors, write_static

pytest.importorskip("tokenizers")
VECTORS = vectors()
OF = dict(zip(WORDS, VECTORS, strict=True))


def pulled(folder: Path, name: str = "words", **settings: Any) -> StaticEmbedder:
    """The embedder of a model that was written and pulled."""
    store = Store(folder / "store")
    store.pull(str(write_static(folder / name, **settings)))
    found = open_embedder(name, store)
    assert isinstance(found, StaticEmbedder)
    return found


def normed(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values)


def test_an_embedding_is_the_normed_mean_of_its_tokens_vectors(tmp_path: Path) -> None:
    found = pulled(tmp_path).embed("the heat pump")
    assert found == pytest.approx(normed((OF["the"] + OF["heat"] + OF["pump"]) / 3), abs=1e-6)
    assert found.dtype == np.float32 and found.shape == (6,)


def test_a_mapping_names_rows_and_weights_are_factors(tmp_path: Path) -> None:
    rows, weights = np.array([0, 1, 1, *[2] * (len(WORDS) - 3)]), vectors(len(WORDS), 1, seed=1)[:, 0]
    model = pulled(tmp_path, embeddings=VECTORS[:3], tensors={"mapping": rows, "weights": weights})
    wanted = normed(weights[1] * VECTORS[1] + weights[2] * VECTORS[1] + weights[3] * VECTORS[2])
    assert model.embed("heat pump tea") == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_vectors_of_any_width_are_read(tmp_path: Path, dtype: type[np.generic]) -> None:
    stored = (VECTORS * 40).astype(dtype)
    wanted = normed(stored[3].astype(np.float64) + stored[4].astype(np.float64))
    assert pulled(tmp_path, embeddings=stored).embed("tea green") == pytest.approx(wanted, abs=1e-6)


def test_equal_text_has_an_equal_embedding_in_any_company(tmp_path: Path) -> None:
    model, draw = pulled(tmp_path), np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS[1:], n)) for n in draw.integers(0, 90, 120)]
    alone = np.stack([model.embed(text) for text in texts])
    for size in (1, 7, 64, 120):
        order = draw.permutation(len(texts))
        for start in range(0, len(texts), size):
            some = order[start : start + size]
            assert np.array_equal(model.embed_all([texts[i] for i in some]), alone[some])


def test_what_the_tokenizer_does_not_know_is_not_read(tmp_path: Path) -> None:
    model = pulled(tmp_path)
    assert np.array_equal(model.embed("tea zebra green"), model.embed("tea green"))
    assert not model.embed("").any() and not model.embed("zebra").any()
    assert np.array_equal(model.embed_all(["zebra", "tea", ""])[1], model.embed("tea"))
    assert np.array_equal(model.embed("tea \ud800"), model.embed("tea"))


@pytest.mark.parametrize(
    ("settings", "n_read"), [({"max_length": 3}, 3), ({}, 512), ({"max_length": None}, 1000)]
)
def test_the_end_of_a_text_beyond_max_length_is_not_read(
    tmp_path: Path, settings: dict[str, Any], n_read: int
) -> None:
    model = pulled(tmp_path, config=settings)
    words = ["tea"] * n_read + ["heat"] * (1000 - n_read)
    assert np.array_equal(model.embed(" ".join(words)), model.embed(" ".join(words[:n_read])))
    assert n_read == 1000 or not np.array_equal(model.embed("tea heat"), model.embed("tea"))
    assert model.count(" ".join(words)) == 1000
    long = "tea " * 5000 + "heat " * 5000  # of which only the beginning is tokenized
    assert model.n_tokens > 5000 or np.allclose(model.embed(long), model.embed("tea"), atol=1e-6)


def test_a_static_model_is_pulled_as_an_embedding_model_and_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "transformers"):  # neither is needed
        monkeypatch.setitem(sys.modules, name, None)
    model = pulled(tmp_path)
    record, store = model.model, Store(tmp_path / "store")
    assert (record.modality, record.family, record.format) == ("text-embedding", "model2vec", "safetensors")
    (tmp_path / "docs").mkdir()
    for name, text in {"a": "the heat pump", "b": "green tea", "c": "the refund of a parcel"}.items():
        (tmp_path / "docs" / f"{name}.txt").write_text(text)
    built = build(tmp_path / "docs", tmp_path / "index", embed="words", store=store)
    index = PassageIndex.open(tmp_path / "index", store)
    assert built.n_embedded == 3
    best = index.search("the heat pump", 3, "dense")
    assert (best[0].chunk.path, best[0].score) == ("a.txt", pytest.approx(1, abs=1e-5))
    assert index.search("zebra", 3, "dense") == []
    assert [each.chunk.path for each in index.search("zebra parcel", 1)] == ["c.txt"]


def test_a_static_model_writes_no_text(tmp_path: Path) -> None:
    pulled(tmp_path)
    store = Store(tmp_path / "store")
    with raises(Unavailable, "unavailable", ["words", "--embed words"]):
        load_engine(store.named("words"), store)


def test_a_served_static_model_gives_the_same_and_refuses_what_it_would_cut(tmp_path: Path) -> None:
    from heredity.deploy.serve.embeddings import EmbeddingService

    model = pulled(tmp_path, config={"max_length": 4})
    service = EmbeddingService(model)
    found = asyncio.run(service.embed("the heat pump"))
    assert found.n_tokens == 3 and found.values == model.embed("the heat pump").tobytes()
    with raises(UsageError, "context-overflow", ["4"]):
        asyncio.run(service.embed("the refund of a parcel"))
    service.close()


def test_token_vectors_give_the_embedding_of_their_text(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    rows, weights = np.arange(len(WORDS))[::-1].copy(), vectors(len(WORDS), 1, seed=1)[:, 0]
    model = pulled(tmp_path, tensors={"mapping": rows, "weights": weights})
    texts = ("the heat pump", "tea zebra is green")
    given = model.token_vectors[torch.tensor([model.tokens(text) for text in texts])]
    for found, text in zip(model.embed_vectors(given).numpy(), texts, strict=True):
        assert found == pytest.approx(model.embed(text), abs=1e-6)
    assert len(model.tokenizer) == len(WORDS)


def test_a_tokenizer_that_cannot_read_every_text_is_refused_at_the_pull(tmp_path: Path) -> None:
    folder = write_static(tmp_path / "words")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"unk_token": "[UNK]"', '"unk_token": "[GONE]"'))
    with raises(Damaged, "damaged", ["words"]):
        Store(tmp_path / "store").pull(str(folder))
