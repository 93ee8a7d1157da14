"""Where documents come from, one file a kind. A file has SOURCE, a Source.

A source is divided into jobs by its files only. Documents and their order are the same for any number of
processes.

Promises: a file that cannot be read in the given form is a BadInput with file and line. Nothing is guessed
or executed.
Leaves to others: processing the documents (../steps/).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import msgspec

from heredity.core.errors import BadArgument, BadInput
from heredity.core.files import hash_file
from heredity.corpus.sources import _left_out

JOB_BYTES = 16 << 20  # about so much is read in one go


class Job(NamedTuple):
    """Files, each with its name in the corpus, or a part of one: from `low` to before `high`, in the source's
    own unit."""

    files: tuple[tuple[str, str], ...]
    low: int = 0
    high: int = 0


class Input(NamedTuple):
    """A file that was read, for the fingerprint."""

    name: str
    bytes: int
    sha256: str


class SkippedDocument(NamedTuple):
    """A document that could not be had, and why."""

    reason: str


class CorpusSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields that every kind has; a kind adds its own.

    weight: its share of the mixture; where one source has a weight, all must. repeat: how often a document
    may come in a mixture, at most.
    """

    VERSION: ClassVar[int] = 1  # raise it in the kind's own class when the documents that it reads change

    name: str
    path: str
    weight: float | None = None
    repeat: int = 1

    def check(self) -> None:
        """Raises ValueError for settings that make no sense."""
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise BadArgument(f"weight must be above 0, not {self.weight}", code="bad-setting", key="weight")
        if self.repeat < 1:
            raise BadArgument(
                f"repeat must be at least 1, not {self.repeat}", code="bad-setting", key="repeat"
            )

    def jobs(self, root: Path) -> list[Job]:
        """The jobs, in order. Raises UsageError if it is empty."""
        raise NotImplementedError

    def left_out(self, root: Path) -> Counter[str]:
        """Count the entries of the folder that are not read, by reason."""
        return _left_out.left_out(root / Path(self.path).expanduser(), self.reads())

    def reads(self) -> tuple[str, ...]:
        """Which files of a folder are read, by their endings; none for all."""
        return ()

    def read(self, job: Job) -> Iterator[bytes | SkippedDocument]:
        """The documents of a job as UTF-8."""
        raise NotImplementedError

    def inputs(self, job: Job) -> list[Input]:
        """The files of a job; of one that is read in parts, with its first part."""
        if job.low:
            return []
        return [input_of(path, name) for path, name in job.files]


def input_of(path: str, name: str) -> Input:
    """A file as it is now. Raises BadInput if it cannot be read."""
    try:
        return Input(name, Path(path).stat().st_size, hash_file(Path(path)))
    except OSError as error:
        raise BadInput(path, f"cannot be read: {error.strerror}") from None
