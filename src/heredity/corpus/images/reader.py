"""An image corpus for the training loop: pairs by number, memory-mapped.

    pictures = Pictures.open(folder)
    pair = pictures.split("train")
    pair.picture(7), pair.caption(7), pair.labels[7]

Promises: a corpus whose recipe, tokenizer or shards are not those of its fingerprint is refused.
Leaves to others: the order of pairs (pairs.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import HeredityError, UsageError
from heredity.corpus import integrity
from heredity.corpus.card import Cut
from heredity.corpus.images.card import SCHEMA, PictureCard, fingerprint


class Pictures:
    """An opened corpus. `card` is what corpus.json says."""

    def __init__(self, folder: Path, card: PictureCard) -> None:
        self.folder, self.card = folder, card

    @classmethod
    def open(cls, folder: Path, verify: bool = True) -> Pictures:
        """The corpus in a folder. verify: hash every file again; otherwise only sizes are compared.

        Raises UsageError if it does not exist, NotComparable for another schema, WrongHash for changed
        bytes.
        """
        card = read_card(folder)
        integrity.refuse_changed(folder, card, fingerprint(card))
        files = _files(card)
        integrity.refuse_sizes(folder, {name: size for name, (_, size) in files.items()})
        if verify:
            integrity.refuse_bytes(folder, {name: sha for name, (sha, _) in files.items()}, card.tokenizer)
            integrity.refuse_inputs(folder, {row.name: row.inputs for row in card.sources})
        return cls(folder, card)

    @property
    def fingerprint(self) -> str:
        return self.card.fingerprint

    @property
    def n_vocabulary(self) -> int:
        return self.card.tokenizer.vocabulary

    def split(self, cut: Cut) -> Pairs:
        """The pairs of a split."""
        card, side = self.card, self.card.side
        shards = [shard for shard in card.shards if shard.split == cut]
        shape = (side, side, 3)
        maps = [np.memmap(self.folder / s.path, np.uint8, "r", shape=(s.pairs, *shape)) for s in shards]
        labels = [np.fromfile(self.folder / _classes(s.path), "<u2") for s in shards]
        captions = next((s.path for s in card.captions if s.split == cut), None)
        dtype = np.dtype(card.dtype).newbyteorder("<")
        empty = np.zeros(0, dtype)
        return Pairs(
            maps,
            np.concatenate([np.zeros(0, np.int64), *labels]).astype(np.int64),
            np.memmap(self.folder / captions, dtype, "r") if captions else empty,
            np.fromfile(self.folder / integrity.index_of(captions), "<u8").astype(np.int64)
            if captions
            else np.zeros(1, int),
        )


@dataclass(frozen=True)
class Pairs:
    """Pairs by number."""

    maps: Sequence[NDArray[np.uint8]]
    labels: NDArray[np.int64]  # (pairs,) the class of each, 0 for none
    tokens: NDArray[Any]  # captions end to end
    starts: NDArray[np.int64]  # (pairs + 1,)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        return int(self.maps[0].shape[1])

    def picture(self, number: int) -> NDArray[np.uint8]:
        """(side, side, 3)"""
        for shard in self.maps:
            if number < len(shard):
                found: NDArray[np.uint8] = shard[number]
                return found
            number -= len(shard)
        raise IndexError(number)

    def caption(self, number: int) -> NDArray[np.int64]:
        """(token,) with the token that ends it."""
        return np.asarray(self.tokens[self.starts[number] : self.starts[number + 1]], np.int64)


def read_card(folder: Path) -> PictureCard:
    """corpus.json. Raises UsageError if it does not exist or is a text corpus."""
    about = integrity.about(folder)
    if about.kind != "images":
        raise UsageError(f'{folder} is a corpus of text: train on it with objective = "causal" or "masked".')
    integrity.refuse_schema(folder, about.schema, SCHEMA)
    return integrity.decoded(folder / integrity.NAME, PictureCard)


def is_of_pictures(folder: Path) -> bool:
    """Whether a folder holds an image corpus."""
    try:
        return integrity.about(folder).kind == "images"
    except HeredityError:
        return False


def _files(card: PictureCard) -> dict[str, tuple[str, int]]:
    """Name -> hash and bytes of every shard."""
    found: dict[str, tuple[str, int]] = {}
    for shard in card.shards:
        found[shard.path] = (shard.sha256, shard.pairs * 3 * card.side**2)
        found[_classes(shard.path)] = (shard.classes_sha256, 2 * shard.pairs)
    for text in card.captions:
        found[text.path] = (text.sha256, text.tokens * np.dtype(card.dtype).itemsize)
        found[integrity.index_of(text.path)] = (text.index_sha256, 8 * (text.documents + 1))
    return found


def _classes(path: str) -> str:
    return path.removesuffix(".rgb") + ".cls"
