"""The protocol of an importer of probes, and the values that it takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from heredity.core.errors import BadInput, did_you_mean
from heredity.core.readers import rows
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


# --- rows of the public formats: CSV, TSV, JSON lines and JSON ----------------------------------------
# Nothing is guessed from a cell.

FIELDS = ("prompt", "id", "category", "cluster", "passage", "kind", "language")


Cells = dict[str, Any]


class Columns:
    """Finds the columns of a set in a file: by the names in its releases, or by the user's names."""

    def __init__(self, source: ImportSource, names: Mapping[str, tuple[str, ...]]) -> None:
        self.source, self._names = source, names
        self._found: dict[str, str] | None = None

    def get(self, line: int, row: Cells, field: str) -> str:
        """The text in a field's column, stripped; "" if the column does not exist."""
        if self._found is None:
            self._found = self._find(line, row)
        value = row.get(self._found.get(field, ""))
        if value is None:
            return ""
        if not isinstance(value, str | int | float):
            where = f"column '{self._found[field]}'"
            raise BadInput(
                self.source.path, f"{where} holds {type(value).__name__}, not text", line, code="wrong-type"
            )
        return str(value).strip()

    def _find(self, line: int, row: Cells) -> dict[str, str]:
        columns = {}
        for field, names in self._names.items():
            given = self.source.options.get(field)
            column = _named(given, row) if given else next((c for n in names if (c := _named(n, row))), None)
            if column is not None:
                columns[field] = column
            elif given or field == "prompt":
                name = given or names[0]
                hint = did_you_mean(name, row)
                shown = ", ".join(f"'{column}'" for column in list(row)[:12])
                raise BadInput(
                    self.source.path,
                    f"there is no column '{name}'.{hint} The columns are {shown}; say ?{field}=COLUMN",
                    line,
                    code="unknown-key",
                )
        return columns


def _named(name: str, row: Cells) -> str | None:
    """The column of this name: exactly, or else ignoring case."""
    if name in row:
        return name
    return next((column for column in row if column.casefold() == name.casefold()), None)


def unchanged(
    names: Mapping[str, tuple[str, ...]],
) -> Callable[[ImportSource], Iterator[ImportedItem | Skip]]:
    """The `rows` of a set that is a table with these columns, and whose rows are asked unchanged."""
    return lambda source: (row for *_, row in tabular(source, names))


def tabular(
    source: ImportSource, names: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[int, Cells, Columns, ImportedItem | Skip]]:
    """Each row by its columns, benign if `kind` is a benign value; with the set's further cells."""
    columns, met = Columns(source, names), set[str]()
    benign = {value.strip().casefold() for value in source.options.get("benign", "benign,safe").split(",")}
    for line, row in rows(source.path):
        of = {field: columns.get(line, row, field) for field in names}
        if not of["prompt"]:
            yield line, row, columns, Skip(line, "it has no prompt")
            continue
        met.add(of.get("kind", "").casefold())
        is_benign = of.get("kind", "").casefold() in benign if "kind" in names else False
        made = ImportedItem(line, (of["prompt"],), of.get("id", ""), of.get("cluster", ""), is_benign,
                   of.get("passage", ""), language=of.get("language", ""))  # fmt: skip
        yield line, row, columns, made
    if "benign" in source.options and not benign & met:
        value, there = min(benign), ", ".join(sorted(met - {""})[:12]) or "none"
        hint = did_you_mean(value, met)
        raise BadInput(source.path, f"no row's kind is '{value}'.{hint} There are: {there}")
