"""Append-only JSONL rows: one writer, flushed rows survive a crash, a torn last line is dropped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import msgspec

from heredity.core.errors import Damaged, NotComparable
from heredity.core.files import _BLOCK, explain_full_disk, replacing, sync_folder
from heredity.core.records import SCHEMA

T = TypeVar("T", bound=msgspec.Struct)


class _Closed:
    """Closed where its `with` block ends."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Rows(_Closed, Generic[T]):
    """An append-only file of JSON lines, one record of type `type` each.

    Reading streams and needs no lock. The first append drops a torn last line; hold a Lock on the folder.
    A row of an older schema of its type goes through `upgrade`, if one is given.
    Appended rows are buffered. `write` hands them to the system, where they outlive this process. `flush`
    (or leaving the `with`) puts them on the disk.
    """

    def __init__(self, path: Path, type: type[T], upgrade: Callable[[T], T] | None = None) -> None:
        self.path, self._upgrade, self._schema = path, upgrade, _newest(type)
        self._decoder, self._encoder = msgspec.json.Decoder(type), msgspec.json.Encoder()
        self._pending = bytearray()
        self._handle: int | None = None
        self._size = 0  # bytes of the file that hold whole rows
        self._start = self._end = self._n_before = self.line = 0  # reading begins and came to: bytes, lines

    def append(self, record: T) -> None:
        """Add one row."""
        if self._handle is None:
            self._open()
        self._pending += self._encoder.encode(record) + b"\n"
        if len(self._pending) >= _BLOCK:
            self.write()

    def extend(self, records: Iterable[T]) -> None:
        """Add rows in order."""
        for record in records:
            self.append(record)

    def flush(self) -> None:
        """Put every appended row on the disk (fsync)."""
        if self._handle is None:
            return
        self.write()
        with explain_full_disk(self.path.parent, 0):
            os.fsync(self._handle)

    def close(self) -> None:
        """Flush and let go of the file."""
        try:
            self.flush()
        finally:
            if self._handle is not None:
                os.close(self._handle)
            self._handle = None

    def __iter__(self) -> Iterator[T]:
        """Every whole row in order, those appended here included.

        Raises Damaged with file:line for a line that is not such a record, NotComparable for another
        schema.
        """
        self.write()
        if not self.path.exists():
            return
        self._end, self.line = self._start, self._n_before
        with self.path.open("rb") as file:
            file.seek(self._start)
            for line in file:
                if not line.endswith(b"\n"):  # torn by a crash, or still being written
                    return
                self._end += len(line)
                self.line += 1
                yield self._decode(line)

    def go_on(self) -> None:
        """Begin the next reading behind the row that was read last."""
        self._start, self._n_before = self._end, self.line

    def _decode(self, line: bytes) -> T:
        try:
            record = self._decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            _refuse_other_schema(self.path, self.line, line, self._schema)
            raise Damaged(
                f"{self.path}:{self.line}: not a row of {self.path.name} ({error})."
                " Remove that line to go on; what it held is then asked again.",
                code="row-damaged",
            ) from error
        schema = getattr(record, "schema", self._schema)
        if not SCHEMA <= schema <= self._schema:
            _refuse_other_schema(self.path, self.line, line, self._schema)
        if self._upgrade is not None and schema < self._schema:
            return self._upgrade(record)
        return record

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        self._size = _end_of_whole_lines(self._handle)
        os.ftruncate(self._handle, self._size)
        os.lseek(self._handle, self._size, os.SEEK_SET)
        sync_folder(self.path.parent)

    def write(self) -> None:
        """Hand every appended row to the system: a crash of this process loses none of them."""
        if self._handle is None or not self._pending:
            return
        data, n_done = bytes(self._pending), 0
        view = memoryview(data)
        try:
            with explain_full_disk(self.path.parent, len(data)):
                while n_done < len(data):
                    n_done += os.write(self._handle, view[n_done:])
        except BaseException:
            self._size += data.rfind(b"\n", 0, n_done) + 1  # whole rows that fitted stay, no half row does
            os.ftruncate(self._handle, self._size)
            os.lseek(self._handle, self._size, os.SEEK_SET)
            self._pending.clear()  # the rest was never on disk: a resumed run asks it again
            raise
        self._size += len(data)
        self._pending.clear()


def _newest(type: type[msgspec.Struct]) -> int:
    """The schema that rows of a type are written under: the default of its field `schema`."""
    own = next((field.default for field in msgspec.structs.fields(type) if field.name == "schema"), SCHEMA)
    return own if isinstance(own, int) else SCHEMA


def rewrite(
    path: Path, type: type[T], keep: Callable[[T], bool], upgrade: Callable[[T], T] | None = None
) -> None:
    """Leave out the rows that `keep` refuses. At any moment the file is the old one or the new one, whole."""
    with replacing(path) as temporary, Rows(temporary, type) as kept:
        kept.extend(filter(keep, Rows(path, type, upgrade)))


def _end_of_whole_lines(handle: int) -> int:
    """Bytes up to and with the last newline; scans backwards, so that a long file costs nothing."""
    end = os.lseek(handle, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK)
        os.lseek(handle, start, os.SEEK_SET)
        if (found := os.read(handle, end - start).rfind(b"\n")) >= 0:
            return start + found + 1
        end = start
    return 0


class _SchemaOnly(msgspec.Struct):
    schema: int = SCHEMA


def _refuse_other_schema(path: Path, number: int, line: bytes, newest: int) -> None:
    try:
        schema = msgspec.json.decode(line, type=_SchemaOnly).schema
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    if not SCHEMA <= schema <= newest:
        raise NotComparable(
            f"{path}:{number}: written under schema {schema}, this heredity reads schema {newest}."
            " Use the version that wrote it, or start a new folder.",
            code="schema-mismatch",
        )
