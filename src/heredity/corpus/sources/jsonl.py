"""JSON lines: each object is a document, its text under one key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

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
        files = _files.files_of(self, root)
        jobs: list[Job] = []
        for path, name in files:
            size = Path(path).stat().st_size
            parts = range(0, max(size, 1), JOB_BYTES)
            jobs += [Job(((path, name),), low, min(low + JOB_BYTES, size)) for low in parts]
        return jobs

    def read(self, job: Job) -> Iterator[bytes | SkippedDocument]:
        ((path, _),) = job.files
        decoder = msgspec.json.Decoder()
        for at, line in _lines(path, job.low, job.high):
            try:
                row = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                row = _decoded(line, path, at)
            yield text_of(row, self.text, path, at, partial(_line_at, path))


def text_of(
    row: object, key: str, path: str, place: int, line_of: Callable[[int], int] = int
) -> bytes | SkippedDocument:
    """The text of a row. place: of the row; line_of: its line number, for errors. Raises BadInput."""
    if not isinstance(row, dict):
        raise BadInput(path, "not a JSON object; each line must be one", line_of(place), code="wrong-type")
    text = row.get(key)
    if text is None and key not in row:
        hint = did_you_mean(key, map(str, row))
        raise BadInput(
            path,
            f"no '{key}' in this row.{hint} Say its key in the recipe: text = \"KEY\"",
            line_of(place),
            code="unknown-key",
        )
    if text is None or text == "":
        return SkippedDocument("no_text")
    if not isinstance(text, str):
        raise BadInput(
            path, f"'{key}' is not text but {type(text).__name__}", line_of(place), code="wrong-type"
        )
    return text.encode("utf-8", "replace")  # half a surrogate pair, which JSON allows, becomes ?


def _decoded(line: bytes, path: str, at: int) -> object:
    """Decode a line that msgspec rejects. Half a surrogate pair is valid JSON. Raises BadInput."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput(path, f"not JSON: {error}", _line_at(path, at), code="not-json") from None


def _lines(path: str, low: int, high: int) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in this part, each with the offset of its first byte."""
    try:
        with Path(path).open("rb") as file:
            if low:
                file.seek(low - 1)
                file.readline()  # the rest of a line of the previous part, if any
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
