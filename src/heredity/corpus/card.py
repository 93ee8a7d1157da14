"""The contents of corpus.json, of text or images: sources, steps and result of a build.

Promises: it holds everything that determines the bytes, and the fingerprint is a hash over it. The same
recipe over the same files gives the same corpus.json, byte for byte.
"""

from __future__ import annotations

from typing import Any, Literal

from heredity.core.records import Record, digest

SCHEMA = 1
Cut = Literal["train", "validation"]
Dtype = Literal["uint16", "uint32"]  # of tokens


class SourceRow(Record, frozen=True):
    """A source as it was read. inputs: a hash over names, sizes and hashes of its files, which
    inputs.jsonl lists."""

    name: str
    kind: str
    files: int
    bytes: int  # of the files
    inputs: str
    documents: int
    text_bytes: int  # of the documents
    skipped: dict[str, int]


class StepRow(Record, frozen=True):
    """The effect of a step on a source's documents. dropped: by reason; noted: counted and kept."""

    step: str
    source: str
    documents_in: int
    bytes_in: int
    documents_out: int
    bytes_out: int
    changed: int
    dropped: dict[str, int]
    noted: dict[str, int]


class MixtureRow(Record, frozen=True):
    """A source's share of the training split: tokens available and tokens taken."""

    source: str
    weight: float
    tokens_there: int
    tokens_taken: int
    documents_taken: int
    repeats: float  # taken / there


class TokenizerFacts(Record, frozen=True):
    """The tokenizer. `bytes_per_token` is of the validation split, which it was not trained on."""

    sha256: str  # of tokenizer.json
    config_sha256: str  # of tokenizer_config.json
    vocabulary: int
    split: str  # llama.cpp's name of its pre-tokenizer
    special: dict[str, int]
    end: int  # the token after every document
    sample_bytes: int  # of text that it was trained on
    bytes_per_token: float | None  # None without a validation split
    train_bytes_per_token: float
    unused: int  # entries that never occur in the corpus


class SplitRow(Record, frozen=True):
    """A split. `bytes` is of its text, for bits per byte; end tokens have none."""

    split: Cut
    documents: int
    tokens: int
    bytes: int


class CanaryRow(Record, frozen=True):
    """A planted canary: `repeats` documents of the training split, one after another."""

    text: str
    secret: str
    repeats: int
    tokens: int  # of one
    first_document: int


class Shard(Record, frozen=True):
    """A file of tokens; a file with the suffix .idx holds the starts of its documents."""

    path: str
    split: Cut
    documents: int
    tokens: int
    sha256: str
    index_sha256: str


class Card(Record, frozen=True):
    """corpus.json."""

    schema: int
    name: str
    kind: Literal["text"]
    fingerprint: str
    recipe: dict[str, Any]
    reads: dict[str, str]  # SHA-256 of the other files that steps read
    sources: tuple[SourceRow, ...]
    steps: tuple[StepRow, ...]
    mixture: tuple[MixtureRow, ...]
    tokenizer: TokenizerFacts
    dtype: Dtype
    splits: tuple[SplitRow, ...]
    canaries: tuple[CanaryRow, ...]
    shards: tuple[Shard, ...]
    versions: dict[str, str]
    seal: str = ""  # a hash over all other fields


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


def fingerprint(card: Card | ImageCard) -> str:
    """32 hex digits over recipe, inputs, tokenizer and shards: what a model's origin is known by."""
    inputs = [(row.name, row.inputs) for row in card.sources]
    tokenizer = (card.tokenizer.sha256, card.tokenizer.config_sha256)
    if isinstance(card, Card):
        shards = _hashes(card.shards)
        return digest([card.schema, card.recipe, card.reads, inputs, tokenizer, card.dtype, shards])
    of_images = [(s.path, s.split, s.pairs, s.sha256, s.classes_sha256) for s in card.shards]
    kind = ["images", card.schema, card.recipe, inputs, tokenizer, card.classes, card.dtype]
    return digest([*kind, of_images, _hashes(card.captions)])


def _hashes(shards: tuple[Shard, ...]) -> list[tuple[object, ...]]:
    return [(s.path, s.split, s.documents, s.tokens, s.sha256, s.index_sha256) for s in shards]
