"""Parquet: each row is a document, its text in one column."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from heredity.core.errors import BadInput, Unavailable, how_to_install, nearest
from heredity.corpus.sources import JOB_BYTES, CorpusSource, Job, SkippedDocument, _files

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile


class ParquetSource(CorpusSource, frozen=True, kw_only=True):
    """text: the column of the text."""

    text: str = "text"

    def reads(self) -> tuple[str, ...]:
        return (".parquet",)

    def jobs(self, root: Path) -> list[Job]:
        """A job is some of a file's row groups."""
        files = _files.files_of(self, root)
        return [job for path, name in files for job in groups_of(path, name, opened(path), self.text)]

    def read(self, job: Job) -> Iterator[bytes | SkippedDocument]:
        ((path, _),) = job.files
        yield from texts(path, opened(path), self.text, range(job.low, job.high))


def opened(path: str, file: IO[bytes] | None = None) -> ParquetFile:
    """Open a Parquet file. Raises BadInput if it is not one."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise Unavailable(f"{path} needs pyarrow. {how_to_install('corpus')}") from None
    try:
        return parquet.ParquetFile(file or path)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(
            path, f"cannot be read: {str(error).splitlines()[0][:200]}", code="unreadable-file"
        ) from None


def groups_of(path: str, name: str, file: ParquetFile, column: str) -> Iterator[Job]:
    """Jobs of about equal size, each some row groups. Raises BadInput if the column is missing."""
    names = file.schema_arrow.names
    if column not in names:
        near = nearest(column, names)
        hint = f" Did you mean '{near}'?" if near else f" It has: {', '.join(names)}."
        raise BadInput(
            path,
            f"no column '{column}'.{hint} Say it in the recipe: text = \"COLUMN\"",
            code="unknown-key",
        )
    low = size = 0
    for i in range(file.num_row_groups):
        size += file.metadata.row_group(i).total_byte_size
        if size >= JOB_BYTES or i + 1 == file.num_row_groups:
            yield Job(((path, name),), low, i + 1)
            low, size = i + 1, 0


def texts(path: str, file: ParquetFile, column: str, groups: range) -> Iterator[bytes | SkippedDocument]:
    """The texts of these row groups."""
    import pyarrow

    number = sum(file.metadata.row_group(i).num_rows for i in range(groups.start))
    try:
        for batch in file.iter_batches(columns=[column], row_groups=list(groups)):
            for value in batch.column(0).to_pylist():
                number += 1
                if value and not isinstance(value, str):
                    raise BadInput(
                        path, f"'{column}' is not text but {type(value).__name__}", number, code="wrong-type"
                    )
                yield value.encode() if value else SkippedDocument("no_text")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadInput(path, f"cannot be read: {str(error).splitlines()[0][:200]}", number + 1) from None


SOURCE = ParquetSource
