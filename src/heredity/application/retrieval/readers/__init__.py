"""Readers of document formats, one file each: bytes in, blocks with a heading level and a place out.

A reader is a module with the members of `Reader`.

Promises: a reader raises nothing but `Unreadable` for a file that it knows it cannot read; any other error
counts as a damaged file. A reader with IS_ISOLATED runs in another process (build.py), which bounds its
time and memory.
Leaves to others: the files, and cutting blocks to chunks (documents.py).
"""

from __future__ import annotations

from functools import cache
from typing import Literal, Protocol, runtime_checkable

from heredity.core import registry
from heredity.core.records import Record

FOLDER = "application.retrieval.readers"
Unit = Literal["line", "page", "paragraph"]
# Why a file is left out of an index; REASONS has the words.
Reason = Literal[
    "link", "hidden", "file-name", "not-a-file", "index", "unsupported", "unreadable", "too-large", "binary",
    "not-utf8", "encrypted", "damaged", "unpacks-too-large", "too-slow", "too-much-memory", "crashed",
    "no-text", "needs-package",
]  # fmt: skip
REASONS: dict[str, str] = {
    "link": "a symbolic link",
    "hidden": "a hidden file or folder",
    "file-name": "control or hidden characters in its name, or not UTF-8",
    "not-a-file": "a device, a pipe or a socket",
    "index": "an index of heredity",
    "unsupported": "no reader for its ending",
    "unreadable": "cannot be opened",
    "too-large": "larger than the limit",
    "binary": "not text",
    "not-utf8": "not UTF-8",
    "encrypted": "encrypted",
    "damaged": "damaged, or of another kind than its ending",
    "unpacks-too-large": "unpacks to more than the limit",
    "too-slow": "took longer than the limit",
    "too-much-memory": "needs more memory than the limit",
    "crashed": "its parser crashed, or had no memory left",
    "no-text": "holds no text",
    "needs-package": "its reader is not installed",
}


class TextBlock(Record, frozen=True):
    """A paragraph or a heading. `start` and `end`: its place in the file, in the reader's UNIT, from 1.

    level: 1 to 6 of a heading; 0 of any other text.
    """

    text: str
    start: int
    end: int
    level: int = 0


class Unreadable(Exception):
    """A file that a reader cannot read, and why."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@runtime_checkable
class Reader(Protocol):
    """SUFFIXES: the endings of its files, in lower case. UNIT: what the place of a block counts."""

    SUFFIXES: tuple[str, ...]
    UNIT: Unit
    IS_ISOLATED: bool

    def read(self, data: bytes, max_unpacked: int) -> list[TextBlock]: ...


@cache
def by_suffix() -> dict[str, str]:
    """The name of the reader for each ending; "" stands for a file without one."""
    return {suffix: name for name in registry.names(FOLDER) for suffix in load(name).SUFFIXES}


def load(name: str) -> Reader:
    """A reader by its name."""
    return registry.load_as(Reader, FOLDER, name)


def decode(data: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 with a byte order mark. Raises Unreadable."""
    is_utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    if b"\0" in data and not is_utf16:
        raise Unreadable("binary")
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable("not-utf8", f"byte {error.start}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def paragraphs(lines: list[str], first: int = 1) -> list[TextBlock]:
    """The runs of lines between blank lines. `first`: the number of the first line."""
    text_blocks: list[TextBlock] = []
    start: int | None = None
    for number, line in enumerate([*lines, ""]):
        if line.strip():
            start = number if start is None else start
        elif start is not None:
            text_blocks.append(TextBlock("\n".join(lines[start:number]), first + start, first + number - 1))
            start = None
    return text_blocks
