"""A Hugging Face dataset on disk: the Arrow files of a folder that `datasets` saved; no code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from heredity.core import readers
from heredity.corpus.sources import CorpusSource, Job, SkippedDocument, _files
from heredity.corpus.sources.jsonl import text_of


class DatasetSource(CorpusSource, frozen=True, kw_only=True):
    """path: the folder of one split, which has .arrow files. text: the column of the text."""

    text: str = "text"

    def reads(self) -> tuple[str, ...]:
        return (".arrow",)

    def jobs(self, root: Path) -> list[Job]:
        """A job is one of the folder's files."""
        files = _files.files_of(self, root)
        return [Job((each,)) for each in files]

    def read(self, job: Job) -> Iterator[bytes | SkippedDocument]:
        ((path, _),) = job.files
        for number, row in readers.arrow_file(Path(path)):
            yield text_of(row, self.text, path, number)


SOURCE = DatasetSource
