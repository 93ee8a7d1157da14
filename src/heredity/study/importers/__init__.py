"""Answers that another tool recorded, made into a study that heredity judges, compares and reports.

A file here without an underscore is one kind of file: `is_mine(path, start)` says whether a file is of it,
`read(path)` yields its answers, `OWN` maps fields to its own columns.

    rows         JSON lines, CSV or TSV with a column map
    inspect_ai   logs of inspect_ai (.eval, .json)
    garak        reports of garak (.report.jsonl)

Promises: the same files give the same study; models are paired by prompt; an answer that one model lacks is
an error row, counted and shown; nothing here claims that the application was the same for all.
Leaves to others: judging (study.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from heredity.core import registry
from heredity.core.errors import BadInput, UsageError
from heredity.study.importers._agreement import (
    Agreement,
    Agreements,
    JudgedPair,
    JudgedRate,
    agreement,
    agreements,
)
from heredity.study.importers._record import ImportOptions, Recorded, VerdictColumn, columns, convert
from heredity.study.importers._study import RecordedVerdict, Summary, make

__all__ = [
    "Agreement",
    "Agreements",
    "ImportOptions",
    "JudgedPair",
    "JudgedRate",
    "Recorded",
    "RecordedVerdict",
    "Summary",
    "VerdictColumn",
    "agreement",
    "agreements",
    "columns",
    "import_files",
    "read",
]


def import_files(paths: Iterable[Path], folder: Path, reading: ImportOptions) -> Summary:
    """Make the study `folder` of the answers in `paths`: plan, responses, and what other judges said of them.

    Judging and estimating are Study.open(folder)'s. The same files again change nothing. Raises BadInput with
    file and line, NotComparable where the folder holds another study.
    """
    paths = list(paths)
    return make(folder, lambda: read(paths, reading))


def read(paths: Iterable[Path], reading: ImportOptions) -> Iterator[Recorded]:
    """Every answer of every file, in order, read as a stream.

    Raises UsageError at its end where no row is of the kind that `reading` calls benign.
    """
    for path in paths:
        kind = _kind(path)
        try:
            for raw in kind.read(path):
                yield convert(path, raw, reading, kind.OWN)
        except OSError as error:
            raise BadInput(path, f"cannot be read: {error.strerror}") from None
    if why := reading.unmet().get("--benign"):
        raise UsageError(why, code="unknown-value")


def _kind(path: Path) -> ModuleType:
    """The kind of a file. Raises BadInput where it is none that is known."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise BadInput(path, f"cannot be read: {error.strerror}", code="unreadable-file") from None
    names = registry.names("study.importers")
    kinds = [
        registry.load("study.importers", name) for name in sorted(names, key="rows".__eq__)
    ]  # rows is the last
    for kind in kinds:
        if kind.is_mine(path, start):
            return kind
    raise BadInput(
        path,
        "no kind of file that is read: .jsonl, .csv, .tsv with --columns, an inspect_ai log (.eval, .json), "
        "a garak .report.jsonl",
        code="unknown-format",
    )
