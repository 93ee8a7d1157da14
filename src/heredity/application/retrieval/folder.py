"""The files of a folder of documents, and those that are left out before anything is parsed.

Promises: no link is followed. A file is opened once, and what is read is what is hashed. The order depends
only on the paths.
Leaves to others: the formats (readers/), and what is kept (index.py).
"""

from __future__ import annotations

import os
import stat
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from heredity.application.retrieval.readers import Reason, Unreadable, by_suffix
from heredity.core.errors import BadArgument, UsageError
from heredity.core.records import Record

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
    for found in _entries(folder, out, limits):
        files.append(found) if isinstance(found, Candidate) else left.append(found)
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
        found = entry.stat(follow_symlinks=False)
    except OSError as error:
        return SkippedFile(name, "unreadable", error.strerror or "")
    if not stat.S_ISREG(found.st_mode):
        return SkippedFile(name, "not-a-file")
    reader = by_suffix().get(path.suffix.lower())
    if reader is None:
        return SkippedFile(name, "unsupported", path.suffix, found.st_size)
    if found.st_size > limits.max_bytes:
        return SkippedFile(name, "too-large", f"{found.st_size:,} bytes", found.st_size)
    return Candidate(name, path, found.st_size, reader)


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
