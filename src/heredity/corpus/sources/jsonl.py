"""JSON lines: each object is a document, its text under one key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from heredity.core.errors import BadInput, did_you_mean
from heredity.corpus.sources import JOB_BYTES, CorpusSource, Job, SkippedDocument, _files


class JsonlSource(CorpusSource, frozen=True, kw_only=True):
    """text: the key of a row's text."""

    text: str = "text"

    def reads(self) -> tuple[str, ...]:
        return (".jsonl", ".ndjson")

    def jobs(self, root: Path) -> list[Job]:
        """A large file is read in parts; a line belongs to the part in which it begins."""
        files = _files.of(self, root)
        found: list[Job] = []
        for path, name in files:
            size = Path(path).stat().st_size
            parts = range(0, max(size, 1), JOB_BYTES)
            found += [Job(((path, name),), low, min(low + JOB_BYTES, size)) for low in parts]
        return found

    def read(self, job: Job) -> Iterator[bytes | SkippedDocument]:
        ((path, _),) = job.files
        decoder = msgspec.json.Decoder()
        for at, line in _lines(path, job.low, job.high):
            try:
                row = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                row = _decoded(line, path, at)
            yield text_of(row, self.text, path, lambda at=at: _line_at(path, at))


def text_of(row: Any, key: str, path: str, line: Any) -> bytes | SkippedDocument:
    """The text of a row. line: returns the row's line number, for errors. Raises BadInput."""
    if not isinstance(row, dict):
        raise BadInput(path, "not a JSON object; each line must be one", line(), code="not-objects")
    text = row.get(key)
    if text is None and key not in row:
        hint = did_you_mean(key, map(str, row))
        raise BadInput(
            path,
            f"no '{key}' in this row.{hint} Say its key in the recipe: text = \"KEY\"",
            line(),
            code="unknown-column",
        )
    if text is None or text == "":
        return SkippedDocument("no_text")
    if not isinstance(text, str):
        raise BadInput(path, f"'{key}' is no text but {type(text).__name__}", line(), code="wrong-type")
    return text.encode("utf-8", "replace")  # half of a surrogate pair, which JSON can write, becomes ?


def _decoded(line: bytes, path: str, at: int) -> Any:
    """A line that the fast reader rejects: half a surrogate pair, which is valid JSON, or invalid JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput(path, f"not JSON: {error}", _line_at(path, at), code="not-json") from None


def _lines(path: str, low: int, high: int) -> Iterator[tuple[int, bytes]]:
    """Lines that begin in this part, each with the place of its first byte."""
    try:
        with Path(path).open("rb") as file:
            if low:
                file.seek(low - 1)
                file.readline()  # of the part before, unless it ends just there
            while (at := file.tell()) < high and (line := file.readline()):
                if at == 0:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield at, line
    except OSError as error:
        raise BadInput(path, f"cannot be read: {error.strerror}") from None


def _line_at(path: str, place: int) -> int:
    with Path(path).open("rb") as file:
        return file.read(place).count(b"\n") + 1


SOURCE = JsonlSource
