"""Answers kept as rows: JSON lines, CSV or TSV, one answer a row, read as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from heredity.core import readers
from heredity.study.importers import RecordedAnswer

OWN: dict[str, str] = {}  # a row's columns are the user's own


def is_mine(path: Path, start: bytes) -> bool:  # noqa: ARG001
    """Whether a file is of this kind, by its name and its first bytes."""
    return path.suffix.lower() in (".jsonl", ".ndjson", ".csv", ".tsv")


def read(path: Path) -> Iterator[RecordedAnswer]:
    """Every row with its line. Raises BadInput for one that is malformed."""
    return (RecordedAnswer(line, row) for line, row in readers.rows(path))
