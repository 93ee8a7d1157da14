"""A tree of source code: each file is a document, unless it is binary, too long or generated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from heredity.core.errors import BadInput
from heredity.corpus.sources import CorpusSource, Job, SkippedDocument, _files

ENDINGS = tuple(
    f".{name}"
    for name in [
        "bash",
        "c",
        "cc",
        "clj",
        "cpp",
        "cs",
        "css",
        "cxx",
        "dart",
        "el",
        "erl",
        "ex",
        "f90",
        "go",
        "h",
        "hpp",
        "hs",
        "html",
        "java",
        "jl",
        "js",
        "json",
        "kt",
        "lisp",
        "lua",
        "m",
        "ml",
        "mjs",
        "php",
        "pl",
        "pm",
        "proto",
        "ps1",
        "py",
        "r",
        "rb",
        "rs",
        "rst",
        "scala",
        "scm",
        "sh",
        "sql",
        "swift",
        "tcl",
        "tex",
        "toml",
        "ts",
        "tsx",
        "vue",
        "xml",
        "yaml",
        "yml",
        "zig",
    ]
)


class CodeSource(CorpusSource, frozen=True, kw_only=True):
    """endings: which files. with_name: whether a document begins with a line that holds the file's name.
    A file with a line of more than `longest_line` bytes is omitted (minified or generated)."""

    endings: tuple[str, ...] = ENDINGS
    with_name: bool = False
    longest_line: int = 1000
    largest: int = 1 << 20

    def reads(self) -> tuple[str, ...]:
        return self.endings

    def jobs(self, root: Path) -> list[Job]:
        return _files.grouped(_files.files_of(self, root))

    def read(self, job: Job) -> Iterator[bytes | SkippedDocument]:
        for path, name in job.files:
            yield self._document(path, name)

    def _document(self, path: str, name: str) -> bytes | SkippedDocument:
        try:
            raw = Path(path).read_bytes()
        except OSError as error:
            raise BadInput(path, f"cannot be read: {error.strerror}") from None
        if len(raw) > self.largest:
            return SkippedDocument("too_large")
        if b"\0" in raw or not _is_utf8(raw):
            return SkippedDocument("no_text")
        if max(map(len, raw.split(b"\n"))) > self.longest_line:
            return SkippedDocument("long_line")
        return name.encode() + b"\n" + raw if self.with_name else raw


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


SOURCE = CodeSource
