"""model2vec and sentence-transformers compute the same with our static models, and we with model2vec's.

    PYTHONPATH=$PWD/src:LIBRARIES pytest -m proof tests/recipes/test_static_peers.py

LIBRARIES is a folder of `pip install --target` with model2vec, scikit-learn and sentence-transformers. A test
is skipped without its package.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import heredity as h
from heredity.application.retrieval.models import open_embedder
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.static import Static
from tests.application.retrieval.test_dense import WORDS, TinyEncoder

pytestmark = pytest.mark.proof
TEXTS = ["the heat pump", "green tea", "how long is the refund of a parcel", "tea " * 700 + "heat", ""]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def encoder(store: Store) -> Grown:
    return store.grow(TinyEncoder(words=(*WORDS, "[unused0]", "##s")), [])


@pytest.fixture
def child(store: Store, encoder: Grown) -> Grown:
    return store.grow_once(Static(dims=6, name="child"), [encoder])


def test_model2vec_loads_the_child_and_computes_its_embeddings(store: Store, child: Grown) -> None:
    model2vec = pytest.importorskip("model2vec")
    found = model2vec.StaticModel.from_pretrained(child.folder).encode(TEXTS)
    assert found == pytest.approx(open_embedder("child", store).embed_all(TEXTS), abs=1e-6)


def test_sentence_transformers_loads_the_child_and_computes_its_embeddings(
    store: Store, child: Grown
) -> None:
    library = pytest.importorskip("sentence_transformers")
    texts = [TEXTS[0], TEXTS[1], TEXTS[2]]  # it has no max_length
    found = library.SentenceTransformer(str(child.folder), device="cpu").encode(texts)
    assert found == pytest.approx(open_embedder("child", store).embed_all(texts), abs=1e-6)


@pytest.mark.parametrize(
    ("dtype", "n_clusters", "error"),
    [("float32", None, 1e-6), ("float16", None, 2e-3), ("int8", None, 1e-6), ("float32", 5, 1e-6)],
)
def test_what_model2vec_saves_gives_its_embeddings(
    store: Store, child: Grown, tmp_path: Path, dtype: str, n_clusters: int | None, error: float
) -> None:
    model2vec = pytest.importorskip("model2vec")
    if n_clusters:
        pytest.importorskip("sklearn")
    other = model2vec.StaticModel.from_pretrained(
        child.folder, quantize_to=dtype, vocabulary_quantization=n_clusters
    )
    other.save_pretrained(tmp_path / "saved")
    assert h.adopt(str(tmp_path / "saved"), child, store).record.parents == (child.record.id,)
    found = open_embedder("saved", store).embed_all(TEXTS)
    assert found == pytest.approx(other.encode(TEXTS), abs=error)
    assert np.linalg.norm(found[:-1], axis=1) == pytest.approx(1, abs=1e-6)


def test_vectors_are_those_that_model2vec_distils(store: Store, encoder: Grown) -> None:
    pytest.importorskip("skeletoken")
    distill = pytest.importorskip("model2vec.distill")
    import transformers

    network = transformers.AutoModel.from_pretrained(encoder.folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder.folder)
    other = distill.distill_from_model(network, tokenizer, pca_dims=None, sif_coefficient=None, device="cpu")
    own = open_embedder(store.grow_once(Static(dims=0, sif=0), [encoder]).record.name, store)
    texts = [word for word in WORDS if word.isalpha()]
    assert own.embed_all(texts) == pytest.approx(other.encode(texts), abs=2e-3)
