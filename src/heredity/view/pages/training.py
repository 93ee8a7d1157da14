"""The trainings of the store: those in progress and those whose models it holds; and one, with its curve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from heredity.core.errors import HeredityError, UnknownName
from heredity.core.files import is_locked, open_file, read_file, stamp_file
from heredity.core.progress import time_words
from heredity.core.records import Model, is_digest
from heredity.core.sanitize import Shown, label, shown
from heredity.lineage.store import RUN, RunInProgress, key_of
from heredity.view.pages.lineage import lineage_of, records, store_of
from heredity.view.places import TRAINING
from heredity.view.site import Asked, Page, Site, curve

# --- the trainings of a store -------------------------------------------------------------------------
# Files are only read. A row that cannot be read is counted, and is in no curve. A curve has at most POINTS
# points, each the mean of the steps that it stands for.

METRICS, PROGRESS, _ = TRAINING
ANSWERS = "answers.jsonl"
POINTS = 400  # of a curve, as wide as a figure in pixels
SAMPLES = 5  # answers that are shown
_LARGEST = 256 << 20  # bytes of rows that are read
_LONGEST = 1 << 20  # bytes of one answer

State = Literal["running", "stopped", "finished"]


class ShownTraining(NamedTuple):
    """A training. `key`: of a finished one its model's id, else the name of its folder."""

    key: str
    name: str
    kind: str
    state: State
    at: str
    folder: Path
    parents: tuple[str, ...]
    model: Model | None


class _StepRow(msgspec.Struct):
    """The fields of a row of training.jsonl that are shown; other releases may write more."""

    step: int
    loss: float
    n_tokens: int = 0
    rate: float = 0.0
    norm: float = 0.0
    terms: dict[str, float] = {}


class _Progress(msgspec.Struct):
    n_done: int
    n_steps: int
    per_second: float
    seconds_left: tuple[float, float] | None


class LossPoint(NamedTuple):
    """The mean of the steps from `first` to `last`. terms: those of the last step that has any."""

    first: int
    last: int
    loss: float
    rate: float
    n_tokens: int
    terms: dict[str, float]


class TrainingCurve(NamedTuple):
    """The rows of a run. speed: tokens a second; None: not known. left: the time left, in words."""

    points: list[LossPoint]
    n_done: int
    n_steps: int
    n_tokens: int
    n_unread: int
    speed: float | None
    left: str

    @property
    def last(self) -> LossPoint | None:
        """The last point; None before the first step."""
        return self.points[-1] if self.points else None


_read: dict[Path, tuple[list[int], list[_StepRow], int]] = {}  # rows by file and its stamp
_DECODER = msgspec.json.Decoder(_StepRow)


def runs(store: Path | None) -> list[ShownTraining]:
    """Those in progress first, then those that stopped before their end, then the finished ones by date."""
    if store is None:
        return []
    order: list[State] = ["running", "stopped", "finished"]
    trainings = [*_under_way(store), *_finished(store)]
    trainings.sort(key=lambda run: run.at, reverse=True)
    return sorted(trainings, key=lambda run: order.index(run.state))


def _under_way(store: Path) -> Iterator[ShownTraining]:
    for folder in sorted((store / "training").glob("*")):
        if not is_digest(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        run = None
        with suppress(OSError, HeredityError, msgspec.DecodeError):  # an older release wrote no such file
            run = msgspec.json.decode(read_file(folder / RUN), type=RunInProgress)
        state: State = "running" if is_locked(folder) else "stopped"
        name, kind = (run.name, run.recipe.kind) if run is not None else ("", "")
        at, parents = (run.at, run.parents) if run is not None else ("", ())
        yield ShownTraining(
            folder.name, name or kind or folder.name[:12], kind, state, at, folder, parents, None
        )


def _finished(store: Path) -> Iterator[ShownTraining]:
    for model in records(store)[0]:
        if any(file.path == METRICS for file in model.files):
            folder = store / "models" / model.id / "files"
            made, kind = model.made.at, model.recipe.kind
            yield ShownTraining(model.id, model.name, kind, "finished", made, folder, model.parents, model)


def find(store: Path | None, key: str) -> ShownTraining | None:
    """The run with this key; None without one."""
    return next(
        (
            run
            for run in runs(store)
            if key in (run.key, key_of(run.model.recipe, run.model.parents) if run.model is not None else "")
        ),
        None,
    )


def read_curve(run: ShownTraining) -> TrainingCurve:
    """The curve of a run. Raises HeredityError for a file that is too large to be read."""
    rows, n_unread = _rows(run.folder / METRICS)
    n_done, n_tokens = (rows[-1].step + 1 if rows else 0), sum(row.n_tokens for row in rows)
    shown = _progress(run)
    speed = shown.per_second if shown else None
    if run.model is not None and run.model.made.seconds:
        speed = n_tokens / run.model.made.seconds
    left = time_words(shown.seconds_left) if shown and shown.seconds_left and run.state == "running" else ""
    n_steps = n_done if run.model is not None else shown.n_steps if shown else 0
    size = max(1, math.ceil(len(rows) / POINTS))
    return TrainingCurve(
        [_point(rows[i : i + size]) for i in range(0, len(rows), size)],
        n_done,
        n_steps,
        n_tokens,
        n_unread,
        speed,
        left,
    )


def _progress(run: ShownTraining) -> _Progress | None:
    with suppress(OSError, HeredityError, msgspec.DecodeError):  # a run of under two seconds has none yet
        progress = msgspec.json.decode(read_file(run.folder / PROGRESS), type=_Progress)
        if progress.per_second >= 0:
            return progress
    return None


def _rows(path: Path) -> tuple[list[_StepRow], int]:
    """The rows that can be read, and how many cannot; a torn last line is not counted."""
    try:
        now = stamp_file(path)
    except OSError:
        return [], 0
    held = _read.get(path)
    if held is not None and held[0] == now:
        return held[1], held[2]
    if now[0] > _LARGEST:
        raise HeredityError(f"{path}: {now[0]:,} bytes of rows are too many to show.")
    *lines, _ = read_file(path).split(b"\n")
    rows: list[_StepRow] = []
    for line in lines:
        try:
            row = _DECODER.decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            continue
        if math.isfinite(row.loss) and row.step >= 0:
            rows.append(row)
    _read[path] = now, rows, len(lines) - len(rows)
    return rows, len(lines) - len(rows)


def _point(rows: Sequence[_StepRow]) -> LossPoint:
    loss = sum(row.loss for row in rows) / len(rows)
    terms = next((row.terms for row in reversed(rows) if row.terms), {})
    last = rows[-1]
    return LossPoint(rows[0].step, last.step, loss, last.rate, sum(row.n_tokens for row in rows), terms)


class TrainingSample(NamedTuple):
    """An answer that a run learns, and what was asked; "" if the file holds the answer only."""

    asked: Shown
    answer: Shown


def samples(run: ShownTraining) -> list[TrainingSample]:
    """The first answers that a teacher wrote for this run, or that its model keeps."""
    lines: list[bytes] = []
    with suppress(FileNotFoundError), open_file(run.folder / ANSWERS) as file:
        lines = [file.readline(_LONGEST) for _ in range(SAMPLES)]
    samples = []
    for line in lines:
        with suppress(msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeDecodeError):
            row = msgspec.json.decode(line, type=_KeptAnswer)
            *asked, answer = [message.content for message in row.messages] or [row.text]
            samples.append(TrainingSample(shown("\n".join(asked), 2_000), shown(answer, 2_000)))
    return samples


class _KeptMessage(msgspec.Struct):
    content: str = ""


class _KeptAnswer(msgspec.Struct):
    """A row of either kind: a teacher's answer to a request, or a conversation that a model keeps."""

    text: str = ""
    messages: list[_KeptMessage] = []


_MAX_RUNS = 100  # runs that are listed


class TrainingLine(NamedTuple):
    """A run of the list. `why`: the error of rows that cannot be read."""

    run: ShownTraining
    curve: TrainingCurve | None
    why: str = ""


def render(site: Site, asked: Asked) -> str:
    """The list."""
    store = store_of(site)
    trainings = runs(store)
    lines = []
    for run in trainings[:_MAX_RUNS]:
        try:
            lines.append(TrainingLine(run, read_curve(run)))
        except (HeredityError, OSError) as error:
            lines.append(TrainingLine(run, None, str(error)))
    return site.html("training.html.jinja", asked, lines=lines, n=len(trainings), store=store)


_LINES = 20  # of the table


def render_run(site: Site, asked: Asked) -> str:
    """The page."""
    store, key = store_of(site), asked.parts["run"]
    run = find(store, key)
    if run is None:
        raise UnknownName("training", label(key), [each.key for each in runs(store)])
    points, models = read_curve(run), lineage_of(site).models
    words = f"Loss of {run.name} over {points.n_done} steps"
    return site.html(
        "training_run.html.jinja", asked,
        run=run, curve=points, svg=curve([(p.last, p.loss) for p in points.points], label(words, 200)),
        rows=_few(points.points), terms=sorted({name for p in points.points for name in p.terms})[:6],
        samples=samples(run), settings=_settings(run),
        parents=[(ident, models.get(ident)) for ident in run.parents],
    )  # fmt: skip


def _few(points: list[LossPoint]) -> list[LossPoint]:
    """Points for a table, evenly chosen, with the first and the last."""
    if len(points) <= _LINES:
        return points
    return [points[round(i * (len(points) - 1) / (_LINES - 1))] for i in range(_LINES)]


def _settings(run: ShownTraining) -> list[tuple[str, str]]:
    if run.model is not None:
        held = run.model.recipe.settings
    else:
        try:
            held = msgspec.json.decode(read_file(run.folder / RUN), type=RunInProgress).recipe.settings
        except (OSError, HeredityError, msgspec.DecodeError):
            return []  # of a release before this file
    return [(k, v if isinstance(v, str) else msgspec.json.encode(v).decode()) for k, v in held.items()]


PAGES = (
    Page("/training", render, menu="4 Training"),
    Page("/training/{run}", render_run),
)
