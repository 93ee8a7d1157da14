"""Reports of a study: an open folder, one writer a format.

A writer is a file here with one function, `write(folder, out, with_text=True) -> Path`: it reads the study's
folder, writes one file whole or not at all, and returns its path. Without text, nothing that a model or a
probe said is in the file. `gate` is no writer: it says whether a study lets its models through.
"""

from __future__ import annotations

from pathlib import Path

_SUFFIX = {"markdown": "md", "junit": "xml"}


def write_report(
    folder: Path | str, kind: str = "html", out: Path | None = None, with_text: bool = True
) -> Path:
    """A study's folder as html, markdown, json, csv, parquet, junit or sarif; returns the file.

    `out`: the folder's report.FORMAT where it is left out. Raises UnknownName, UsageError.
    """
    from heredity.core import registry
    from heredity.core.errors import UnknownName, UsageError

    formats = registry.names("study.report")
    if kind not in formats:
        raise UnknownName("report format", kind, formats, "heredity report --help")
    if out == Path("-"):
        raise UsageError("A report is a file, and '-' is none. Name it, such as shared.html")
    target = out if out is not None else Path(folder) / f"report.{_SUFFIX.get(kind, kind)}"
    if target.exists() and not target.is_file():  # a device would be replaced, not written to
        raise UsageError(
            f"{target} is not a file. Name the report itself, such as shared.html", code="report-not-a-file"
        )
    written: Path = registry.load("study.report", kind).write(Path(folder), target, with_text=with_text)
    return written
