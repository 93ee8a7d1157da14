"""An image corpus for the training loop: pairs by number, memory-mapped.

    corpus = ImageCorpus.open(folder)
    images = corpus.split("train")
    images.image(7), images.caption(7), images.labels[7]

Promises: a corpus is refused if its recipe, tokenizer or shards differ from its fingerprint.
Leaves to others: the order of pairs (recipes/pretrain/contrastive.py).
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
from heredity.corpus.images.card import SCHEMA, ImageCard, fingerprint


class ImageCorpus:
    """An opened corpus. `card`: its corpus.json."""

    def __init__(self, folder: Path, card: ImageCard) -> None:
        self.folder, self.card = folder, card

    @classmethod
    def open(cls, folder: Path, verify: bool = True) -> ImageCorpus:
        """The corpus in a folder. verify: hash every file; otherwise only sizes are compared.

        Raises UsageError if it does not exist, NotComparable for another schema, WrongHash for changed
        bytes.
        """
        card = read_card(folder)
        integrity.check(folder, card, fingerprint(card), _files(card), verify)
        return cls(folder, card)

    @property
    def fingerprint(self) -> str:
        return self.card.fingerprint

    @property
    def n_vocabulary(self) -> int:
        return self.card.tokenizer.vocabulary

    def split(self, cut: Cut) -> ImageSplit:
        """The pairs of a split."""
        card, side = self.card, self.card.side
        shards = [shard for shard in card.shards if shard.split == cut]
        shape = (side, side, 3)
        maps = [np.memmap(self.folder / s.path, np.uint8, "r", shape=(s.pairs, *shape)) for s in shards]
        labels = [np.fromfile(self.folder / _classes(s.path), "<u2") for s in shards]
        captions = next((s.path for s in card.captions if s.split == cut), None)
        dtype = np.dtype(card.dtype).newbyteorder("<")
        empty = np.zeros(0, dtype)
        return ImageSplit(
            maps,
            np.concatenate([np.zeros(0, np.int64), *labels]).astype(np.int64),
            np.memmap(self.folder / captions, dtype, "r") if captions else empty,
            np.fromfile(self.folder / integrity.index_of(captions), "<u8").astype(np.int64)
            if captions
            else np.zeros(1, int),
        )


@dataclass(frozen=True)
class ImageSplit:
    """The pairs of a split, by number."""

    maps: Sequence[NDArray[np.uint8]]
    labels: NDArray[np.int64]  # (pair,) the class of each, 0 for none
    tokens: NDArray[Any]  # all captions, one after another
    starts: NDArray[np.int64]  # (pair + 1,) where each caption begins

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        return int(self.maps[0].shape[1])

    def image(self, number: int) -> NDArray[np.uint8]:
        """(side, side, 3) The image."""
        for shard in self.maps:
            if number < len(shard):
                pixels: NDArray[np.uint8] = shard[number]
                return pixels
            number -= len(shard)
        raise IndexError(number)

    def caption(self, number: int) -> NDArray[np.int64]:
        """(token,) The caption, with its end token."""
        return np.asarray(self.tokens[self.starts[number] : self.starts[number + 1]], np.int64)


def read_card(folder: Path) -> ImageCard:
    """corpus.json. Raises UsageError if it does not exist or is a text corpus."""
    about = integrity.about(folder)
    if about.kind != "images":
        raise UsageError(f'{folder} is a corpus of text: train on it with objective = "causal" or "masked".')
    integrity.refuse_schema(folder, about.schema, SCHEMA)
    return integrity.decoded(folder / integrity.NAME, ImageCard)


def is_of_images(folder: Path) -> bool:
    """Whether a folder holds an image corpus."""
    try:
        return integrity.about(folder).kind == "images"
    except HeredityError:
        return False


def _files(card: ImageCard) -> dict[str, integrity.BuiltFile]:
    """The files of all shards, by name."""
    files = integrity.token_files(card.captions, card.dtype)
    for shard in card.shards:
        files[shard.path] = integrity.BuiltFile(shard.sha256, shard.pairs * 3 * card.side**2)
        files[_classes(shard.path)] = integrity.BuiltFile(shard.classes_sha256, 2 * shard.pairs)
    return files


def _classes(path: str) -> str:
    return path.removesuffix(".rgb") + ".cls"
