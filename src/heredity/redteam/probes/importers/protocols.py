"""The protocol of an importer of probes, and the values that it takes and gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from heredity.core.records import Probe


class ImportedItem(NamedTuple):
    """One request of a file."""

    line: int
    turns: tuple[str, ...]
    id: str = ""
    cluster: str = ""
    is_benign: bool = False
    passage: str = ""
    clean_passage: str = ""  # the passage before the injection: the twin's
    marker: str = ""
    language: str = ""
    threats: tuple[str, ...] = ()


class Skip(NamedTuple):
    """A row that is not asked, and the reason."""

    line: int
    reason: str


class ImportSource(NamedTuple):
    """A file, and the options that were given with it."""

    path: Path
    options: Mapping[str, str]


class LeftOut(NamedTuple):
    """A row of a file that is not asked. `same_as`: the line that it repeats, 0 for none."""

    line: int
    reason: str
    same_as: int = 0


class Imported(NamedTuple):
    """The probes of a file, and the rows that are not asked."""

    technique: str
    source: str
    probes: tuple[Probe, ...]
    left_out: tuple[LeftOut, ...]


@runtime_checkable
class ProbeImporter(Protocol):
    """A file of redteam/probes/importers/: one kind of set."""

    @property
    def SOURCE(self) -> str:
        """The set, and the source of its format."""

    @property
    def OPTIONS(self) -> Sequence[str]:
        """The names of the options after the `?`."""

    @property
    def BY_FILE(self) -> bool:
        """Whether the rows are named after the file rather than the kind."""

    def rows(self, source: ImportSource) -> Iterator[ImportedItem | Skip]:
        """The rows of a file, in order."""
