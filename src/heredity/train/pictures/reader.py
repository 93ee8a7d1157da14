"""A corpus of pictures as a training loop reads it: pairs by number, mapped from disk.

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

import msgspec
import numpy as np
from numpy.typing import NDArray

from heredity.errors import Damaged, NotComparable, UsageError, WrongHash
from heredity.store import hash_file
from heredity.train.corpus.card import Cut
from heredity.train.pictures.card import SCHEMA, PictureCard, fingerprint

NAME = "corpus.json"


class Pictures:
    """An opened corpus. `card` is what corpus.json says."""

    def __init__(self, folder: Path, card: PictureCard) -> None:
        self.folder, self.card = folder, card

    @classmethod
    def open(cls, folder: Path, verify: bool = True) -> Pictures:
        """The corpus in a folder. verify: hash every file again; without it sizes alone are compared.

        Raises UsageError where there is none, NotComparable for another schema, WrongHash for changed bytes.
        """
        card = read_card(folder)
        if (found := fingerprint(card)) != card.fingerprint:
            raise WrongHash(
                f"{folder / NAME} was changed: its fingerprint says {card.fingerprint}, its content {found}."
                " Build the corpus again from its recipe."
            )
        _check_sizes(folder, card)
        if verify:
            _verify(folder, card)
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
            np.fromfile(self.folder / _index(captions), "<u8").astype(np.int64)
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
    """corpus.json. Raises UsageError where there is none, or where it is one of text."""
    path = folder / NAME
    if not path.is_file():
        raise UsageError(
            f"{folder} is no corpus: it has no {NAME}. Build one: heredity corpus build RECIPE.toml"
        )
    raw = path.read_bytes()
    try:
        said = msgspec.json.decode(raw, type=dict[str, Any])
        if said.get("kind") != "images":
            raise UsageError(
                f'{folder} is a corpus of text: train on it with objective = "causal" or "masked".'
            )
        if said.get("schema") != SCHEMA:
            raise NotComparable(
                f"{path} has schema {said.get('schema')}, this heredity reads {SCHEMA}. Build it again."
            )
        return msgspec.json.decode(raw, type=PictureCard)
    except msgspec.DecodeError as error:
        raise Damaged(f"{path}: {error}. Build the corpus again from its recipe.") from None


def is_of_pictures(folder: Path) -> bool:
    """Whether the corpus in a folder is one of pictures; of what is none, False."""
    try:
        return bool(
            msgspec.json.decode((folder / NAME).read_bytes(), type=dict[str, Any]).get("kind") == "images"
        )
    except (OSError, msgspec.DecodeError):
        return False


def _files(card: PictureCard) -> dict[str, tuple[str, int]]:
    """Name -> hash and bytes of every shard."""
    found: dict[str, tuple[str, int]] = {}
    for shard in card.shards:
        found[shard.path] = (shard.sha256, shard.pairs * 3 * card.side**2)
        found[_classes(shard.path)] = (shard.classes_sha256, 2 * shard.pairs)
    for text in card.captions:
        found[text.path] = (text.sha256, text.tokens * np.dtype(card.dtype).itemsize)
        found[_index(text.path)] = (text.index_sha256, 8 * (text.documents + 1))
    return found


def _check_sizes(folder: Path, card: PictureCard) -> None:
    for name, (_, size) in _files(card).items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else -1
        if found != size:
            raise Damaged(f"{folder / name} has {found:,} bytes and not {size:,}. Build the corpus again.")


def _verify(folder: Path, card: PictureCard) -> None:
    wanted = {name: sha256 for name, (sha256, _) in _files(card).items()}
    wanted |= {"tokenizer.json": card.tokenizer.sha256, "tokenizer_config.json": card.tokenizer.config_sha256}
    for name, expected in wanted.items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{path} is missing. Build the corpus again from its recipe.")
        if (found := hash_file(path)) != expected:
            raise WrongHash(
                f"{path} is not what was built: SHA-256 {found[:16]}… and not {expected[:16]}…. Build the"
                " corpus again from its recipe."
            )


def _classes(path: str) -> str:
    return path.removesuffix(".rgb") + ".cls"


def _index(path: str) -> str:
    return path.removesuffix(".bin") + ".idx"
