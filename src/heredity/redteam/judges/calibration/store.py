"""Calibrations that a user measured, kept in the store: `judges/*.json`, one a judge, task and labelled file.

Promises: each holds the digest of the judge that was measured, and counts for no other; the newest comes
first; a file that cannot be read is an error that names it.
Leaves to others: measuring (_measure.py), and which calibration corrects a rate (_quality.py).
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from heredity.core.errors import Damaged
from heredity.core.files import write_atomic
from heredity.core.records import SCHEMA, Record, digest, encode
from heredity.redteam.judges._choice import Task
from heredity.redteam.judges.calibration.measure import Calibration, LabelMeasurement

FOLDER = "judges"  # of the store, and of a study that uses one of them
TASKS: tuple[Task, ...] = ("harm", "refusal")


class Counts(Record, frozen=True):
    """Right among the positives and the negatives, by whose labels."""

    labels: str
    sens_k: int
    sens_n: int
    spec_k: int
    spec_n: int


class StoredCalibration(Record, frozen=True):
    """A file of the store: one judge on one labelled file. `judged_by` is the digest of the judge."""

    judge: str
    judged_by: str
    task: Task
    positive: tuple[str, ...]
    columns: dict[str, str]
    sha256: str
    counts: Counts
    families: tuple[Counts, ...]
    n_unclear: int
    at: str  # ISO 8601, UTC
    schema: int = SCHEMA

    def calibrations(self) -> tuple[Calibration, ...]:
        """All labels together, then each family's alone."""
        return tuple(
            Calibration(c.sens_k, c.sens_n, c.spec_k, c.spec_n, c.labels)
            for c in (self.counts, *self.families)
        )


def keep(
    root: Path,
    found: LabelMeasurement,
    judged_by: str,
    task: Task,
    positive: tuple[str, ...],
    columns: dict[str, str],
) -> Path:
    """Write what was measured; the same judge on the same labels takes the earlier one's place."""
    at = datetime.now(UTC).isoformat(timespec="microseconds")
    made = StoredCalibration(
        found.judge.name, judged_by, task, positive, columns, found.sha256,
        _counts(found.counts), tuple(map(_counts, found.families)), found.n_unclear, at,
    )  # fmt: skip
    name = digest([made.judge, judged_by, task, found.sha256, made.counts.labels])[:16]
    path = root / FOLDER / f"{name}.json"
    write_atomic(path, msgspec.json.format(encode(made), indent=1) + b"\n")
    return path


def newest(root: Path, judge: str, judged_by: str, task: Task) -> StoredCalibration | None:
    """The calibration measured last of just this judge, or None."""
    found = [k for k in _read(root) if (k.judge, k.judged_by, k.task) == (judge, judged_by, task)]
    return max(found, key=lambda kept: kept.at, default=None)


def bring(root: Path, folder: Path, judge: str, judged_by: str) -> None:
    """Copy what was measured of this judge from a store into a study's folder, so that it is whole."""
    for task in TASKS:
        kept = newest(root, judge, judged_by, task)
        if kept is not None and kept != newest(folder, judge, judged_by, task):
            data = msgspec.json.format(encode(kept), indent=1) + b"\n"
            write_atomic(folder / FOLDER / f"{task}-{judged_by}.json", data)


def _read(root: Path) -> list[StoredCalibration]:
    found = []
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=StoredCalibration))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Damaged(f"{path}: {error}. Delete it and calibrate again.") from None
    return found


def _counts(found: Calibration) -> Counts:
    return Counts(found.labels, *map(int, found[:4]))
