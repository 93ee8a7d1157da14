"""What lies between two steps of a build: the documents of one job, in files of a folder that goes away.

Promises: a file is there whole or not at all; documents are read in the order in which they were written.
Leaves to others: everything that lasts, and which job is done (_finished.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heredity.store import explain_full_disk
from heredity.train.corpus.batch import TARGET, Batch, Ints, Mask


class Place(NamedTuple):
    """The folder of a build, and the files of a job in it. stage: what the job has come to: how often all
    documents were compared, and at last its tokens."""

    folder: Path
    job: int
    stage: int = 0

    @property
    def record(self) -> Path:
        """Where it is said that the job has come to this stage."""
        return self._named("done")

    def at(self, what: str) -> Path:
        """The path of one of the job's arrays."""
        return self._named(f"{what}.npy")

    @property
    def text(self) -> Path:
        return self._named("text")

    def _named(self, what: str) -> Path:
        return self.folder / f"{self.job:06}.{self.stage}.{what}"

    def put(self, what: str, values: NDArray[Any]) -> Path:
        """Keep an array."""
        following = _following(self.at(what))
        with explain_full_disk(self.folder, values.nbytes), following.open("wb") as file:
            np.save(file, values)
        return following.replace(self.at(what))

    def get(self, what: str) -> NDArray[Any]:
        """An array that was put."""
        found: NDArray[Any] = np.load(self.at(what), allow_pickle=False)
        return found

    def write(self, batches: Iterable[Batch]) -> list[Path]:
        """Keep documents, and say in which files."""
        lengths = [np.zeros(0, np.int64)]
        following = _following(self.text)
        with following.open("wb") as file:
            for batch in batches:
                with explain_full_disk(self.folder, len(batch.raw)):
                    file.write(batch.raw)
                lengths.append(batch.lengths)
        following.replace(self.text)
        return [self.text, self.put("lengths", np.concatenate(lengths))]

    def forget(self) -> None:
        """Let the documents go, and what they were compared by: the job has come further."""
        for path in (self.text, self.at("lengths"), self.at("keys")):
            path.unlink(missing_ok=True)

    def batches(self, kept: Mask | None = None) -> Iterator[Batch]:
        """The documents again, or those of them that are kept."""
        lengths: Ints = self.get("lengths")
        ends = np.cumsum(lengths + 1)
        at = done = 0
        with self.text.open("rb") as file:
            while at < len(lengths):
                stop = int(np.searchsorted(ends, done + TARGET)) + 1
                stop = min(stop, len(lengths))
                batch = Batch(file.read(int(ends[stop - 1]) - done), lengths[at:stop])
                yield batch if kept is None else batch.keep(kept[at:stop])
                at, done = stop, int(ends[stop - 1])


def _following(path: Path) -> Path:
    """A name of this process's own: a worker that outlives a killed build for a moment may write the same."""
    return path.with_name(f"{path.name}.{os.getpid()}.next")
