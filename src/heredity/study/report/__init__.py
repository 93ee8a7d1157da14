"""Reports of a study: an open folder with one writer per format.

To add a format, add one file with `write` (ReportWriter).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

_SUFFIX = {"markdown": "md", "junit": "xml"}


@runtime_checkable
class ReportWriter(Protocol):
    """A file of study/report/: one format."""

    def write(self, folder: Path, out: Path, with_text: bool = True) -> Path:
        """Write the report of the study in `folder` to `out`, atomically, and return `out`.

        Without text, it holds no prompt and no answer.
        """


def write_report(
    folder: Path | str,
    kind: str = "html",
    out: Path | None = None,
    with_text: bool = True,
    is_full: bool = False,
) -> Path:
    """Write a study's report in one of the formats of this folder, and return its path.

    out: by default the folder's report.FORMAT. is_full: of HTML only; nothing is folded, so all of it prints.
    Raises UnknownName for an unknown format, and UsageError if `out` is not a file.
    """
    from heredity.core import registry
    from heredity.core.errors import UnknownName, UsageError

    formats = registry.names("study.report")
    if kind not in formats:
        raise UnknownName("report format", kind, formats, "heredity report --help")
    if out == Path("-"):
        raise UsageError("--out must name a file, such as shared.html; stdout ('-') is not supported.")
    if is_full and kind != "html":
        raise UsageError(
            f"Only an HTML report folds anything: {kind} has no --full.", code="report-not-folded"
        )
    target = out if out is not None else Path(folder) / f"report.{_SUFFIX.get(kind, kind)}"
    if target.exists() and not target.is_file():  # a device would be replaced, not written to
        raise UsageError(
            f"{target} is not a file. Name the report itself, such as shared.html", code="report-not-a-file"
        )
    if is_full:
        from heredity.study.report import html

        return html.write(Path(folder), target, with_text, is_full)
    writer = registry.load_as(ReportWriter, "study.report", kind)
    return writer.write(Path(folder), target, with_text=with_text)
