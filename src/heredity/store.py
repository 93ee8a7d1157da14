"""Bytes on disk: hashed files, atomic writes, append-only rows, one writer a folder, the response cache.

Promises: a file is there whole or not at all; a row that was flushed survives a crash; a torn last line is
dropped, any other bad line is an error with its place; a full disk is one clear line and leaves no half file.
Leaves to others: what the records mean (records.py) and which models exist (lineage.py).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sqlite3
import threading
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import msgspec
from filelock import FileLock, Timeout

from heredity.errors import Busy, Damaged, HeredityError, NotComparable
from heredity.records import SCHEMA, Decoding, Reply, digest, encode

T = TypeVar("T", bound=msgspec.Struct)

_BLOCK = 1 << 20  # bytes; a writer's buffer, and the step of every scan
_TORN = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)  # the names that _temporary gives
_FULL = (errno.ENOSPC, errno.EDQUOT)


def default_root() -> Path:
    """The store's folder: HEREDITY_STORE, or ~/.cache/heredity."""
    return Path(os.environ.get("HEREDITY_STORE") or "~/.cache/heredity").expanduser()


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hex, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_file(path: Path) -> list[int]:
    """What changes when a file is written or replaced: size, times in ns, inode. Cheaper than a hash."""
    said = path.lstat()
    return [said.st_size, said.st_mtime_ns, said.st_ctime_ns, said.st_ino]


@contextmanager
def explain_full_disk(folder: Path, n_bytes: int) -> Iterator[None]:
    """Turn "no space left" into an error that names the folder and the bytes that did not fit."""
    try:
        yield
    # Of any kind, since safetensors has one of its own, for which it would be imported; all others go on.
    except Exception as error:
        words = str(error) if type(error).__name__ == "SafetensorError" else ""  # it is no OSError
        if getattr(error, "errno", 0) not in _FULL and not any(f"(os error {n})" in words for n in _FULL):
            raise
        raise HeredityError(
            f"The disk is full: {f'{n_bytes:,} bytes' if n_bytes else 'what was written'} did not fit into "
            f"{folder}. Free some space and run the same command again; what was written before is kept.",
            code="disk-full",
        ) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file: a temporary name beside it, fsync, rename, fsync of the folder.

    Raises HeredityError where the disk is full. A failure leaves the old file, if any, and nothing else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with explain_full_disk(path.parent, len(data)):
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut, where the system can."""
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    What is appended is buffered: `write` hands it to the system, where it outlives this process; `flush` (or
    leaving the `with`) puts it on the disk for good.
    """

    def __init__(self, path: Path, type: type[T]) -> None:
        self.path, self._type = path, type
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

        Raises Damaged with file:line for a line that is no such record, NotComparable for another schema.
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
            _refuse_other_schema(self.path, self.line, line)
            raise Damaged(
                f"{self.path}:{self.line}: not a row of {self.path.name} ({error})."
                " Remove that line to go on; what it held is then asked again.",
                code="row-damaged",
            ) from error
        if getattr(record, "schema", SCHEMA) != SCHEMA:
            _refuse_other_schema(self.path, self.line, line)
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


def rewrite(path: Path, type: type[T], keep: Callable[[T], bool]) -> None:
    """Leave out the rows that `keep` refuses. At any moment the file is the old one or the new one, whole."""
    temporary = _temporary(path)
    try:
        temporary.touch()
        with Rows(temporary, type) as kept:
            kept.extend(filter(keep, Rows(path, type)))
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()
    sync_folder(path.parent)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # as _TORN


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


def _refuse_other_schema(path: Path, number: int, line: bytes) -> None:
    try:
        schema = msgspec.json.decode(line, type=_SchemaOnly).schema
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    if schema != SCHEMA:
        raise NotComparable(
            f"{path}:{number}: written under schema {schema}, this heredity reads schema {SCHEMA}."
            " Use the version that wrote it, or start a new folder.",
            code="schema-mismatch",
        )


class Lock:
    """One process at a time in a folder, as a context manager; freed by the system when a process dies.

    Raises Busy, with the folder and the holder's process id, where `wait_seconds` pass without getting it.
    """

    def __init__(self, folder: Path, wait_seconds: float = 0) -> None:
        self.folder, self._wait = folder, wait_seconds
        self._lock = FileLock(folder / ".lock", timeout=wait_seconds, thread_local=False)
        self._holder = folder / ".lock.pid"  # a second taker may truncate the lock's own file

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise Busy(
                f"Another process{self._who()} is working in {self.folder}."
                " Wait for it, or use another folder."
            ) from error
        with suppress(OSError):
            self._holder.write_text(str(os.getpid()))
        _clear_torn(self.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._holder.unlink()
        self._lock.release()

    def _who(self) -> str:
        with suppress(OSError, ValueError):
            return f" (pid {int(self._holder.read_text())})"
        return ""


def _clear_torn(folder: Path) -> None:
    """Remove what a killed write left; only the holder of the folder's lock writes there."""
    for path in folder.glob(".*.tmp"):
        if _TORN.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def cache_key(numerics: str, model_id: str, prompt: str, decoding: Decoding, seed: int) -> str:
    """What makes two answers the same answer. The seed counts only where something is drawn."""
    drawn = seed if decoding.temperature > 0 else 0
    return digest([numerics, model_id, prompt, decoding, drawn])


class ResponseCache(_Closed):
    """Answers that any study of this store already has, by `cache_key`; shared by processes (SQLite, WAL).

    What comes back has `is_cached` set and the key of the request that first asked: put your own in.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._table = f"replies_{SCHEMA}"  # another schema is another table: never misread, never lost
        self._pending: dict[str, Reply] = {}
        self._decoder = msgspec.json.Decoder(Reply)
        self._guard = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._base = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            with self._explain():
                self._base.execute("PRAGMA journal_mode=WAL")
                self._base.execute("PRAGMA synchronous=NORMAL")
                columns = "(key TEXT PRIMARY KEY, reply BLOB) WITHOUT ROWID"
                self._base.execute(f"CREATE TABLE IF NOT EXISTS {self._table} {columns}")
        except BaseException:
            self._base.close()
            raise

    def get(self, key: str) -> Reply | None:
        """The answer kept under `key`, or None."""
        with self._guard, self._explain():
            if key in self._pending:
                return msgspec.structs.replace(self._pending[key], is_cached=True)
            row = self._base.execute(f"SELECT reply FROM {self._table} WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            return msgspec.structs.replace(self._decoder.decode(zlib.decompress(row[0])), is_cached=True)

    def put(self, key: str, reply: Reply) -> None:
        """Keep an answer (errors are not kept). Written in batches: `flush` makes it visible to others."""
        if reply.error is not None or reply.stop == "error":
            return
        with self._guard:
            self._pending[key] = reply
        if len(self._pending) >= 256:
            self.flush()

    def flush(self) -> None:
        """Write what is pending in one transaction."""
        with self._guard, self._explain():
            rows = [(key, zlib.compress(encode(reply), 1)) for key, reply in self._pending.items()]
            if rows:
                self._base.execute("BEGIN IMMEDIATE")
                try:
                    self._base.executemany(f"INSERT OR IGNORE INTO {self._table} VALUES (?, ?)", rows)
                    self._base.execute("COMMIT")
                except BaseException:
                    with suppress(sqlite3.Error):
                        self._base.execute("ROLLBACK")
                    raise
            self._pending.clear()

    def close(self) -> None:
        """Flush and let go of the file."""
        try:
            self.flush()
        finally:
            self._base.close()

    @contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, zlib.error, msgspec.DecodeError) as error:
            if "full" in str(error):
                raise HeredityError(
                    f"The disk is full: no answer fits into {self.path}. Free some space."
                ) from error
            raise Damaged(
                f"The response cache {self.path} cannot be used ({error})."
                " Delete that file: only time is lost, its answers are asked again.",
                code="cache-damaged",
            ) from error
