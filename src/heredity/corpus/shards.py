"""Tokens on disk: flat little-endian numbers, cut into files between documents, each with an index.

    train-00000.bin   uint16 or uint32, tokens of documents end to end
    train-00000.idx   uint64, where each document begins in it, and at the end how many tokens there are

Promises: what is written is hashed as it is written.
Leaves to others: which documents
(build.py), and reading (reader.py).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heredity.core.files import explain_full_disk
from heredity.corpus.card import Cut, Shard

Ints = NDArray[np.int64]


class ShardWriter:
    """Writes one split's documents in the order in which they come."""

    def __init__(self, folder: Path, split: Cut, dtype: str, n_tokens: int) -> None:
        self._folder, self._split, self._room = folder, split, n_tokens
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._file: Any = None
        self._hash: Any = None
        self._lengths: list[Ints] = []
        self._n = 0  # tokens in the open shard
        self.shards: list[Shard] = []
        self.documents = self.tokens = 0

    def add(self, tokens: NDArray[Any], lengths: Ints) -> None:
        """Documents end to end, and the length of each."""
        ends = np.cumsum(lengths)
        at = done = 0
        while at < len(lengths):
            # A shard is full with the document that reaches its size.
            stop = int(np.searchsorted(ends, done + self._room - self._n)) + 1
            stop = min(stop, len(lengths))
            self._put(tokens[done : ends[stop - 1]], lengths[at:stop])
            at, done = stop, int(ends[stop - 1])
            if self._n >= self._room:
                self.close()

    def _put(self, tokens: NDArray[Any], lengths: Ints) -> None:
        if self._file is None:
            self._file = (self._folder / f"{self._name}.bin").open("wb")
            self._hash = hashlib.sha256()
        raw = tokens.astype(self._dtype, copy=False).tobytes()
        with explain_full_disk(self._folder, len(raw)):
            self._file.write(raw)
        self._hash.update(raw)
        self._lengths.append(lengths)
        self._n += len(tokens)
        self.documents += len(lengths)
        self.tokens += len(tokens)

    @property
    def _name(self) -> str:
        return f"{self._split}-{len(self.shards):05}"

    def close(self) -> None:
        """End the open shard, if there is one."""
        if self._file is None:
            return
        with explain_full_disk(self._folder, self._n):
            self._file.close()
        lengths = np.concatenate(self._lengths)
        index = np.concatenate(([0], np.cumsum(lengths))).astype("<u8").tobytes()
        with explain_full_disk(self._folder, len(index)):
            (self._folder / f"{self._name}.idx").write_bytes(index)
        hashes = (self._hash.hexdigest(), hashlib.sha256(index).hexdigest())
        self.shards.append(Shard(f"{self._name}.bin", self._split, len(lengths), self._n, *hashes))
        self._file, self._lengths, self._n = None, [], 0
