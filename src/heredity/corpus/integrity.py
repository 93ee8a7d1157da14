"""Check that a corpus on disk, of text or images, is the one that was built.

Promises: a changed, truncated or missing file is an error that names the file and the remedy.
Leaves to others: the list of files (reader.py, images/reader.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from heredity.core.errors import Damaged, NotComparable, UsageError, WrongHash
from heredity.core.files import hash_file
from heredity.core.records import digest
from heredity.corpus.card import TokenizerFacts

NAME = "corpus.json"
T = TypeVar("T")
_AGAIN = "Build the corpus again from its recipe."


class About(msgspec.Struct):
    """The fields that every corpus.json has. kind: "images", or "" for text."""

    schema: int = 0
    kind: str = ""


def about(folder: Path) -> About:
    """Raises UsageError if a folder is not a corpus, Damaged if corpus.json cannot be read."""
    path = folder / NAME
    if not path.is_file():
        raise UsageError(
            f"{folder} is no corpus: it has no {NAME}. Build one: heredity corpus build RECIPE.toml",
            code="not-a-corpus",
        )
    return decoded(path, About)


def decoded(path: Path, kind: type[T]) -> T:
    """corpus.json as such a record. Raises Damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise Damaged(f"{path}: {error}. {_AGAIN}", code="card-damaged") from None


def refuse_schema(folder: Path, found: int, wanted: int) -> None:
    """Raise NotComparable for a corpus.json of another schema."""
    if found != wanted:
        path = folder / NAME
        raise NotComparable(
            f"{path} has schema {found}, this heredity reads {wanted}. Build it again.",
            code="schema-mismatch",
        )


class _Sealed(Protocol):
    """A corpus.json, of text or images."""

    @property
    def fingerprint(self) -> str:
        """The origin that a model trained on it records."""

    @property
    def seal(self) -> str:
        """A hash over all else."""


S = TypeVar("S", bound=_Sealed)


def sealed(card: S) -> S:
    """With a hash over all that it says: more than what makes the bytes is read of it."""
    replace: Any = msgspec.structs.replace
    found: S = replace(card, seal=digest(replace(card, seal="")))
    return found


def refuse_changed(folder: Path, card: _Sealed, fingerprint: str) -> None:
    """Raise WrongHash where corpus.json is not as it was written. fingerprint: that of its content."""
    if card.fingerprint != fingerprint:
        raise WrongHash(
            f"{folder / NAME} was changed: its fingerprint says {card.fingerprint}, its content "
            f"{fingerprint}. {_AGAIN}",
            code="fingerprint-wrong",
        )
    if card.seal != sealed(card).seal:
        raise WrongHash(
            f"{folder / NAME} was changed, or made by an earlier heredity. {_AGAIN}", code="card-changed"
        )


def refuse_inputs(folder: Path, hashes: Mapping[str, str]) -> None:
    """Raise WrongHash or Damaged where inputs.jsonl does not list what each source was read from."""
    path, found = folder / "inputs.jsonl", dict[str, list[tuple[str, int, str]]]()
    try:
        for line in path.read_bytes().splitlines():
            row = msgspec.json.decode(line, type=_Listed)
            found.setdefault(row.source, []).append((row.name, row.bytes, row.sha256))
    except (OSError, msgspec.DecodeError) as error:
        raise Damaged(f"{path}: {error}. {_AGAIN}", code="inputs-unreadable") from None
    if {name: digest(found.get(name, [])) for name in hashes} != dict(hashes):
        raise WrongHash(
            f"{path} was changed: it does not list what {NAME} says was read. {_AGAIN}", code="inputs-changed"
        )


class _Listed(msgspec.Struct):
    """A line of inputs.jsonl."""

    source: str
    name: str
    bytes: int
    sha256: str


def refuse_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    """Raise Damaged for a file that is missing or of another size."""
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else -1
        if found != size:
            raise Damaged(
                f"{folder / name} has {found:,} bytes and not {size:,}. {_AGAIN}", code="file-size-wrong"
            )


def refuse_bytes(folder: Path, hashes: Mapping[str, str], tokenizer: TokenizerFacts) -> None:
    """Raise Damaged or WrongHash for a file, the tokenizer's among them, that is missing or was changed."""
    of_tokenizer = {"tokenizer.json": tokenizer.sha256, "tokenizer_config.json": tokenizer.config_sha256}
    for name, expected in (of_tokenizer | dict(hashes)).items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{path} is missing. {_AGAIN}", code="corpus-file-missing")
        if (found := hash_file(path)) != expected:
            raise WrongHash(
                f"{path} is not what was built: SHA-256 {found[:16]}… and not {expected[:16]}…. {_AGAIN}",
                code="corpus-file-changed",
            )


def index_of(path: str) -> str:
    """The index of a token shard."""
    return path.removesuffix(".bin") + ".idx"
