"""The study folders of a place, and one of them, open: its plan, its state and the index of its rows.

    place = StudyPlace(Path("runs"))
    for study in place.studies(): study.key, study.folder
    study = place.open("demo-1a2b3c"); study.refresh(); study.names, study.progress()

Promises: nothing in a folder is written. A folder that cannot be read is listed with its error. No symbolic
link is followed.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Literal, NamedTuple

from heredity.core.errors import HeredityError, UnknownName
from heredity.core.files import default_root, is_locked, stamp_file
from heredity.core.sanitize import label
from heredity.study.estimates import Estimates, ModelCard
from heredity.study.folders import study_folders
from heredity.study.labels import LABELS
from heredity.study.outcomes import in_scope
from heredity.study.plan import PLAN, Grid, Plan, PlanFile, read_saved
from heredity.study.storage import ESTIMATES, RESPONSES, VERDICTS, folder_name, read_estimates, run_records
from heredity.study.wording import names
from heredity.view.index import IN_PLAN, UNJUDGED, RowIndex, UnreadRow, index_path

TRAINING = ("training.jsonl", "progress.json", ".lock.pid")  # of a run in progress
# As `heredity studies` has them; "reading": its rows are read for the first time, so its end is not known.
State = Literal["running", "done", "stopped", "planned", "reading"]
_OTHERS = (ESTIMATES, LABELS, ".lock.pid")  # files of a study that its pages show, besides plan and rows
_WINDOW = 300.0  # seconds over which the speed is measured


class ListedStudy(NamedTuple):
    """A study's folder. `name` is its path below the place."""

    key: str  # in addresses
    name: str
    folder: Path


class StudyProgress(NamedTuple):
    """The state of a study, and the trials that it has so far.

    speed: in trials a second; None: not known. share_read: of its rows.
    """

    state: State
    doing: str  # of a running study, in words
    n_planned: int
    n_asked: int
    n_judged: int
    speed: float | None
    share_read: float

    @property
    def n_left(self) -> int:
        """Trials without an answer."""
        return max(0, self.n_planned - self.n_asked)


class StudyPlace:
    """A folder with studies in it, or one study's own.

    store: the reader's store, which holds the indices; None: the default one.
    """

    def __init__(self, root: Path, store: Path | None = None) -> None:
        self.root, self.store = root, store or default_root()
        self._open: dict[str, OpenStudy] = {}
        self._lock = Lock()

    def studies(self) -> list[ListedStudy]:
        """Every study of the place, by its path."""
        return sorted(map(self._listed, study_folders(self.root)), key=lambda study: study.name)

    def open(self, key: str) -> OpenStudy:
        """A study by its key. Raises UnknownName, and the errors of a plan that cannot be read."""
        with self._lock:
            held = self._open.get(key)
            if held is not None and held.is_current:
                return held
        known = {study.key: study for study in self.studies()}
        if key not in known:
            raise UnknownName("study", label(key), known)
        opened = OpenStudy(*known[key], index_path(known[key].folder, self.store))
        with self._lock:
            if self._open.get(key) is held:  # no other thread has opened it
                self._open[key] = opened
            return self._open[key]

    @property
    def models(self) -> Path:
        """The store whose models are shown: the place itself, if it is one, else the reader's."""
        is_store = (self.root / "models").is_dir() or any(self.root.glob(f"training/*/{TRAINING[0]}"))
        return self.root if is_store else self.store

    def read(self, seconds: float) -> None:
        """Read on in the first of the open studies whose rows are not all read, for about `seconds`."""
        with self._lock:
            left = next((study for study in self._open.values() if not study.is_whole), None)
        if left is not None:
            left.refresh(seconds)

    def mark(self) -> str:
        """Changes whenever a file of any study does, a row of a training, or a model of the store.

        Also when rows of a study are read that is not whole yet.
        """
        names = (PLAN, RESPONSES, VERDICTS, *_OTHERS)
        studies = [(study.key, _stamps(study.folder, names)) for study in self.studies()]
        runs = [(folder.name, _stamps(folder, TRAINING)) for folder in sorted(self.models.glob("training/*"))]
        reading = [(key, each.index.version()) for key, each in [*self._open.items()] if not each.is_whole]
        return _digest((studies, runs, _stamps(self.models, ("models",)), reading))

    def _listed(self, folder: Path) -> ListedStudy:
        name = (
            folder.name or folder.resolve().name
            if folder == self.root
            else folder.relative_to(self.root).as_posix()
        )
        tail = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=3).hexdigest()
        return ListedStudy(f"{folder_name(Path(name).name)}-{tail}", label(name, 120), folder)


@dataclass
class OpenStudy:
    """A study's folder, open for reading. Its plan is read once; rows are read as they come."""

    key: str  # in addresses
    name: str
    folder: Path
    path: Path  # of its index
    is_whole: bool = False  # whether the last refresh came to the end of the rows
    _estimates: tuple[list[int], Estimates | HeredityError] | None = field(default=None, repr=False)
    board: tuple[object, object] | None = field(default=None, repr=False)  # of queries.py

    def __post_init__(self) -> None:
        self._stamp = stamp_file(self.folder / PLAN)
        self.saved: PlanFile = read_saved(self.folder)
        self.grid = Grid(self.plan)
        self.index = RowIndex(self.path, self.folder, self.grid, self.saved.study)

    @property
    def plan(self) -> Plan:
        """Its plan."""
        return self.saved.plan

    @property
    def is_current(self) -> bool:
        """Whether its plan is the one that was read."""
        with suppress(OSError):
            return stamp_file(self.folder / PLAN) == self._stamp
        return False

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The name of each model, in the plan's order; no two are equal."""
        cards = tuple(ModelCard(m.id, m.name, m.family, m.licence, m.format) for m in self.plan.models)
        called = names(cards)
        return tuple(called[model.id] for model in self.plan.models)

    @cached_property
    def n_attacks(self) -> list[int]:
        """For each probe, the attacks under which the plan asks it."""
        return [int(n) for n in in_scope(self.plan).sum(axis=0)]

    @property
    def n_planned(self) -> int:
        """The trials that the plan asks."""
        return sum(self.n_attacks) * self.plan.samples * len(self.plan.models)

    @cached_property
    def techniques(self) -> tuple[str, ...]:
        """The techniques, in the plan's order."""
        return self.index.techniques

    @cached_property
    def places(self) -> Mapping[str, int]:
        """The place in the plan of each model, by its id."""
        return {model.id: place for place, model in enumerate(self.plan.models)}

    def refresh(self, seconds: float = 1.0) -> None:
        """Read the rows that came, for at most about `seconds`."""
        self.is_whole = self.index.refresh(seconds)

    def stamp(self) -> tuple[object, ...]:
        """Changes whenever a file of the study does."""
        return _stamps(self.folder, (PLAN, RESPONSES, VERDICTS, *_OTHERS))

    def mark(self) -> str:
        """Changes whenever a page of the study would: by its files, and by the rows that are read."""
        return _digest((*_stamps(self.folder, (PLAN, *_OTHERS)), *self.index.version(), self.is_whole))

    def problems(self) -> list[UnreadRow]:
        """The rows that could not be read, the first of them."""
        with self.index.reading() as rows:
            problems = rows.execute("SELECT file, line, code, message FROM problems LIMIT 200")
            return [UnreadRow(*each) for each in problems]

    def estimates(self) -> Estimates | HeredityError | None:
        """Its estimates; the error of a file that cannot be read; None before there are any."""
        path = self.folder / ESTIMATES
        if not path.exists():
            return None
        stamp = stamp_file(path)
        if self._estimates is None or self._estimates[0] != stamp:
            read: Estimates | HeredityError
            try:
                read = read_estimates(self.folder)
            except HeredityError as error:
                read = error
            self._estimates = stamp, read
        return self._estimates[1]

    def progress(self) -> StudyProgress:
        """Its state, and its trials so far by the rows in the index."""
        with self.index.reading() as rows:
            counts = f"SELECT count(*), count(*) FILTER (WHERE state != ?) FROM trials WHERE {IN_PLAN}"
            n_asked, n_judged = rows.execute(counts, (UNJUDGED,)).fetchone()
            speed = _speed(rows)
        n = self.n_planned
        doing = self._doing(n_asked) if is_locked(self.folder) else ""
        state: State = "running" if doing else "stopped"
        if not doing:
            is_over = (self.folder / ESTIMATES).exists() and n_judged >= n_asked > 0
            is_over = is_over and (n_asked == n or self.plan.stops_early)
            state = "done" if is_over else "stopped" if n_asked else "planned"
        share = self.index.share_read()
        if not doing and not self.is_whole and share < 1:
            state = "reading"
        return StudyProgress(state, doing, n, n_asked, n_judged, speed if doing else None, share)

    def _doing(self, n_asked: int) -> str:
        if n_asked == self.n_planned:
            return "judging"
        runs = []
        with suppress(HeredityError, OSError):  # then it is not said which model
            runs = list(run_records(self.folder))
        asked = self.places.get(runs[-1].model) if runs and not runs[-1].n_asked else None
        return "asking" if asked is None else f"asking {self.names[asked]}"


def report_of(study: OpenStudy) -> Path | None:
    """The report in a study's folder; None without one. A symbolic link does not count."""
    path = study.folder / "report.html"
    return path if path.is_file() and not path.is_symlink() else None


def _speed(rows: sqlite3.Connection) -> float | None:
    """Trials a second in the last minutes; None before two readings."""
    speed = rows.execute(
        "SELECT at, n FROM seen WHERE at > ? ORDER BY at", (time.time() - _WINDOW,)
    ).fetchall()
    if len(speed) < 2 or speed[-1][0] - speed[0][0] < 2:
        return None
    return float((speed[-1][1] - speed[0][1]) / (speed[-1][0] - speed[0][0])) or None


def _stamps(folder: Path, names: tuple[str, ...]) -> tuple[object, ...]:
    stamps: list[object] = []
    for name in names:
        try:
            held = (folder / name).stat()
            stamps.append((held.st_size, held.st_mtime_ns, held.st_ino))
        except OSError:
            stamps.append(None)
    return tuple(stamps)


def _digest(value: object) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()
