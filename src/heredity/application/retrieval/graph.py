"""The nearest embeddings of a large index by a graph (usearch), without a comparison with each of them.

Promises: on one kind of processor the same embeddings give the same graph, since one thread makes it. An
index of at most EXACT passages has none: its search compares all.
Leaves to others: comparing the embeddings that a graph finds once more, exactly (index.py).

Source: HNSW, Malkov and Yashunin 2018 (1603.09320).
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from heredity.application.retrieval.dense import Floats
from heredity.core.errors import Unavailable, how_to_install

EXACT = 100_000  # passages that are compared one by one
CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 16, 128, 512


def has_usearch() -> bool:
    """Whether graphs can be made and read."""
    try:
        _usearch()
    except Unavailable:
        return False
    return True


def write_graph(vectors: Floats, path: Path) -> None:
    """Write the graph of these embeddings (passage, hidden), of length 1 each. Raises Unavailable."""
    made = _usearch().Index(
        ndim=vectors.shape[1],
        metric="ip",
        dtype="f32",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
    )
    made.add(np.arange(len(vectors)), vectors, threads=1)
    made.save(str(path))


class NearGraph:
    """A graph on disk. Raises Unavailable without usearch, ValueError for a file of another size."""

    def __init__(self, path: Path, n: int) -> None:
        found = _usearch().Index.restore(str(path))
        if found is None or len(found) != n:
            raise ValueError(f"it has {0 if found is None else len(found)} passages, not {n}")
        found.expansion_search = EXPANSION_SEARCH
        self._graph = found

    def nearest(self, asked: Floats, n: int) -> npt.NDArray[np.intp]:
        """About the `n` passages that are nearest to an embedding, in no order."""
        return np.asarray(self._graph.search(asked, n, threads=1).keys, np.intp)


def _usearch() -> ModuleType:
    try:
        import usearch.index
    except ImportError:
        raise Unavailable(
            "The embeddings of this index are searched by usearch, which is not installed. "
            f"{how_to_install('usearch')}, or search by bm25."
        ) from None
    module: ModuleType = usearch.index
    return module
