"""Where documents come from, one file per kind. A file defines SOURCE, a subclass of CorpusSource.

Only its files decide how a source is divided into jobs. Documents and their order are the same for any number
of processes.

Promises: a file that cannot be read in the given form is a BadInput with file and line. Nothing is guessed
or executed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import msgspec

from heredity.core.errors import BadArgument, BadInput
from heredity.core.files import hash_file

JOB_BYTES = 16 << 20  # of a job, about


class Job(NamedTuple):
    """Files, each with its name in the corpus, or a part of one: [low, high) in the source's own unit."""

    files: tuple[tuple[str, str], ...]
    low: int = 0
    high: int = 0


class Input(NamedTuple):
    """A file that was read, for the fingerprint."""

    name: str
    bytes: int
    sha256: str


class SkippedDocument(NamedTuple):
    """A document that was left out, and the reason."""

    reason: str


class CorpusSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields that every kind has; a kind adds its own.

    weight: its share of the mixture; if one source has a weight, all must. repeat: how often, at most, a
    document may come in a mixture.
    """

    VERSION: ClassVar[int] = 1  # raise it in the class of the kind when the documents that it reads change

    name: str
    path: str
    weight: float | None = None
    repeat: int = 1

    def check(self) -> None:
        """Raises ValueError for impossible values."""
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise BadArgument(f"weight must be above 0, not {self.weight}", key="weight")
        if self.repeat < 1:
            raise BadArgument(f"repeat must be at least 1, not {self.repeat}", key="repeat")

    def jobs(self, root: Path) -> list[Job]:
        """The jobs, in order. Raises UsageError if there is no file."""
        raise NotImplementedError

    def left_out(self, root: Path) -> Counter[str]:
        """Count the entries of the folder that no source reads: links, pipes, folders without permission.

        Every entry with a suffix that is read is either read or counted here. Hidden entries are not counted.
        """
        counts, endings, top = Counter[str](), self.reads(), root / Path(self.path).expanduser()
        if not top.is_dir():
            return counts
        for here, folders, files in os.walk(top, onerror=lambda _: counts.update(["unreadable_folder"])):
            folders[:] = [name for name in folders if not name.startswith(".")]
            counts.update("linked_folder" for name in folders if Path(here, name).is_symlink())
            named = [Path(here, name) for name in files if not name.startswith(".")]
            counts.update(
                "no_file" if path.exists() else "broken_link"
                for path in named
                if not path.is_file() and (not endings or path.suffix.lower() in endings)
            )
        return counts

    def reads(self) -> tuple[str, ...]:
        """The suffixes of the files that are read in a folder; () for all files."""
        return ()

    def read(self, job: Job) -> Iterator[bytes | SkippedDocument]:
        """The documents of a job as UTF-8."""
        raise NotImplementedError

    def inputs(self, job: Job) -> list[Input]:
        """The files of a job. A file that is read in parts belongs to its first part."""
        if job.low:
            return []
        return [input_of(path, name) for path, name in job.files]


def input_of(path: str, name: str) -> Input:
    """A file as it is now. Raises BadInput if it cannot be read."""
    try:
        return Input(name, Path(path).stat().st_size, hash_file(Path(path)))
    except OSError as error:
        raise BadInput(path, f"cannot be read: {error.strerror}") from None
