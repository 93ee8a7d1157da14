"""Answers kept as rows: JSON lines, CSV or TSV, one answer a row, read as a stream."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from heredity.errors import BadInput
from heredity.recorded._record import Raw

OWN: dict[str, str] = {}  # a row's columns are the user's own


def is_mine(path: Path, start: bytes) -> bool:  # noqa: ARG001
    """Whether a file is of this kind, by its name and its first bytes."""
    return path.suffix.lower() in (".jsonl", ".ndjson", ".csv", ".tsv")


def read(path: Path) -> Iterator[Raw]:
    """Every row with its line. Raises BadInput for one that is malformed."""
    rows = _csv(path) if path.suffix.lower() in (".csv", ".tsv") else json_lines(path)
    return (Raw(line, row) for line, row in rows)


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """The objects of a JSON-lines file, each with its line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise BadInput(path, f"is not UTF-8 (byte {error.start} of the line)", number) from None
            except (ValueError, RecursionError) as error:
                raise BadInput(path, f"not JSON: {error}", number) from None
            if not isinstance(row, dict):
                raise BadInput(path, "not a JSON object; each line must be one", number)
            yield number, row


def _csv(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            names = next(reader, [])
            if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
                raise BadInput(path, f"two columns are named '{twice}'", 1)
            for cells in reader:
                if cells and len(cells) != len(names):
                    raise BadInput(
                        path, f"{len(cells)} cells under {len(names)} column names", reader.line_num
                    )
                if cells:
                    yield reader.line_num, dict(zip(names, cells, strict=True))
        except csv.Error as error:
            raise BadInput(path, f"malformed CSV: {error}", reader.line_num) from None
        except UnicodeDecodeError as error:
            raise BadInput(path, f"is not UTF-8: {error.reason}", reader.line_num + 1) from None
