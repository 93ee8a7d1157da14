"""Tokens on disk: flat little-endian numbers, cut into files between documents, each with an index.

    train-00000.bin   uint16 or uint32, the tokens of one document after another
    train-00000.idx   uint64, the start of each document, and last the number of tokens

Promises: files are hashed while they are written.
Leaves to others: the choice of documents (build.py), and reading (reader.py).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heredity.core.files import explain_full_disk
from heredity.corpus.card import Cut, Dtype, Shard

if TYPE_CHECKING:
    from hashlib import _Hash

Ints = NDArray[np.int64]


def dtype_of(n_vocabulary: int) -> Dtype:
    """The smallest dtype that holds every token."""
    return "uint16" if n_vocabulary <= 1 << 16 else "uint32"


class ShardWriter:
    """Write one split's documents, in the given order."""

    def __init__(self, folder: Path, split: Cut, dtype: str, n_tokens: int) -> None:
        self._folder, self._split, self._most = folder, split, n_tokens
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._file: IO[bytes] | None = None
        self._hash: _Hash = hashlib.sha256()
        self._lengths: list[Ints] = []
        self._n = 0  # tokens in the open shard
        self.shards: list[Shard] = []
        self.documents = self.tokens = 0

    def add(self, tokens: NDArray[Any], lengths: Ints) -> None:
        """Add documents. tokens: one document after another; lengths: tokens of each."""
        ends = np.cumsum(lengths)
        at = done = 0
        while at < len(lengths):
            # A shard is full with the document that reaches its size.
            stop = int(np.searchsorted(ends, done + self._most - self._n)) + 1
            stop = min(stop, len(lengths))
            self._put(tokens[done : ends[stop - 1]], lengths[at:stop])
            at, done = stop, int(ends[stop - 1])
            if self._n >= self._most:
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
        """Finish the open shard, if there is one."""
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
