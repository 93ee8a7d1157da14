"""Write the card of a corpus, of text or images, and check that a corpus on disk is the one that was built.

Promises: a changed, truncated or missing file is an error that names the file and the remedy.
Leaves to others: the contents of a card (card.py, images/card.py), and the list of files (reader.py,
images/reader.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np

from heredity.core.errors import Damaged, NotComparable, UsageError, WrongHash
from heredity.core.files import hash_file, write_atomic
from heredity.core.records import digest, encode
from heredity.corpus.card import Shard, TokenizerFacts
from heredity.corpus.sources import Input

NAME = "corpus.json"
_INPUTS = "inputs.jsonl"
T = TypeVar("T")
_AGAIN = "Build the corpus again from its recipe."


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


def refuse_schema(folder: Path, schema: int, wanted: int) -> None:
    """Raise NotComparable for a corpus.json of another schema."""
    if schema != wanted:
        path = folder / NAME
        raise NotComparable(
            f"{path} has schema {schema}, this heredity reads {wanted}. Build it again.",
            code="schema-mismatch",
        )


class _SourceRow(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> str: ...


class CorpusCard(Protocol):
    """A corpus.json, of text or images."""

    @property
    def fingerprint(self) -> str:
        """The origin that a model trained on it records."""

    @property
    def seal(self) -> str:
        """A hash over all other fields."""

    @property
    def sources(self) -> Sequence[_SourceRow]: ...

    @property
    def tokenizer(self) -> TokenizerFacts: ...


R = TypeVar("R", bound=msgspec.Struct)


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


# --- writing ----------------------------------------------------------------------------------------


def write(folder: Path, card: R, fingerprint: str, inputs: Iterable[tuple[str, Input]]) -> R:
    """Write the card with its fingerprint and seal, after inputs.jsonl: each file read, by its source."""
    card = msgspec.structs.replace(card, fingerprint=fingerprint)
    card = msgspec.structs.replace(card, seal=_seal(card))
    lines = [encode({"source": source, **each._asdict()}) + b"\n" for source, each in inputs]
    write_atomic(folder / _INPUTS, b"".join(lines))
    write_atomic(folder / NAME, msgspec.json.format(encode(card), indent=2) + b"\n")
    return card


def _seal(card: object) -> str:
    """A hash over all other fields, because readers use more of them than the fingerprint covers."""
    assert isinstance(card, msgspec.Struct)
    return digest(msgspec.structs.replace(card, seal=""))


# --- checks -----------------------------------------------------------------------------------------


def check(
    folder: Path, card: CorpusCard, fingerprint: str, files: Mapping[str, BuiltFile], verify: bool
) -> None:
    """Raise WrongHash or Damaged unless the folder is as it was built.

    fingerprint: computed from the card's content. verify: hash every file; otherwise only sizes are compared.
    """
    if card.fingerprint != fingerprint:
        raise WrongHash(
            f"{folder / NAME} was changed: its fingerprint says {card.fingerprint}, its content "
            f"{fingerprint}. {_AGAIN}"
        )
    if card.seal != _seal(card):
        raise WrongHash(f"{folder / NAME} was changed, or made by an earlier heredity. {_AGAIN}")
    if verify:
        facts = card.tokenizer
        hashes = {"tokenizer.json": facts.sha256, "tokenizer_config.json": facts.config_sha256}
        _refuse_bytes(folder, hashes | {name: file.sha256 for name, file in files.items()})
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


def _refuse_bytes(folder: Path, hashes: Mapping[str, str]) -> None:
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{path} is missing. {_AGAIN}")
        if (digest := hash_file(path)) != expected:
            raise WrongHash(f"{path} was changed: SHA-256 {digest[:16]}… and not {expected[:16]}…. {_AGAIN}")
