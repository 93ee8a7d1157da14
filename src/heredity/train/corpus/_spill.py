"""What lies between two steps of a build: the documents of one job, in two files of a folder that goes away.

Promises: written once, read once in the same order. Leaves to others: everything that lasts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heredity.store import explain_full_disk
from heredity.train.corpus.batch import TARGET, Batch, Ints, Mask


class Place(NamedTuple):
    """The folder of a build, and the files of a job in it."""

    folder: Path
    job: int

    def at(self, what: str) -> Path:
        """The path of one of the job's arrays."""
        return self.folder / f"{self.job:06}.{what}.npy"

    @property
    def text(self) -> Path:
        return self.folder / f"{self.job:06}.text"

    def put(self, what: str, values: NDArray[Any]) -> None:
        """Keep an array."""
        with explain_full_disk(self.folder, values.nbytes):
            np.save(self.at(what), values)

    def get(self, what: str) -> NDArray[Any]:
        """An array that was put."""
        found: NDArray[Any] = np.load(self.at(what), allow_pickle=False)
        return found

    def write(self, batches: Iterable[Batch]) -> int:
        """Keep documents instead of those that were there, and say how many they are."""
        lengths = [np.zeros(0, np.int64)]
        following = self.text.with_suffix(".next")
        with following.open("wb") as file:
            for batch in batches:
                with explain_full_disk(self.folder, len(batch.raw)):
                    file.write(batch.raw)
                lengths.append(batch.lengths)
        following.replace(self.text)
        self.put("lengths", np.concatenate(lengths))
        return sum(map(len, lengths))

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
