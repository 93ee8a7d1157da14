"""A corpus on disk, of text or images: its shards and corpus.json, written, checked and read.

    train-00000.bin   uint16 or uint32, the tokens of one document after another, little-endian
    train-00000.idx   uint64, the start of each document, and last the number of tokens

    corpus = Corpus.open(folder)
    corpus.n_documents("train"), corpus.n_tokens("train")
    corpus.document("train", 7)     # numpy array of its tokens, its end token included

    images = ImageCorpus.open(folder).split("train")
    images.image(7), images.caption(7), images.labels[7]

Promises: files are hashed while they are written, and memory-mapped when they are read. A corpus is refused
if its recipe, tokenizer or shards differ from its fingerprint. A changed, truncated or missing file is an
error that names the file and the remedy. corpus.json holds everything that determines the bytes, and its
fingerprint is a hash over it. The same recipe over the same files gives the same corpus.json, byte for byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import Damaged, HeredityError, NotComparable, UsageError, WrongHash
from heredity.core.files import explain_full_disk, hash_file, write_atomic
from heredity.core.records import Record, digest, encode
from heredity.corpus.sources import Input

if TYPE_CHECKING:
    from hashlib import _Hash

# --- corpus.json: sources, steps and result of a build ----------------------------------------------------

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


# --- shards -----------------------------------------------------------------------------------------------

NAME = "corpus.json"
_INPUTS = "inputs.jsonl"
_AGAIN = "Build the corpus again from its recipe."
_CUTS: tuple[Cut, ...] = ("train", "validation")
Tokens = NDArray[Any]  # uint16 or uint32
Ints = NDArray[np.int64]
T = TypeVar("T")
R = TypeVar("R", Card, ImageCard)

# --- corpus.json ------------------------------------------------------------------------------------


class About(msgspec.Struct):
    """The fields that every corpus.json has. kind: "images", or "" for text."""

    schema: int = 0
    kind: str = ""


def about(folder: Path) -> About:
    """Read those fields. Raises UsageError if a folder is not a corpus, Damaged if its card is malformed."""
    path = folder / NAME
    if not path.is_file():
        raise UsageError(
            f"{folder} is not a corpus: it has no {NAME}. Build one: heredity corpus build RECIPE.toml"
        )
    return decoded(path, About)


def decoded(path: Path, kind: type[T]) -> T:
    """Read corpus.json as a record of this class. Raises Damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise Damaged(f"{path}: {error}. {_AGAIN}") from None


def read_card(folder: Path) -> Card:
    """corpus.json. Raises UsageError if it does not exist or is an image corpus."""
    return _card_of(folder, Card, "images", '"contrastive"')


def read_image_card(folder: Path) -> ImageCard:
    """corpus.json. Raises UsageError if it does not exist or is a text corpus."""
    return _card_of(folder, ImageCard, "text", '"causal" or "masked"')


def is_of_images(folder: Path) -> bool:
    """Whether a folder holds an image corpus."""
    try:
        return about(folder).kind == "images"
    except HeredityError:
        return False


def _card_of(folder: Path, wanted: type[R], other: str, objective: str) -> R:
    fields = about(folder)
    if (fields.kind == "images") is (wanted is Card):
        raise UsageError(f"{folder} is a corpus of {other}: train on it with objective = {objective}.")
    if fields.schema != SCHEMA:
        raise NotComparable(
            f"{folder / NAME} has schema {fields.schema}, this heredity reads {SCHEMA}. Build it again.",
            code="schema-mismatch",
        )
    return decoded(folder / NAME, wanted)


class BuiltFile(NamedTuple):
    """The hash and the size of a file, as the card has them."""

    sha256: str
    n_bytes: int


def index_of(path: str) -> str:
    """The index of a token shard."""
    return path.removesuffix(".bin") + ".idx"


def token_files(shards: Iterable[Shard], dtype: str) -> dict[str, BuiltFile]:
    """The files of token shards, by name."""
    size, files = np.dtype(dtype).itemsize, dict[str, BuiltFile]()
    for shard in shards:
        files[shard.path] = BuiltFile(shard.sha256, shard.tokens * size)
        files[index_of(shard.path)] = BuiltFile(shard.index_sha256, 8 * (shard.documents + 1))
    return files


# --- writing it ---------------------------------------------------------------------------------------


def write(folder: Path, card: R, inputs: Iterable[tuple[str, Input]]) -> R:
    """Write the card with its fingerprint and seal, after inputs.jsonl: each file read, by its source."""
    card = msgspec.structs.replace(card, fingerprint=fingerprint(card))
    card = msgspec.structs.replace(card, seal=_seal(card))
    lines = [encode({"source": source, **each._asdict()}) + b"\n" for source, each in inputs]
    write_atomic(folder / _INPUTS, b"".join(lines))
    write_atomic(folder / NAME, msgspec.json.format(encode(card), indent=2) + b"\n")
    return card


def _seal(card: Card | ImageCard) -> str:
    """A hash over all other fields, because readers use more of them than the fingerprint covers."""
    return digest(msgspec.structs.replace(card, seal=""))


# --- checks -----------------------------------------------------------------------------------------


def check(folder: Path, card: Card | ImageCard, files: Mapping[str, BuiltFile], verify: bool) -> None:
    """Raise WrongHash or Damaged unless the folder is as it was built.

    verify: hash every file; otherwise only sizes are compared.
    """
    if card.fingerprint != (computed := fingerprint(card)):
        raise WrongHash(
            f"{folder / NAME} was changed: its fingerprint says {card.fingerprint}, its content "
            f"{computed}. {_AGAIN}"
        )
    if card.seal != _seal(card):
        raise WrongHash(f"{folder / NAME} was changed, or made by an earlier heredity. {_AGAIN}")
    if verify:
        facts = card.tokenizer
        hashes = {"tokenizer.json": facts.sha256, "tokenizer_config.json": facts.config_sha256}
        for name, expected in (hashes | {name: file.sha256 for name, file in files.items()}).items():
            path = folder / name
            if not path.is_file():
                raise Damaged(f"{path} is missing. {_AGAIN}")
            if (digest := hash_file(path)) != expected:
                raise WrongHash(
                    f"{path} was changed: SHA-256 {digest[:16]}… and not {expected[:16]}…. {_AGAIN}"
                )
        _refuse_inputs(folder, {row.name: row.inputs for row in card.sources})
    for name, file in files.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else -1
        if size != file.n_bytes:
            raise Damaged(f"{folder / name} has {size:,} bytes and not {file.n_bytes:,}. {_AGAIN}")


class _InputLine(msgspec.Struct):
    """A line of inputs.jsonl."""

    source: str
    name: str
    bytes: int
    sha256: str


def _refuse_inputs(folder: Path, hashes: Mapping[str, str]) -> None:
    """Raise WrongHash or Damaged unless inputs.jsonl lists the files that each source was read from."""
    path, by_source = folder / _INPUTS, dict[str, list[tuple[str, int, str]]]()
    try:
        for line in path.read_bytes().splitlines():
            row = msgspec.json.decode(line, type=_InputLine)
            by_source.setdefault(row.source, []).append((row.name, row.bytes, row.sha256))
    except (OSError, msgspec.DecodeError) as error:
        raise Damaged(f"{path}: {error}. {_AGAIN}") from None
    if {name: digest(by_source.get(name, [])) for name in hashes} != dict(hashes):
        raise WrongHash(f"{path} was changed: it does not list the files that {NAME} records. {_AGAIN}")


# --- shards of tokens ------------------------------------------------------------------------------


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


# --- reading ----------------------------------------------------------------------------------------


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
        card = read_image_card(folder)
        files = token_files(card.captions, card.dtype)
        for shard in card.shards:
            files[shard.path] = BuiltFile(shard.sha256, shard.pairs * 3 * card.side**2)
            files[_classes_of(shard.path)] = BuiltFile(shard.classes_sha256, 2 * shard.pairs)
        check(folder, card, files, verify)
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
        labels = [np.fromfile(self.folder / _classes_of(s.path), "<u2") for s in shards]
        captions = next((s.path for s in card.captions if s.split == cut), None)
        dtype = np.dtype(card.dtype).newbyteorder("<")
        empty = np.zeros(0, dtype)
        return ImageSplit(
            maps,
            np.concatenate([np.zeros(0, np.int64), *labels]).astype(np.int64),
            np.memmap(self.folder / captions, dtype, "r") if captions else empty,
            np.fromfile(self.folder / index_of(captions), "<u8").astype(np.int64)
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


def _classes_of(path: str) -> str:
    return path.removesuffix(".rgb") + ".cls"


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
        check(folder, card, token_files(card.shards, card.dtype), verify)
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


def _map(folder: Path, card: Card, shard: Shard) -> _Mapped:
    dtype, index = np.dtype(card.dtype).newbyteorder("<"), index_of(shard.path)
    return _Mapped(np.memmap(folder / shard.path, dtype, "r"), np.memmap(folder / index, "<u8", "r"))
