"""Passages next to an index, in a search as if they were in it: the index on disk stays as it is.

Promises: a search finds the same passages, in the same order, as in an index of all of them. An overlay has a
hash of its own.
Leaves to others: the passages (redteam/attacks/poisoned_index.py), and the index itself (index.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from heredity.application.retrieval.chunks import Chunk
from heredity.application.retrieval.dense import Floats
from heredity.application.retrieval.index import PassageIndex, opened
from heredity.core.records import Retrieved, digest


class IndexOverlay(PassageIndex):
    """An index with passages next to it, which come after its own chunks."""

    def __init__(self, base: PassageIndex, planted: Sequence[Retrieved]) -> None:
        # The parts of the base are shared, not read again.
        self.out, self.manifest, self.chunks, self._vectors = (
            base.out,
            base.manifest,
            base.chunks,
            base._vectors,
        )
        self._base, self._planted, self._update = base, planted, base._update

    @property
    def hash(self) -> str:
        """Names what a search can find: the index and the passages next to it."""
        return digest([self._base.hash, self._planted])

    def embed(self, text: str) -> Floats:
        """The embedding of a text by the model of the index. (hidden,)"""
        return self._base.embed(text)

    def _chunk(self, at: int) -> Chunk:
        if at < len(self.chunks):
            return self.chunks[at]
        found = self._planted[at - len(self.chunks)]
        return _PlantedChunk(found.chunk, found.citation, "", 1, 1, "line", found.text)

    def _term_scores(self, query: str) -> Floats:
        return self._base.term_counts.scores(query, [each.text for each in self._planted])

    def _similarities(self, asked: Floats, n: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        near, similarity = self._base._similarities(asked, n)
        own = (self._own_vectors.astype(np.float64) * asked.astype(np.float64)).sum(axis=1).round(6)
        return np.append(near, np.arange(len(own)) + len(similarity)), np.append(similarity, own)

    @cached_property
    def _own_vectors(self) -> Floats:
        """(passage, hidden)"""
        return np.stack([self.embed(each.text) for each in self._planted])


class _PlantedChunk(Chunk, frozen=True):
    """A passage next to the index: `path` is its citation."""

    @property
    def citation(self) -> str:
        return self.path


@lru_cache(maxsize=1024)
def overlay(out: Path, wanted: str, planted: tuple[Retrieved, ...]) -> IndexOverlay:
    """The overlay over the index at `out`, made once per process. Raises as `opened` does."""
    return IndexOverlay(opened(out, wanted), planted)


def index_with(out: Path, wanted: str, planted: tuple[Retrieved, ...]) -> PassageIndex:
    """The index at `out`, with these passages next to it if there are any. Raises as `opened` does."""
    return overlay(out, wanted, planted) if planted else opened(out, wanted)
