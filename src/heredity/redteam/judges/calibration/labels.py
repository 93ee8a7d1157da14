"""Reads answers that people labelled, from JSON lines or CSV, whatever the columns are called.

Promises: a malformed file is a BadInput that names the file and the line, and the nearest column.
Leaves to others: what the labels mean (_quality.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from heredity.core import readers
from heredity.core.errors import BadInput, UsageError, did_you_mean, nearest
from heredity.core.sanitize import clean_text

_FIELDS = ("prompt", "response", "label", "family")


class Labelled(NamedTuple):
    """One answer and what a person called it; no label: "" or white space."""

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
            + (f"; '{wrong[0]}' is none of these." if wrong else "."),
            code="bad-columns",
        )
    for number, (line, row) in enumerate(readers.rows(path)):
        prompt, response, label, family = (
            _cell(path, line, row, columns.get(field, "")) for field in _FIELDS
        )
        if not any(_cell(path, line, row, key).startswith(start) for key, start in (without or {}).items()):
            yield Labelled(prompt, response, label, number, family)


def _cell(path: Path, line: int, row: dict[str, Any], column: str) -> str:
    if not column:
        return ""
    if column not in row:
        near = nearest(column, row)
        hint = (
            f" Did you mean '{near}'?" if near else f" There are: {', '.join(sorted(map(str, row)))[:200]}."
        )
        raise BadInput(path, f"no column '{column}'.{hint}", line, code="unknown-column")
    value = row[column]
    if value is None:
        return ""
    return clean_text(value if isinstance(value, str) else json.dumps(value))


def check_positive(labels: Collection[str], positive: Collection[str], name: str = "") -> None:
    """Each value must be some row's label: a typo beside a right one would make positives negatives.

    name: of the set, where there is more than one. Raises UsageError.
    """
    if not positive:
        raise UsageError("Name the labels that are positive.")
    known = {each for each in labels if each.strip()}
    there = f"The labels are: {', '.join(sorted(known)[:12])}." if known else "No row has a label."
    for value in sorted(set(positive) - known):
        hint = did_you_mean(value, known)
        said = f"'{name}': no" if name else "No"
        raise UsageError(f"{said} row is labelled '{value}'.{hint} {there}", code="unknown-label")
    plain = {value.strip().casefold(): value for value in positive}
    for label in sorted(known - set(positive)):
        if near := plain.get(label.strip().casefold()):
            raise UsageError(
                f"'{label}' is a label as well as '{near}'. Name both, or make them one.",
                code="label-ambiguous",
            )
