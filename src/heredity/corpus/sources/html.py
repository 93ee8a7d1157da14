"""HTML: the text of each page without menus and footers, as trafilatura extracts it.

FineWeb was extracted with trafilatura. Its own removal of repeated passages is off: it remembers earlier
pages, so the text of a page would depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from heredity.core.errors import BadArgument, BadInput, Unavailable, how_to_install
from heredity.corpus.sources import CorpusSource, Job, SkippedDocument, _files


class HtmlSource(CorpusSource, frozen=True, kw_only=True):
    """markup: "markdown" keeps headings, lists and links as Markdown; "text" drops them. precise: drop
    doubtful parts of a page."""

    markup: str = "text"
    precise: bool = True

    def check(self) -> None:
        super().check()
        if self.markup not in ("text", "markdown"):
            raise BadArgument(f'markup is "text" or "markdown", not "{self.markup}"', key="markup")

    def reads(self) -> tuple[str, ...]:
        return (".html", ".htm", ".xhtml")

    def jobs(self, root: Path) -> list[Job]:
        _extractor()
        files = _files.files_of(self, root)
        return _files.grouped(files)

    def read(self, job: Job) -> Iterator[bytes | SkippedDocument]:
        trafilatura = _extractor()
        kind = "txt" if self.markup == "text" else "markdown"
        for path, _ in job.files:
            try:
                raw = Path(path).read_bytes()
            except OSError as error:
                raise BadInput(path, f"cannot be read: {error.strerror}") from None
            text = trafilatura.extract(
                raw,
                output_format=kind,
                favor_precision=self.precise,
                include_comments=False,
                deduplicate=False,
            )
            yield text.encode() if text else SkippedDocument("no_text")


def _extractor() -> ModuleType:
    try:
        return import_module("trafilatura")
    except ImportError:
        raise Unavailable(f"HTML needs trafilatura. {how_to_install('corpus')}") from None


SOURCE = HtmlSource
