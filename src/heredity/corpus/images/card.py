"""The contents of corpus.json of an image corpus.

Promises: it holds everything that determines the bytes, and the fingerprint is a hash over it.
"""

from __future__ import annotations

from typing import Any, Literal

from heredity.core.records import Record, digest
from heredity.corpus.card import Cut, Dtype, Shard, TokenizerFacts

SCHEMA = 1


class ImageSourceRow(Record, frozen=True):
    """A source as it was read. inputs: a hash over its files, which inputs.jsonl lists."""

    name: str
    kind: str
    files: int
    bytes: int
    inputs: str
    pairs: int
    skipped: dict[str, int]


class PairRow(Record, frozen=True):
    """A split: its pairs, distinct captions, and tokens of all captions."""

    split: Cut
    pairs: int
    captions: int
    tokens: int


class ImageShard(Record, frozen=True):
    """A file of images (pairs, side, side, 3) uint8, and a file .cls with the class of each, uint16."""

    path: str
    split: Cut
    pairs: int
    sha256: str
    classes_sha256: str


class ImageCard(Record, frozen=True):
    """corpus.json. classes: their names, by number; the first is "", for an image without a class."""

    schema: int
    name: str
    kind: Literal["images"]
    fingerprint: str
    recipe: dict[str, Any]
    side: int
    fit: Literal["stretch", "crop"]
    background: int
    sources: tuple[ImageSourceRow, ...]
    classes: tuple[str, ...]
    tokenizer: TokenizerFacts
    dtype: Dtype
    splits: tuple[PairRow, ...]
    shards: tuple[ImageShard, ...]
    captions: tuple[Shard, ...]
    versions: dict[str, str]
    seal: str = ""  # a hash over all other fields


def fingerprint(card: ImageCard) -> str:
    """32 hex digits over recipe, inputs, tokenizer and shards."""
    inputs = [(row.name, row.inputs) for row in card.sources]
    tokenizer = (card.tokenizer.sha256, card.tokenizer.config_sha256)
    shards = [(s.path, s.split, s.pairs, s.sha256, s.classes_sha256) for s in card.shards]
    captions = [(s.path, s.split, s.documents, s.tokens, s.sha256, s.index_sha256) for s in card.captions]
    return digest(
        ["images", card.schema, card.recipe, inputs, tokenizer, card.classes, card.dtype, shards, captions]
    )
