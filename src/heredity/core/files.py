"""Bytes on disk: hashed files, atomic writes, append-only rows, one writer a folder, the response cache.

Promises: a file exists whole or not at all. A flushed row survives a crash. A torn last line is dropped;
any other bad line is an error with its place. A full disk is one clear line of error and leaves no partial
file.
Leaves to others: the meaning of records (records.py) and the list of models (lineage/).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from heredity.core.errors import Busy, HeredityError

if sys.platform != "win32":
    import fcntl

_BLOCK = 1 << 20  # bytes; a writer's buffer, and the step of every scan
_TORN = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)  # the names that _held_temporary gives
_OLD = 86_400.0  # seconds after which a temporary file is no one's, where no lock can tell
_FULL = (errno.ENOSPC, errno.EDQUOT)


def default_root() -> Path:
    """The store's folder: HEREDITY_STORE, or ~/.cache/heredity."""
    return Path(os.environ.get("HEREDITY_STORE") or "~/.cache/heredity").expanduser()


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hex, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_file(path: Path) -> list[int]:
    """The size, times in ns and inode of a file, which change when it is written or replaced. Cheaper than
    a hash."""
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
    """Write a whole file: a temporary name in the same folder, fsync, rename, fsync of the folder.

    Raises HeredityError if the disk is full. A failure leaves the old file, if any, and nothing else.
    """
    with replacing(path) as temporary, explain_full_disk(path.parent, len(data)):
        temporary.write_bytes(data)


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
    mine = [name for name in names if name[1 : -len(".01234567.tmp")] == path.name]
    for name in mine:
        if is_abandoned(folder / name):
            with suppress(OSError):
                (folder / name).unlink()
    _torn_in[folder] = [name for name in names if name not in mine]


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
    """Remove what killed processes left in a folder that this process has locked."""
    for path in folder.glob(".*.tmp"):
        if _TORN.fullmatch(path.name) and is_abandoned(path):
            with suppress(OSError):
                path.unlink()
