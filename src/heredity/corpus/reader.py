"""A text corpus as a training loop reads it: documents by number, memory-mapped.

    corpus = Corpus.open(folder)
    corpus.n_documents("train"), corpus.n_tokens("train")
    corpus.document("train", 7)     # numpy array of its tokens, its end token included

Promises: a corpus is refused if its recipe, tokenizer or shards differ from its fingerprint.
Leaves to others: the order of documents (train/data/packed.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import UsageError
from heredity.corpus import integrity
from heredity.corpus.card import SCHEMA, Card, Cut, Shard, fingerprint

Tokens = NDArray[Any]  # uint16 or uint32


class _Mapped(NamedTuple):
    tokens: Tokens
    starts: NDArray[np.uint64]


class Corpus:
    """An opened corpus. `card`: its corpus.json."""

    def __init__(self, folder: Path, card: Card) -> None:
        self.folder, self.card = folder, card
        self._shards = {cut: [_map(folder, card, s) for s in card.shards if s.split == cut] for cut in _CUTS}
        self._before = {
            cut: np.cumsum([0, *(len(s.starts) - 1 for s in shards)]) for cut, shards in self._shards.items()
        }

    @classmethod
    def open(cls, folder: Path, verify: bool = True) -> Corpus:
        """The corpus in a folder. verify: hash every file; otherwise only sizes are compared.

        Raises UsageError if it does not exist, NotComparable for another schema, WrongHash for changed
        bytes.
        """
        card = read_card(folder)
        files = integrity.token_files(card.shards, card.dtype)
        integrity.check(folder, card, fingerprint(card), files, verify)
        return cls(folder, card)

    @property
    def fingerprint(self) -> str:
        """The origin that a model trained on it records."""
        return self.card.fingerprint

    @property
    def n_vocabulary(self) -> int:
        return self.card.tokenizer.vocabulary

    def n_documents(self, split: Cut) -> int:
        """Documents of a split, "train" or "validation"."""
        return int(self._before[split][-1])

    def n_tokens(self, split: Cut) -> int:
        """Tokens of a split."""
        return sum(len(shard.tokens) for shard in self._shards[split])

    def n_bytes(self, split: Cut) -> int:
        """Bytes of a split's text, for bits per byte."""
        return next(row.bytes for row in self.card.splits if row.split == split)

    def lengths(self, split: Cut) -> NDArray[np.int64]:
        """(document,) Tokens of each, for packing."""
        parts = [np.diff(shard.starts.astype(np.int64)) for shard in self._shards[split]]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def document(self, split: Cut, index: int) -> Tokens:
        """(token,) One document, read-only, mapped from disk. Raises IndexError."""
        if not 0 <= index < self.n_documents(split):
            raise IndexError(f"{split} has {self.n_documents(split)} documents, and no number {index}")
        place = int(np.searchsorted(self._before[split], index, "right")) - 1
        shard, at = self._shards[split][place], index - int(self._before[split][place])
        return shard.tokens[int(shard.starts[at]) : int(shard.starts[at + 1])]

    def split(self, split: Cut) -> Split:
        """The documents of a split as a training reads them."""
        return Split(self, split, self.lengths(split))


class Split(NamedTuple):
    """Documents by number. lengths: (document,) tokens of each."""

    corpus: Corpus
    name: Cut
    lengths: NDArray[np.int64]

    def tokens(self, number: int) -> Tokens:
        """(token,) One document."""
        return self.corpus.document(self.name, number)


_CUTS: tuple[Cut, ...] = ("train", "validation")


def read_card(folder: Path) -> Card:
    """corpus.json. Raises UsageError if it does not exist or is an image corpus."""
    about = integrity.about(folder)
    if about.kind == "images":
        raise UsageError(f'{folder} is a corpus of images: train on it with objective = "contrastive".')
    integrity.refuse_schema(folder, about.schema, SCHEMA)
    return integrity.decoded(folder / integrity.NAME, Card)


def _map(folder: Path, card: Card, shard: Shard) -> _Mapped:
    dtype, index = np.dtype(card.dtype).newbyteorder("<"), integrity.index_of(shard.path)
    return _Mapped(np.memmap(folder / shard.path, dtype, "r"), np.memmap(folder / index, "<u8", "r"))
