"""Reports of a study: an open folder with one writer per format.

To add a format, add one file with `write` (ReportWriter).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

_SUFFIX = {"markdown": "md", "junit": "xml"}


@runtime_checkable
class ReportWriter(Protocol):
    """A file of study/report/: one format."""

    def write(self, folder: Path, out: Path, with_text: bool = True) -> Path:
        """Write the report of the study in `folder` to `out`, atomically, and return `out`.

        Without text, it holds no prompt and no answer. A format of rows also takes `models`, the names of
        those that it is limited to.
        """


def write_report(
    folder: Path | str,
    kind: str = "html",
    out: Path | None = None,
    with_text: bool = True,
    is_full: bool = False,
    models: Sequence[str] = (),
) -> Path:
    """Write a study's report in one of the formats of this folder, and return its path.

    out: by default the folder's report.FORMAT. is_full: of HTML only; nothing is folded, so all of it prints.
    models: of rows only; those of other models are left out. Raises UnknownName for an unknown format or
    model, and UsageError if `out` is not a file or the format compares all models.
    """
    from heredity.core import registry
    from heredity.core.errors import UnknownName, UsageError

    formats = registry.names("study.report")
    if kind not in formats:
        raise UnknownName("report format", kind, formats, "heredity report --help")
    if out == Path("-"):
        raise UsageError("--out must name a file, such as shared.html; stdout ('-') is not supported.")
    target = out if out is not None else Path(folder) / f"report.{_SUFFIX.get(kind, kind)}"
    if target.exists() and not target.is_file():  # a device would be replaced, not written to
        raise UsageError(f"{target} is not a file. Name the report itself, such as shared.html")
    writer = registry.load_as(ReportWriter, "study.report", kind)
    options: dict[str, Any] = {"is_full": is_full, "models": models}
    given = {name: value for name, value in options.items() if value}
    lacking = given.keys() - inspect.signature(writer.write).parameters.keys()
    if "is_full" in lacking:
        raise UsageError(f"A report in {kind} folds nothing: --full is for html.")
    if "models" in lacking:
        raise UsageError(
            f"A report in {kind} is of all models: --model is for sarif, junit, csv and parquet."
        )
    return writer.write(Path(folder), target, with_text=with_text, **given)
