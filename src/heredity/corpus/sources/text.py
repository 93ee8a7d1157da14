"""Text files: each holds one document, or several with a separator between them."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from heredity.core.errors import BadArgument
from heredity.corpus.sources import CorpusSource, Job, SkippedDocument, _files


class TextSource(CorpusSource, frozen=True, kw_only=True):
    """separator: the text between two documents of a file; without it, a file is one document. encoding: of
    all files."""

    separator: str = ""
    encoding: str = "utf-8"

    def check(self) -> None:
        super().check()
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise BadArgument(
                f"no encoding is named '{self.encoding}'", code="unknown-name", key="encoding"
            ) from None

    def reads(self) -> tuple[str, ...]:
        return (".txt", ".text")

    def jobs(self, root: Path) -> list[Job]:
        return _files.grouped(_files.files_of(self, root))

    def read(self, job: Job) -> Iterator[bytes | SkippedDocument]:
        for path, _ in job.files:
            documents = _files.cut(self.document(_files.text(path, self.encoding)), self.separator)
            if (first := next(documents, None)) is None:
                yield SkippedDocument("no_text")
                continue
            yield first
            yield from documents

    def document(self, whole: bytes) -> bytes:
        """The text of a file, with its markup removed if it has any."""
        return whole


SOURCE = TextSource
