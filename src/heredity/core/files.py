"""Bytes on disk: hashed files, atomic writes, one writer per folder, append-only rows of JSON lines.

Promises: a file exists whole or not at all. A flushed row survives a crash. A torn last line is dropped;
any other bad line is an error with its place. A full disk is one line of error and leaves no partial file.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import re
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Generic, NoReturn, Self, TypeVar

import msgspec
from filelock import FileLock, Timeout

from heredity.core.errors import Busy, Damaged, HeredityError, NotComparable, Refused, UsageError
from heredity.core.records import SCHEMA

if sys.platform == "win32":  # a link there needs rights that few users have
    _OPENING = os.O_BINARY
else:
    import fcntl

    _OPENING = os.O_NOFOLLOW | os.O_NONBLOCK

_BLOCK = 1 << 20  # bytes; a writer's buffer, and the step of a scan backwards
_STEP = 1 << 16  # bytes that are read at a time; rows of them fit a processor's cache
_TORN = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)  # the names that _held_temporary gives
_OLD = 86_400.0  # seconds after which a temporary file is no one's, where no lock can tell
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MAX_BYTES = 1 << 28  # bytes of a file that is read at once, and of a line
RESULTS = Path("runs")  # the default folder of every study and measurement; `out` names another

T = TypeVar("T", bound=msgspec.Struct)

# --- files of a folder that may come from anyone ---


def open_handle(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a file in a study's folder. Raises Refused for what leads out of it or blocks a reader.

    That is a link, a pipe, a device or a folder, and for writing a file with a second name (a hard link).
    """
    with suppress(FileNotFoundError):
        _check_plain(path, path.lstat(), flags)
    try:
        handle = os.open(path, flags | _OPENING, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link since the check
            _refuse_entry(path)
        raise
    try:
        _check_plain(path, os.fstat(handle), flags)
    except Refused:
        os.close(handle)
        raise
    return handle


def open_file(path: Path) -> BinaryIO:
    """A file in a study's folder, for reading. Raises as `open_handle` does."""
    return os.fdopen(open_handle(path), "rb")


def read_file(path: Path, max_bytes: int = _MAX_BYTES) -> bytes:
    """The bytes of a file in a study's folder. Raises as `open_handle` does, and for a larger file."""
    with open_file(path) as file:
        if (n := os.fstat(file.fileno()).st_size) > max_bytes:
            raise Refused(f"{path} has {n:,} bytes: too many to read.")
        return file.read()


def read_lines(path: Path, max_bytes: int = _MAX_BYTES) -> Iterator[bytes]:
    """The lines of a file in a study's folder; none without it. Raises as `read_file`."""
    return itertools.chain.from_iterable(map(BytesIO, read_blocks(path, 0, max_bytes)))


def read_blocks(path: Path, start: int = 0, max_bytes: int = _MAX_BYTES) -> Iterator[bytes]:
    """The lines of `read_lines` from byte `start`, many at a time."""
    with suppress(FileNotFoundError), open_file(path) as file:
        file.seek(start)
        while block := file.read(_STEP):
            last = block.rfind(b"\n") + 1
            block += file.readline(max_bytes)
            if len(block) - last >= max_bytes:
                raise Refused(f"{path} has a line that is too long to read.")
            yield block


def refuse_linked_folders(folder: Path, *names: str) -> None:
    """Raise Refused if one of these in `folder`, or a folder below, is a link: its files lie elsewhere."""
    for top in (folder / name for name in names):
        below = (Path(parent, name) for parent, names, _ in os.walk(top) for name in names)
        for path in itertools.chain([top], below):
            if path.is_symlink():
                _refuse_entry(path)


def _check_plain(path: Path, status: os.stat_result, flags: int) -> None:
    is_written = flags & (os.O_WRONLY | os.O_RDWR)
    if not stat.S_ISREG(status.st_mode) or (is_written and status.st_nlink > 1):
        _refuse_entry(path)


def _refuse_entry(path: Path) -> NoReturn:
    raise Refused(
        f"{path} is a link, or no ordinary file, so it could lead elsewhere. Files of a study lie in its own "
        "folder: replace it by a copy, or remove it."
    )


# --- files and folders ---


def default_root() -> Path:
    """The store's folder: HEREDITY_STORE, or ~/.cache/heredity."""
    return Path(os.environ.get("HEREDITY_STORE") or "~/.cache/heredity").expanduser()


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hex, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_file(path: Path) -> list[int]:
    """The size, times in ns and inode of a file: writing or replacing it changes them. Cheap."""
    status = path.lstat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


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
    """Write a whole file under a temporary name, with fsync, and rename it.

    Raises HeredityError if the disk is full. A failure leaves the old file.
    """
    full = explain_full_disk(path.parent, len(data))
    with replacing(path) as temporary, full, os.fdopen(open_handle(temporary, os.O_WRONLY), "wb") as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file in the folder of `path`, which replaces it at the end of the block.

    A failure leaves the old file, if any. A killed process leaves its temporary file, which the next process
    that writes into the folder removes; those of living processes stay.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(path)
    temporary, handle = _held_temporary(path)
    try:
        yield temporary
        with explain_full_disk(path.parent, 0):
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()
        if handle is not None:
            os.close(handle)
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


def _held_temporary(path: Path) -> tuple[Path, int | None]:
    """A new temporary file, and the handle by whose lock others see that its writer lives (POSIX)."""
    while True:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # as _TORN
        with explain_full_disk(path.parent, 0):
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if sys.platform == "win32":  # no open file can be replaced, nor removed by others
            os.close(handle)
            return temporary, None
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if temporary.exists():  # else someone removed it between the two calls
            return temporary, handle
        os.close(handle)


def is_abandoned(path: Path) -> bool:
    """Whether no living process holds this temporary file or folder."""
    with suppress(OSError):
        if sys.platform == "win32":
            return time.time() - path.lstat().st_mtime > _OLD
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            return False
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        finally:
            os.close(handle)
    return False


_torn_in: dict[Path, list[str]] = {}  # by folder: what lay there when this process first wrote there


def _clear_abandoned(path: Path) -> None:
    """Remove what killed processes left of this file. A folder is listed once a process: it may be long."""
    folder = path.parent.absolute()
    if folder not in _torn_in:
        _torn_in[folder] = [each.name for each in folder.iterdir() if _TORN.fullmatch(each.name)]
    if not (names := _torn_in[folder]):
        return
    of_path = [name for name in names if name[1 : -len(".01234567.tmp")] == path.name]
    for name in of_path:
        if is_abandoned(folder / name):
            with suppress(OSError):
                (folder / name).unlink()
    _torn_in[folder] = [name for name in names if name not in of_path]


class Lock:
    """One process at a time in a folder, as a context manager; freed by the system when a process dies.

    Raises Busy, with the folder and the holder's process id, where `wait_seconds` pass without getting it.
    """

    def __init__(self, folder: Path, wait_seconds: float = 0) -> None:
        self.folder, self._wait = folder, wait_seconds
        self._lock = FileLock(folder / ".lock", timeout=wait_seconds, thread_local=False)
        self._holder = folder / ".lock.pid"  # a second taker may truncate the lock's own file

    def __enter__(self) -> Self:
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{self.folder} is a file. Name a folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # older releases of filelock empty a file that has a second name
            _check_plain(path := self.folder / ".lock", path.lstat(), os.O_RDWR)
        try:
            self._lock.acquire()
        except Timeout as error:
            pid = _read_pid(self._holder)
            who = "" if pid is None else f" (pid {pid})"
            raise Busy(
                f"Another process{who} is working in {self.folder}. Wait for it, or use another folder."
            ) from error
        with suppress(OSError):  # a new file: what lies there may be a link
            self._holder.unlink(missing_ok=True)
            with self._holder.open("x") as file:
                file.write(str(os.getpid()))
        for torn in self.folder.glob(".*.tmp"):  # what killed processes left
            if _TORN.fullmatch(torn.name) and is_abandoned(torn):
                with suppress(OSError):
                    torn.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._holder.unlink()
        self._lock.release()


def _read_pid(path: Path) -> int | None:
    with suppress(OSError, ValueError, Refused):  # who holds a lock writes an ordinary file
        return int(read_file(path, 32))
    return None


def is_locked(folder: Path) -> bool:
    """Whether a process of this machine holds the Lock of a folder. Nothing is written.

    A process that starts meanwhile gets the lock: nothing is tried unless the recorded holder lives.
    """
    path, pid = folder / ".lock", _read_pid(folder / ".lock.pid")
    if pid is None or not path.is_file():
        return False
    if sys.platform == "win32":  # no process can be looked up without harm, and no lock be shared
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # it lives, and is another user's
    with suppress(OSError, Refused):  # the number may be that of a later process, which does not hold it
        handle = open_handle(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
    return False


# --- rows ---


class Closable:
    """A context manager that calls `close` at the end of its block."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Rows(Closable, Generic[T]):
    """An append-only file of JSON lines, one record of type `type` each.

    Reading streams and needs no lock. The first append drops a torn last line; hold a Lock on the folder.
    Appended rows are buffered. `write` hands them to the system, where they outlive this process. `flush`
    (or leaving the `with`) puts them on the disk.
    """

    def __init__(self, path: Path, type: type[T]) -> None:
        own = next(
            (field.default for field in msgspec.structs.fields(type) if field.name == "schema"), SCHEMA
        )
        self.path, self._schema = path, (own if isinstance(own, int) else SCHEMA)
        self._decoder, self._encoder = msgspec.json.Decoder(type), msgspec.json.Encoder()
        self._pending = bytearray()
        self._handle: int | None = None
        self._size = 0  # bytes of the file that hold whole rows
        self._start = self._end = self._n_before = self.line = 0  # reading begins and came to: bytes, lines

    def append(self, record: T) -> None:
        """Add one row."""
        if self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = open_handle(self.path, os.O_RDWR | os.O_CREAT)
            self._size = _end_of_whole_lines(self._handle)
            os.ftruncate(self._handle, self._size)
            os.lseek(self._handle, self._size, os.SEEK_SET)
            sync_folder(self.path.parent)
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
        self._end, self.line = self._start, self._n_before
        for block in read_blocks(self.path, self._start):
            whole = block[: block.rfind(b"\n") + 1]  # the rest was torn by a crash, or is still being written
            for record in self._decoded(whole):
                self.line += 1
                yield record
            self._end += len(whole)
            if len(whole) < len(block):
                return  # a block that is read now would begin within that line

    def _decoded(self, lines: bytes) -> Iterable[T]:
        with suppress(msgspec.DecodeError, UnicodeDecodeError):  # `_one_by_one` says in which line
            records = list(map(self._decoder.decode, BytesIO(lines)))
            if {getattr(row, "schema", self._schema) for row in records} == {self._schema}:
                return records
        return self._one_by_one(lines)

    def _one_by_one(self, lines: bytes) -> Iterator[T]:
        for number, line in enumerate(BytesIO(lines), self.line + 1):
            _refuse_other_schema(self.path, number, line, self._schema)
            try:
                record = self._decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise Damaged(
                    f"{self.path}:{number}: not a row of {self.path.name} ({error}). Remove that line to "
                    "go on. An answer or verdict is then made again; any other row is lost."
                ) from error
            yield record

    def skip_read(self) -> None:
        """Let the next reading start after the last row that was read."""
        self._start, self._n_before = self._end, self.line

    def write(self) -> None:
        """Hand every appended row to the system: a crash of this process loses none of them."""
        if self._handle is None or not self._pending:
            return
        data, n_done = bytes(self._pending), 0
        view = memoryview(data)
        try:
            while n_done < len(data):
                n_done += os.write(self._handle, view[n_done:])
        except BaseException:
            self._size += data.rfind(b"\n", 0, n_done) + 1  # whole rows that fitted stay, no half row does
            os.ftruncate(self._handle, self._size)
            os.lseek(self._handle, self._size, os.SEEK_SET)
            self._pending.clear()  # the rest was never on disk: a resumed run asks it again
            with explain_full_disk(self.path.parent, len(data)):
                raise
        self._size += len(data)
        self._pending.clear()


def rewrite(path: Path, type: type[T], keep: Callable[[T], bool]) -> None:
    """Leave out the rows that `keep` refuses. At any moment the file is the old one or the new one, whole."""
    with replacing(path) as temporary, Rows(temporary, type) as kept:
        kept.extend(filter(keep, Rows(path, type)))


def _end_of_whole_lines(handle: int) -> int:
    """Bytes up to and with the last newline; scans backwards, so that a long file costs nothing."""
    end = os.lseek(handle, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK)
        os.lseek(handle, start, os.SEEK_SET)
        if (at := os.read(handle, end - start).rfind(b"\n")) >= 0:
            return start + at + 1
        end = start
    return 0


class _SchemaOnly(msgspec.Struct):
    schema: int


def _refuse_other_schema(path: Path, number: int, line: bytes, newest: int) -> None:
    try:
        schema = msgspec.json.decode(line, type=_SchemaOnly).schema
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    if schema != newest:
        raise NotComparable(
            f"{path}:{number}: written under schema {schema}, this heredity reads schema {newest}."
            " Use the version that wrote it, or start a new folder.",
            code="schema-mismatch",
        )
