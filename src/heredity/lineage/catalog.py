"""The foundation models that are known by name: catalog.toml, read into typed entries.

Promises: an entry pins every file's size and hash; an unknown field in the catalogue is an error.
Leaves to others: fetching (recipes/pull/).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from heredity.core.errors import BadInput

_PATH = Path(__file__).with_name("catalog.toml")


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a model: its path here, what it must be, and its name in the hub's repository."""

    path: str
    bytes: int
    sha256: str
    hub: str = ""


class Hub(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A repository of the model hub."""

    repo: str
    revision: str = ""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A foundation model. `about` is shown with it."""

    family: str
    licence: str
    format: Literal["safetensors", "gguf"]
    hub: Hub
    files: tuple[File, ...]
    modality: str = "text"
    aliases: tuple[str, ...] = ()
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


def canonical(name: str) -> str:
    """The name that a short name stands for; any other name as it is."""
    return aliases().get(name, name)


def names() -> list[str]:
    """Every name that `pull` knows, short ones last."""
    return [*catalogue(), *aliases()]
