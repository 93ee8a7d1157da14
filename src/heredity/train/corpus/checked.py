"""Whether a corpus on disk is still the one that was built, of text or of pictures.

Promises: what was changed, cut or lost is an error that names the file and says what to do.
Leaves to others: which files there are (reader.py, pictures/reader.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from heredity.errors import Damaged, NotComparable, UsageError, WrongHash
from heredity.store import hash_file
from heredity.train.corpus.card import TokenizerFacts

NAME = "corpus.json"
T = TypeVar("T")
_AGAIN = "Build the corpus again from its recipe."


class About(msgspec.Struct):
    """What every corpus.json says of itself. kind: "images", or "" for text."""

    schema: int = 0
    kind: str = ""


def about(folder: Path) -> About:
    """Raises UsageError where a folder is no corpus, Damaged where corpus.json cannot be read."""
    path = folder / NAME
    if not path.is_file():
        raise UsageError(
            f"{folder} is no corpus: it has no {NAME}. Build one: heredity corpus build RECIPE.toml"
        )
    return decoded(path, About)


def decoded(path: Path, kind: type[T]) -> T:
    """corpus.json as such a record. Raises Damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise Damaged(f"{path}: {error}. {_AGAIN}") from None


def refuse_schema(folder: Path, found: int, wanted: int) -> None:
    """Raise NotComparable for a corpus.json of another schema."""
    if found != wanted:
        path = folder / NAME
        raise NotComparable(f"{path} has schema {found}, this heredity reads {wanted}. Build it again.")


def refuse_fingerprint(folder: Path, said: str, found: str) -> None:
    """Raise WrongHash where the content of corpus.json does not give its fingerprint."""
    if found != said:
        raise WrongHash(
            f"{folder / NAME} was changed: its fingerprint says {said}, its content {found}. {_AGAIN}"
        )


def refuse_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    """Raise Damaged for a file that is missing or of another size."""
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else -1
        if found != size:
            raise Damaged(f"{folder / name} has {found:,} bytes and not {size:,}. {_AGAIN}")


def refuse_bytes(folder: Path, hashes: Mapping[str, str], tokenizer: TokenizerFacts) -> None:
    """Raise Damaged or WrongHash for a file, the tokenizer's among them, that is missing or was changed."""
    of_tokenizer = {"tokenizer.json": tokenizer.sha256, "tokenizer_config.json": tokenizer.config_sha256}
    for name, expected in (of_tokenizer | dict(hashes)).items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{path} is missing. {_AGAIN}")
        if (found := hash_file(path)) != expected:
            raise WrongHash(
                f"{path} is not what was built: SHA-256 {found[:16]}… and not {expected[:16]}…. {_AGAIN}"
            )


def index_of(path: str) -> str:
    """The index beside a shard of tokens."""
    return path.removesuffix(".bin") + ".idx"
