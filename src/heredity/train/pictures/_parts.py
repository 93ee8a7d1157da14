"""The pictures of a build, read in parts: what a part came to is on disk, and is not read again.

A part is so many pairs of a source, in their order. It leaves their pictures, end to end, and which of them
could be read.

Promises: every file is hashed before any picture is read; a part counts as read only while its bytes are
those that were written.
Leaves to others: what becomes of the pictures (build.py), and one file (pixels.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from heredity.store import write_atomic
from heredity.train.corpus._finished import Done, finish, is_whole
from heredity.train.corpus.making import Watch
from heredity.train.corpus.recipe import Picture, Recipe
from heredity.train.corpus.sources import Input, Skipped
from heredity.train.corpus.sources.images import ImagesSource, Pair
from heredity.train.pictures import pixels

_BYTES = 16 << 20  # of a part's pictures
_MOST = 2048  # pairs of a part: what a kill may cost
T = TypeVar("T")
R = TypeVar("R")


class Read(NamedTuple):
    """A pair as it was read, its files among it."""

    pair: Pair
    picture: pixels.Picture
    inputs: list[Input]


class _Part(NamedTuple):
    """Pairs of a source, from `low` to before `high`."""

    number: int
    source: int
    low: int
    high: int


@dataclass
class Parts:
    """found: of each source every picture, or why it is none. inputs: the files of each, in that order."""

    recipe: Recipe
    how: Picture
    workers: int
    watch: Watch
    found: list[list[Pair | Skipped]] = field(default_factory=list)
    inputs: list[list[list[Input]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Find the pictures, and hash every file of them. Raises BadInput, UsageError."""
        for source in self.recipe.sources:
            assert isinstance(source, ImagesSource)
            self.found.append(list(source.pairs(self.recipe.root)))
        self._seen, self._all = 0, sum(map(len, self.found))
        for source, found in zip(self.recipe.sources, self.found, strict=True):
            assert isinstance(source, ImagesSource)
            self.inputs.append(list(self._each("hashing", _hashing(source), found)))

    def read(self, between: Path) -> None:
        """Read every part whose pictures are not there from before."""
        parts = self._parts()
        new = [part for part in parts if not is_whole(_record(between, part))]
        if n_old := len(parts) - len(new):
            self.watch.say(f"reading: {n_old:,} of {len(parts):,} parts are taken from before")
        self._seen, self._all = 0, sum(part.high - part.low for part in new)
        for part in new:
            pairs = self.found[part.source][part.low : part.high]
            pictures = list(self._each("reading", self._picture, pairs))
            record = _record(between, part)
            files = record.with_suffix(".rgb"), record.with_suffix(".read")
            write_atomic(files[0], b"".join(each.tobytes() for each in pictures if each is not None))
            write_atomic(files[1], np.array([each is not None for each in pictures]).tobytes())
            finish(record, files, Done())

    def of(self, source: int, between: Path) -> Iterator[Read | Skipped]:
        """The pairs of a source as they were read, in their order."""
        side = self.how.side
        for part in self._parts():
            if part.source != source:
                continue
            record = _record(between, part)
            raw: NDArray[np.uint8] = np.fromfile(record.with_suffix(".rgb"), np.uint8)
            pictures = iter(raw.reshape(-1, side, side, 3))
            is_read = np.fromfile(record.with_suffix(".read"), np.bool_)
            for i, could in zip(range(part.low, part.high), is_read, strict=True):
                pair = self.found[source][i]
                if isinstance(pair, Skipped):
                    yield pair
                elif could:
                    yield Read(pair, next(pictures), self.inputs[source][i])
                else:
                    yield Skipped("unreadable")

    def _parts(self) -> list[_Part]:
        most = max(1, min(_MOST, _BYTES // (3 * self.how.side**2)))
        places = [
            (source, low, min(low + most, len(found)))
            for source, found in enumerate(self.found)
            for low in range(0, len(found), most)
        ]
        return [_Part(number, *place) for number, place in enumerate(places)]

    def _picture(self, pair: Pair | Skipped) -> pixels.Picture | None:
        if isinstance(pair, Skipped):
            return None
        try:
            return pixels.read(Path(pair.path), self.how.side, self.how.fit, self.how.background)
        except pixels.Unreadable:
            return None

    def _each(self, doing: str, does: Callable[[T], R], rows: Iterable[T]) -> Iterator[R]:
        """By several threads, in order, told as it goes."""
        left = iter(rows)
        with ThreadPoolExecutor(self.workers) as pool:
            while some := list(islice(left, _MOST)):
                for done in pool.map(does, some):
                    self._seen += 1
                    self.watch.at(doing, self._seen, self._all)
                    yield done


def _hashing(source: ImagesSource) -> Callable[[Pair | Skipped], list[Input]]:
    return lambda pair: [] if isinstance(pair, Skipped) else source.inputs_of(pair)


def _record(between: Path, part: _Part) -> Path:
    return between / f"{part.number:06}.done"
