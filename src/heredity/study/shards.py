"""Ask a study in parts that know nothing of each other, such as the tasks of a Slurm array.

    heredity study plan.toml --out DIR --shard 3/64     asks part 3 of 64, into DIR/shards/03-of-64
    heredity study DIR                                  collects the rows of all parts, and continues

A worker (worker.py) is a part whose driver gives it trials one after the other: DIR/workers/1.

Promises: all parts have one plan.json. A trial is in one part, by a digest that all models share, so both
members of a pair are. Collecting copies rows and changes no part. The folders of workers whose driver was
killed are collected too, and removed.
Leaves to others: asking (study.py), and starting the tasks (the user's scheduler).
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from heredity.core.errors import Damaged, NotComparable, UsageError
from heredity.core.files import Rows, read_file, refuse_linked_folders, write_atomic
from heredity.core.records import Response, encode
from heredity.study.attack_context import FOUND, SearchResult
from heredity.study.plan import PLAN, Grid, TrialSet, read_saved
from heredity.study.storage import (
    PREFIXES,
    RESPONSES,
    RUNS,
    Prefixes,
    PromptPrefix,
    RunRecord,
    answered_rows,
    open_responses,
    run_records,
)

SHARDS, WORKERS = "shards", "workers"
MAX_SHARDS = 10_000
_FOLDER = re.compile(r"(\d{1,5})-of-(\d{1,5})")


@dataclass(frozen=True)
class StudyPart:
    """Part `i` of `n` of a plan's trials; the first part is 1."""

    i: int
    n: int

    @classmethod
    def parse(cls, text: str) -> StudyPart:
        """The part that "3/64" names. Raises UsageError."""
        i, separator, n = text.partition("/")
        if separator and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n) <= MAX_SHARDS:
            return cls(int(i), int(n))
        raise UsageError(
            f"'{text[:40]}' is not a part. Write I/N with 1 <= I <= N <= {MAX_SHARDS:,}, such as 3/64."
        )

    def folder(self, study: Path) -> Path:
        """The folder of this part."""
        return study / SHARDS / f"{self.i:0{len(str(self.n))}}-of-{self.n}"

    def of(self, grid: Grid, indices: Iterator[int]) -> Iterator[int]:
        """Those of `indices` that are in this part."""
        return (index for index in indices if _part(grid, index, self.n) == self.i)


class PartProgress(NamedTuple):
    """The progress of one part: answered trials of all that it has."""

    part: StudyPart
    n_done: int
    n_total: int


def part_folder(study: Path, part: StudyPart) -> Path:
    """Make the folder of a part with the plan.json of its study, and return it."""
    if other := {found.n for found in shards_of(study)} - {part.n}:
        raise UsageError(
            f"{study / SHARDS} has parts of {other.pop()}, not of {part.n}. Use the same number in "
            "every task, or another --out."
        )
    folder = part.folder(study)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / PLAN).exists():
        write_atomic(folder / PLAN, read_file(study / PLAN))
    return folder


def shards_of(study: Path) -> list[StudyPart]:
    """The parts of a study that have a folder, in order. Raises Refused if one is a link."""
    refuse_linked_folders(study, SHARDS)
    if not (study / SHARDS).is_dir():
        return []
    matches = (_FOLDER.fullmatch(each.name) for each in (study / SHARDS).iterdir())
    return sorted((StudyPart(int(m[1]), int(m[2])) for m in matches if m), key=lambda part: part.i)


def gather(study: Path, grid: Grid) -> list[PartProgress]:
    """Copy the rows of all parts that the study has not yet; returns the progress of each part.

    The caller holds the study's lock. Rows of tasks that still run are copied too, as far as they are. Raises
    Damaged for a part with another plan, and NotComparable if two parts computed one model differently.
    """
    found, left = shards_of(study), worker_folders(study)
    if not found and not left:
        return []
    answered = TrialSet(len(grid))
    for _ in answered_rows(open_responses(study), grid, answered):
        pass
    own, folders = read_saved(study), [part.folder(study) for part in found]
    for folder in folders:
        if read_saved(folder) != own:
            raise Damaged(
                f"{folder / PLAN} is not the plan of {study}. Remove the folder, and ask the part again."
            )
    folders += left
    _refuse_mixed_numerics(study, folders, grid)
    n_done = [_copy(folder, study, grid, answered) for folder in folders]
    # After the answers: a task that still runs has recorded the run of each.
    for name, kind in ((RUNS, RunRecord), (FOUND, SearchResult)):
        sources = [folder / name for folder in folders]
        target = study / name
        known = Counter(encode(row) for row in Rows(target, kind))
        with Rows(target, kind) as rows:
            for row in (row for source in sources for row in Rows(source, kind)):
                spelt = encode(row)
                if known[spelt]:
                    known[spelt] -= 1
                else:
                    rows.append(row)
    shutil.rmtree(study / WORKERS, ignore_errors=True)
    n_total = _sizes(grid, found[0].n) if found else []
    return [PartProgress(part, n, n_total[part.i - 1]) for part, n in zip(found, n_done, strict=False)]


def worker_folders(study: Path) -> list[Path]:
    """The folders of the workers of a study. Raises Refused if one is a link."""
    refuse_linked_folders(study, WORKERS)
    return sorted(each for each in (study / WORKERS).glob("*") if each.is_dir())


def _copy(folder: Path, study: Path, grid: Grid, answered: TrialSet) -> int:
    """Copy the rows of one part; returns how many responses it has."""
    prefixes, n = Prefixes(study), 0
    for prefix in Rows(folder / PREFIXES, PromptPrefix):
        prefixes.add(prefix)
    with Rows(study / RESPONSES, Response) as rows:
        for row in answered_rows(open_responses(folder), grid, TrialSet(len(grid))):
            n += 1
            if answered.add(row.index):
                rows.append(row)
    return n


def _sizes(grid: Grid, n: int) -> list[int]:
    """The number of trials in each of `n` parts."""
    sizes = [0] * n
    for index in grid.of_model(0):
        sizes[_part(grid, index, n) - 1] += 1
    return [size * len(grid.plan.models) for size in sizes]


def _part(grid: Grid, index: int, n: int) -> int:
    """The part, from 1 to `n`, of a trial: by a digest of the plan's seed and the cell, without the model."""
    cell = f"{grid.plan.seed}\0{index % grid.plan.n_per_model}".encode()
    return int.from_bytes(hashlib.blake2b(cell, digest_size=8).digest(), "big") % n + 1


def _refuse_mixed_numerics(study: Path, parts: list[Path], grid: Grid) -> None:
    for model in grid.plan.models:
        held: dict[str, Path] = {}
        for folder in (study, *parts):
            for run in run_records(folder):
                if run.model == model.id:
                    held.setdefault(run.base_numerics, folder)
        if len(held) > 1:
            (one, here), (other, there), *_ = held.items()
            raise NotComparable(
                f"'{model.name}' answered in {here} as '{one}' computes, and in {there} as '{other}': these "
                f"answers would not belong together. Remove {there}, and ask its trials again on a machine "
                "of the first kind, with its versions."
            )
