"""Which jobs of a build are done: a record of each, with the hash of every file that it wrote.

Promises: a record is written when its files are; what is there from before counts only while its bytes are
those that were written. Leaves to others: what a job does (_jobs.py), and whose jobs they are (making.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from heredity.records import encode
from heredity.store import hash_file, write_atomic
from heredity.train.corpus.work import Count


@dataclass
class Done:
    """What a job came to. counts: of each of its steps; where all documents are compared, of each source."""

    counts: list[Count] = field(default_factory=list)
    read: Count = field(default_factory=Count)
    n_bytes: int = 0


class Finished(msgspec.Struct, frozen=True):
    """A record. files: SHA-256 by name."""

    done: Done
    files: dict[str, str]


def finish(path: Path, files: Iterable[Path], done: Done) -> Done:
    """Say in the record at `path` that a job is done, and by which files in the same folder."""
    hashes = {file.relative_to(path.parent).as_posix(): hash_file(file) for file in files}
    write_atomic(path, encode(Finished(done, hashes)))
    return done


def done_before(path: Path) -> Done:
    """What the job of a record came to."""
    return _read(path).done


def is_whole(path: Path) -> bool:
    """Whether there is such a record, and every file of it as it was written."""
    try:
        found = _read(path)
        return all(hash_file(path.parent / name) == hashed for name, hashed in found.files.items())
    except (OSError, msgspec.DecodeError):
        return False


def _read(path: Path) -> Finished:
    return msgspec.json.decode(path.read_bytes(), type=Finished, dec_hook=_counter)


def _counter(_kind: type, value: Any) -> Any:
    return Counter(value)
