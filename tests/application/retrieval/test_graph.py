"""The graph of a large index finds what a comparison with every embedding finds."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from heredity.application.retrieval import index
from heredity.application.retrieval.build import build
from heredity.application.retrieval.index import PassageIndex, write_manifest
from heredity.core.errors import Damaged
from heredity.core.files import hash_file
from heredity.core.records import FileHash, Retrieved
from heredity.lineage.store import Store
from tests.application.retrieval.test_dense import TinyEncoder
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # each test grows a small encoder

pytest.importorskip("usearch")
N, HIDDEN, CANDIDATES = 2000, 24, 74


def unit(n: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    found = np.random.default_rng(seed).standard_normal((n, HIDDEN)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_nearly_all_of_the_ten_nearest_are_among_the_candidates(tmp_path: Path) -> None:
    vectors, asked = unit(N, 0), unit(40, 1)
    index.write_graph(vectors, tmp_path / "graph")
    near = index.NearGraph(tmp_path / "graph", N)
    found = 0
    for each in asked:
        exact = np.argsort(-(vectors @ each))[:10]
        found += len(set(exact.tolist()) & set(near.nearest(each, CANDIDATES).tolist()))
    assert found / (10 * len(asked)) >= 0.98


def test_equal_embeddings_give_an_equal_graph(tmp_path: Path) -> None:
    for name in ("one", "other"):
        index.write_graph(unit(300, 0), tmp_path / name)
    assert hash_file(tmp_path / "one") == hash_file(tmp_path / "other")


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[PassageIndex, PassageIndex]:
    """An index with a graph, and one of the same documents without."""
    pytest.importorskip("torch")
    store = Store(tmp_path / "store")
    store.grow(TinyEncoder(), [])
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(12):
        words = " ".join(("heat", "pump", "tea", "green", "parcel", "refund")[number % 6 :])
        (docs / f"{number:02}.txt").write_text(f"the {words} of a " + "long " * (number % 4))
    build(docs, tmp_path / "exact", embed="tiny-encoder", store=store)
    monkeypatch.setattr(index, "EXACT", 3)
    build(docs, tmp_path / "graph", embed="tiny-encoder", store=store)
    return PassageIndex.open(tmp_path / "graph", store), PassageIndex.open(tmp_path / "exact", store)


def test_a_large_index_has_a_graph_and_finds_the_same(large: tuple[PassageIndex, PassageIndex]) -> None:
    with_graph, exact = large
    assert with_graph.manifest.file(with_graph.out, "graph") and not exact.manifest.file(exact.out, "graph")
    assert with_graph.hash != exact.hash
    for method in ("dense", "hybrid"):
        for query in ("green tea", "heat pump", "refund a parcel"):
            assert with_graph.search(query, 3, method) == exact.search(query, 3, method)


def test_planted_passages_are_found_next_to_a_graph(large: tuple[PassageIndex, PassageIndex]) -> None:
    from heredity.application.retrieval.index import IndexOverlay

    with_graph, exact = large
    planted = [Retrieved("p", "note-1.md:1", "green tea green tea")]
    found = IndexOverlay(with_graph, planted).search("green tea green tea", 3, "dense")
    assert found[0].chunk.id == "p"
    assert found == IndexOverlay(exact, planted).search("green tea green tea", 3, "dense")


def test_a_graph_that_this_store_did_not_write_is_made_again(
    large: tuple[PassageIndex, PassageIndex], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_graph, exact = large
    other, made = Store(tmp_path / "other"), list[Path]()
    other.grow(TinyEncoder(), [])
    write = index.write_graph
    monkeypatch.setattr(index, "write_graph", lambda vectors, path: (made.append(path), write(vectors, path)))
    for n_made in (1, 1):  # the second time it is known
        found = PassageIndex.open(with_graph.out, other).search("green tea", 3, "dense")
        assert found == exact.search("green tea", 3, "dense") and len(made) == n_made
    assert with_graph.search("green tea", 3, "dense") and len(made) == 1
    forged = with_graph.manifest.file(with_graph.out, "graph")
    assert forged is not None
    forged.write_bytes(b"its numbers would be trusted")
    hashed = FileHash(forged.name, forged.stat().st_size, hash_file(forged))
    files = tuple(hashed if each.path == forged.name else each for each in with_graph.manifest.files)
    write_manifest(with_graph.out, msgspec.structs.replace(with_graph.manifest, files=files))
    for n_made in (2, 3):
        found = PassageIndex.open(with_graph.out, with_graph._store).search("green tea", 3, "dense")
        assert found == exact.search("green tea", 3, "dense") and len(made) == n_made


def test_a_damaged_graph_is_refused(large: tuple[PassageIndex, PassageIndex]) -> None:
    with_graph, _ = large
    path = with_graph.manifest.file(with_graph.out, "graph")
    assert path is not None
    index.write_graph(unit(5, 0), path)
    with raises(Damaged, "damaged"):
        PassageIndex(with_graph.out, with_graph.manifest, with_graph._store).search("tea", 1, "dense")
    with raises(Damaged, "damaged"):
        PassageIndex.open(with_graph.out)
