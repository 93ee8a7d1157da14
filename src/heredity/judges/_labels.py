"""Reads answers that people labelled, from JSON lines or CSV, whatever the columns are called.

Promises: a malformed file is a BadInput that names the file and the line, and the nearest column.
Leaves to others: what the labels mean (_quality.py).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from heredity.errors import BadInput, UsageError, nearest

_FIELDS = ("prompt", "response", "label", "family")


class Labelled(NamedTuple):
    """One answer and what a person called it."""

    prompt: str
    response: str
    label: str
    row: int  # its place in the file, counted from 0, whatever is left out
    family: str = ""  # of the model that answered


def read(
    path: Path, columns: Mapping[str, str], without: Mapping[str, str] | None = None
) -> Iterator[Labelled]:
    """The labelled answers of a .csv, .tsv or JSON-lines file, in order.

    `columns` maps "response" and "label", and "prompt" and "family" where these are there, to the file's own
    names. `without` maps a column to how its value must not begin: rows where it does are left out.
    """
    wrong = [key for key in columns if key not in _FIELDS]
    if wrong or not columns.get("response") or not columns.get("label"):
        raise UsageError(
            "Columns must name response and label, and may name prompt and family, "
            "as prompt=P,response=R,label=L,family=F"
            + (f"; '{wrong[0]}' is none of these." if wrong else ".")
        )
    for number, (line, row) in enumerate(rows(path)):
        prompt, response, label, family = (
            _cell(path, line, row, columns.get(field, "")) for field in _FIELDS
        )
        if not any(_cell(path, line, row, key).startswith(start) for key, start in (without or {}).items()):
            yield Labelled(prompt, response, label, number, family)


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every row of a .csv, .tsv or JSON-lines file as it is, with the number of its line."""
    return _csv(path) if path.suffix in (".csv", ".tsv") else _json_lines(path)


def _cell(path: Path, line: int, row: dict[str, Any], column: str) -> str:
    if not column:
        return ""
    if column not in row:
        near = nearest(column, row)
        hint = (
            f" Did you mean '{near}'?" if near else f" There are: {', '.join(sorted(map(str, row)))[:200]}."
        )
        raise BadInput(path, f"no column '{column}'.{hint}", line)
    value = row[column]
    return value if isinstance(value, str) else json.dumps(value)


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(path, f"not JSON: {error}", number) from None
        if not isinstance(row, dict):
            raise BadInput(path, "not a JSON object; each line must be one", number)
        yield number, row


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)
    text = io.StringIO(_text(path), newline="")
    n_comments = _skip_comments(text)
    reader = csv.reader(text, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    try:
        names = next(reader, [])
        for cells in reader:
            if cells and len(cells) != len(names):
                line = n_comments + reader.line_num
                raise BadInput(path, f"{len(cells)} cells under {len(names)} column names", line)
            if cells:
                yield n_comments + reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise BadInput(path, f"malformed CSV: {error}", n_comments + reader.line_num) from None


def _skip_comments(text: io.StringIO) -> int:
    """Reads past lines before the header that begin with "# ", as PyRIT's files have them; how many."""
    n_comments = start = 0
    while text.readline().startswith("# "):
        n_comments, start = n_comments + 1, text.tell()
    text.seek(start)
    return n_comments


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise BadInput(path, f"is not UTF-8 (byte {error.start})", line) from None
