"""The documents of an index: which files of a folder are read, and the chunks that their text is cut to.

Promises: no link is followed. A file is opened once, and what is read is what is hashed. The order depends
only on the paths. A heading begins a new chunk. Only a paragraph that is longer than a chunk is cut, at the
end of a sentence if there is one in its second half. Otherwise the next part repeats the last words, so that
a phrase at the cut is whole in one of them.
Leaves to others: the formats (readers/), and what is kept and searched (index.py).
"""

from __future__ import annotations

import os
import re
import stat
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from heredity.application.retrieval.readers import Reason, TextBlock, Unit, Unreadable, by_suffix
from heredity.core.errors import BadArgument, UsageError
from heredity.core.records import Record, digest

MANIFEST = "index.json"  # of an index; also what tells its folder from others
_HIDING = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one file. They hold before and while it is parsed."""

    max_bytes: int = 50_000_000
    max_unpacked: int = 200_000_000  # bytes of a DOCX after unpacking, characters of a PDF
    max_seconds: float = 60.0  # of parsing
    max_memory: int = 2 << 30  # bytes of the process that parses; not on Windows and macOS

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.max_unpacked, self.max_seconds, self.max_memory) <= 0:
            raise BadArgument("every limit must be above 0")


class SkippedFile(Record, frozen=True):
    """A file that an index leaves out, and why. `sha256` is "" for one that was not opened."""

    path: str
    reason: Reason
    detail: str = ""
    bytes: int = 0
    sha256: str = ""


class Candidate(NamedTuple):
    """A file to be read. `reader` is a name in readers/."""

    path: str  # below the folder, with "/"
    file: Path
    bytes: int
    reader: str


def walk(folder: Path, out: Path, limits: Limits) -> tuple[list[Candidate], list[SkippedFile]]:
    """The files to be read and those that are not, each by path. `out`: the index, which is passed over.

    Raises UsageError if the folder does not exist.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder to index.", code="unreadable-file")
    files, left = list[Candidate](), list[SkippedFile]()
    for entry in _entries(folder, out, limits):
        files.append(entry) if isinstance(entry, Candidate) else left.append(entry)
    return sorted(files), sorted(left, key=lambda each: each.path)


def _entries(root: Path, out: Path, limits: Limits) -> Iterator[Candidate | SkippedFile]:
    waiting = [root]  # a list: folders may lie deeper than Python recurses
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as scan:
                entries = list(scan)
        except OSError as error:
            yield SkippedFile(_shown(root, folder), "unreadable", error.strerror or "")
            continue
        for entry in entries:
            path = Path(entry.path)
            if reason := _why_not_entered(entry):
                yield SkippedFile(_shown(root, path), reason)
            elif not entry.is_dir(follow_symlinks=False):
                yield _candidate(root, path, entry, limits)
            elif path != out and is_index(path):
                yield SkippedFile(_shown(root, path), "index")
            elif path != out:
                waiting.append(path)


def is_index(folder: Path) -> bool:
    """Whether a folder is an index, whole or not."""
    return (folder / MANIFEST).is_file() and any(folder.glob("chunks-*.jsonl"))


def _why_not_entered(entry: os.DirEntry[str]) -> Reason | None:
    if not is_plain_name(entry.name):
        return "file-name"
    if entry.is_symlink():
        return "link"
    return "hidden" if entry.name.startswith(".") else None


def _candidate(root: Path, path: Path, entry: os.DirEntry[str], limits: Limits) -> Candidate | SkippedFile:
    name = _shown(root, path)
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError as error:
        return SkippedFile(name, "unreadable", error.strerror or "")
    if not stat.S_ISREG(status.st_mode):
        return SkippedFile(name, "not-a-file")
    reader = by_suffix().get(path.suffix.lower())
    if reader is None:
        return SkippedFile(name, "unsupported", path.suffix, status.st_size)
    if status.st_size > limits.max_bytes:
        return SkippedFile(name, "too-large", f"{status.st_size:,} bytes", status.st_size)
    return Candidate(name, path, status.st_size, reader)


def is_plain_name(name: str) -> bool:
    """Whether a name is UTF-8 without characters that hide, reorder or control."""
    return not any(unicodedata.category(each) in _HIDING for each in name)


def read_bytes(file: Path, limits: Limits) -> bytes:
    """The bytes of a regular file. Raises Unreadable, also if it became a link or grew over the limit."""
    if sys.platform == "win32":
        flags = os.O_RDONLY | os.O_BINARY
    else:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(file, flags)
        with open(handle, "rb") as opened:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise Unreadable("not-a-file")
            data = opened.read(limits.max_bytes + 1)
    except OSError as error:
        raise Unreadable("unreadable", error.strerror or "") from None
    if len(data) > limits.max_bytes:
        raise Unreadable("too-large", f"over {limits.max_bytes:,} bytes")
    return data


def _shown(root: Path, path: Path) -> str:
    """The path below the folder. Bytes that are not UTF-8 are escaped."""
    relative = str(PurePosixPath(path.relative_to(root)))
    return os.fsencode(relative).decode("utf-8", "backslashreplace")


def place_of(folder: Path, out: Path) -> str:
    """The folder as an index at `out` records it: relative if both lie near, so that they move together."""
    folder, out = folder.resolve(), out.resolve()
    with suppress(ValueError):  # two drives on Windows
        relative = PurePosixPath(Path(os.path.relpath(folder, out)))
        if relative.parts.count("..") <= 1:
            return str(relative)
    return str(folder)


def folder_of(place: str, out: Path) -> Path:
    """The folder that `place_of` recorded."""
    return Path(os.path.normpath(out.resolve() / place))


WORDS = 160  # of a chunk: about 220 tokens of English, and MiniLM reads 256
OVERLAP = 8  # a cut that ends no sentence repeats this part of a chunk: 1/8
# A word; a character of a script without spaces; or 40 characters of something that never ends.
WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]{1,40}"
)
_SENTENCE_END = re.compile(r"[.!?。！？][\"')\]]*$")


class Chunk(Record, frozen=True):
    """A passage of a file. `id` is a digest over path and text, and over which of equal ones it is."""

    id: str
    path: str  # below the indexed folder, with "/"
    heading: str  # the headings above it, "Install > On Linux"; "" for none
    start: int  # its place in `unit`, from 1
    end: int
    unit: Unit
    text: str

    @property
    def citation(self) -> str:
        """The file and the place, such as `guide.md:12-30` or `manual.pdf, page 3`."""
        if self.unit == "line":
            return f"{self.path}:{_span(self.start, self.end)}"
        plural = "s" if self.end > self.start else ""
        return f"{self.path}, {self.unit}{plural} {_span(self.start, self.end)}"

    @property
    def searched(self) -> str:
        """The text that is indexed: the headings above, which often name the subject, and the text."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text


class Match(NamedTuple):
    """A chunk that matches. `score` compares only within one search."""

    chunk: Chunk
    score: float


def cut(path: str, unit: Unit, blocks: Sequence[TextBlock], n_words: int = WORDS) -> list[Chunk]:
    """The chunks of a file in its order."""
    chunks: list[Chunk] = []
    seen: dict[str, int] = {}
    for heading, part in _parts(blocks, n_words):
        text = "\n\n".join(block.text for block in part)
        nth = seen[text] = seen.get(text, 0) + 1
        name = digest([path, text, nth])[:16]
        chunks.append(Chunk(name, path, heading, part[0].start, part[-1].end, unit, text))
    return chunks


def _parts(blocks: Sequence[TextBlock], n_words: int) -> Iterator[tuple[str, list[TextBlock]]]:
    """The blocks of each chunk, and the headings above."""
    above: list[TextBlock] = []
    part: list[TextBlock] = []
    n_in_part, has_text = 0, False
    heading = ""
    for block in _split(blocks, n_words):
        n_here = n_words_of(block.text)
        is_new_section = bool(block.level) and has_text
        if part and (is_new_section or n_in_part + n_here > n_words):
            yield heading, part
            part, n_in_part, has_text = [], 0, False
        if block.level:
            above = [*(each for each in above if each.level < block.level), block]
        if not part:
            # A chunk that begins with its heading repeats it in its text.
            heading = " > ".join(_title(each) for each in (above[:-1] if block.level else above))
        part.append(block)
        n_in_part, has_text = n_in_part + n_here, has_text or not block.level
    if part:
        yield heading, part


def n_words_of(text: str) -> int:
    """The number of words, as WORD counts them."""
    return sum(1 for _ in WORD.finditer(text))


def _split(blocks: Sequence[TextBlock], n_words: int) -> Iterator[TextBlock]:
    """The blocks, each that is longer than `n_words` in parts."""
    for block in blocks:
        if len(block.text) <= n_words:  # it cannot have more words than characters
            yield block
            continue
        spans = [match.span() for match in WORD.finditer(block.text)]
        if len(spans) <= n_words:
            yield block
            continue
        is_lines = block.end > block.start and block.text.count("\n") == block.end - block.start
        start, counted = block.start, 0  # the line of the character at `counted`
        for first, last in _windows(block.text, spans, n_words):
            begin, end = spans[first][0], spans[last][1]
            if is_lines:
                start, counted = start + block.text.count("\n", counted, begin), begin
                yield TextBlock(block.text[begin:end], start, start + block.text.count("\n", begin, end))
            else:
                yield TextBlock(block.text[begin:end], block.start, block.end)


def _windows(text: str, spans: Sequence[tuple[int, int]], n_words: int) -> Iterator[tuple[int, int]]:
    """The first and the last word of each part."""
    first = 0
    while len(spans) - first > n_words:
        last = first + n_words - 1
        ends = (
            at
            for at in range(last, first + n_words // 2, -1)
            if (_SENTENCE_END.search(text, *spans[at]) is not None)
        )
        end = next(ends, None)
        yield first, last if end is None else end
        first = last + 1 - n_words // OVERLAP if end is None else end + 1
    yield first, len(spans) - 1


def _title(block: TextBlock) -> str:
    """A heading without its marks, on one line of at most 120 characters."""
    first = block.text.split("\n")[0]
    return " ".join(first.strip().strip("#").split())[:120]


def _span(start: int, end: int) -> str:
    return f"{start}-{end}" if end > start else str(start)
