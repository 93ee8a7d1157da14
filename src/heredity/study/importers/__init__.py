"""Import answers that another tool recorded as a study, which heredity judges, compares and reports.

Each file here without an underscore handles one format: to add one, add a file with the members of
AnswerImporter (_record.py).

    rows         JSON lines, CSV or TSV with a column map
    inspect_ai   logs of inspect_ai (.eval, .json)
    garak        reports of garak (.report.jsonl)
    agentdojo    the folder of a run of AgentDojo, or one of its logs (.json)
    request_log  the log of `heredity serve --request-log`

Promises: the same files give the same study, and models are paired by prompt. An answer that one model lacks
becomes an error row. Nothing here claims that all models had the same application.
Leaves to others: judging (study.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from heredity.core import registry
from heredity.core.errors import BadInput, UnknownName, UsageError
from heredity.core.files import open_file
from heredity.core.readers import unreadable
from heredity.study.estimates import LackingFile
from heredity.study.importers._record import (
    AnswerImporter,
    CountsMissing,
    ImportOptions,
    Lacking,
    Raw,
    Recorded,
    UnpairedImporter,
    VerdictColumn,
    columns,
    convert,
)
from heredity.study.importers._study import (
    Agreement,
    Agreements,
    JudgedPair,
    JudgedRate,
    RecordedVerdict,
    Summary,
    agreement,
    agreements,
    judge_tables,
    make,
)
from heredity.study.storage import write_lacking

__all__ = [
    "Agreement",
    "Agreements",
    "AnswerImporter",
    "ImportOptions",
    "JudgedPair",
    "JudgedRate",
    "Lacking",
    "Raw",
    "Recorded",
    "RecordedVerdict",
    "Summary",
    "VerdictColumn",
    "agreement",
    "agreements",
    "columns",
    "import_files",
    "is_traffic",
    "judge_tables",
    "read",
]


FOLDER = "study.importers"


def import_files(paths: Iterable[Path], folder: Path, reading: ImportOptions) -> Summary:
    """Write the study `folder` from the answers in `paths`: plan, responses, and other judges' verdicts.

    Study.open(folder) judges and estimates it. The same files again change nothing. Raises BadInput with file
    and line, and NotComparable if the folder holds another study.
    """
    paths = list(paths)
    summary = make(folder, lambda: read(paths, reading))
    lacking = tuple(_lacking(paths))
    write_lacking(folder, [LackingFile(of.path.name, of.n, of.n_planned, of.noun) for of in lacking])
    return summary._replace(lacking=lacking)


def _lacking(paths: Iterable[Path]) -> Iterator[Lacking]:
    """The files that lack answers of their own runs."""
    for path in paths:
        kind = _kind(path)
        if isinstance(kind, CountsMissing) and (found := kind.lacking(path)) is not None and found.n:
            yield found


def read(paths: Iterable[Path], reading: ImportOptions) -> Iterator[Recorded]:
    """Every answer of every file, in order, read as a stream.

    Raises BadInput for a log of several models. Raises UsageError after the last row if `reading` names a
    model or a benign kind that no row has.
    """
    models: dict[str, None] = {}
    for path in paths:
        kind = _kind(path)
        try:
            for raw in kind.read(path):
                row = convert(path, raw, reading, kind.OWN)
                models[row.model] = None
                if reading.only and row.model != reading.only:
                    continue
                if len(models) > 1 and not reading.only and isinstance(kind, UnpairedImporter):
                    raise BadInput(
                        path,
                        f"has answers of {', '.join(models)}, to different requests, so they cannot be "
                        "paired. Import one at a time: --only MODEL",
                        raw.line,
                    )
                yield row
        except OSError as error:
            raise BadInput(path, f"cannot be read: {error.strerror}") from None
    if reading.only and reading.only not in models:
        raise UnknownName("model", reading.only, models, ", ".join(models))
    if why := reading.unmet().get("--benign"):
        raise UsageError(why, code="unknown-name")


def is_traffic(paths: Iterable[Path]) -> bool:
    """Whether one of the files is a log of live requests, of which most seek no breach."""
    return any(isinstance(_kind(path), UnpairedImporter) for path in paths)


def _kind(path: Path) -> AnswerImporter:
    """The importer of a file. Raises BadInput if no importer knows its format."""
    start = b""
    try:
        if not path.is_dir():
            with open_file(path.resolve()) as file:  # the user may name a link, and no pipe
                start = file.read(4096)
    except OSError as error:
        raise unreadable(path, error) from None
    # `rows` is the last: it takes every table.
    for name in sorted(registry.names(FOLDER), key="rows".__eq__):
        kind = registry.load_as(AnswerImporter, FOLDER, name)
        if kind.is_mine(path, start):
            return kind
    raise BadInput(
        path,
        "unknown format. Supported: .jsonl, .csv, .tsv with --columns, an inspect_ai log (.eval, .json), "
        "a garak .report.jsonl, a folder of AgentDojo's logs, a request log of heredity serve",
    )
