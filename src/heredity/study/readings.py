"""Readers' files joined with the studies whose answers they read: the rows of readings.jsonl.

A reader's file is JSON lines, one answer a line:

    {"study": "runs/core", "index": 7, "trial": "7cfc...", "reader": "r1", "label": "broke", "note": ""}

A line may also have `chance`, with which the answer was drawn to be read.

Promises: an answer is judged again, by the checks and rules of this version, so that the counts are theirs.
Leaves to others: counts and shares (redteam/judges/calibration/readings.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import msgspec

from heredity.core import readers
from heredity.core.errors import BadInput, did_you_mean
from heredity.core.records import digest_response
from heredity.redteam.judges import checks, default_verdict, needs_judge, pair_of, rules
from heredity.redteam.judges.calibration.quality import OWN
from heredity.redteam.judges.calibration.readings import AnswerForm, Reading, ReadingLabel, summarise
from heredity.redteam.judges.protocols import Pair
from heredity.study.plan import Grid, read_plan
from heredity.study.storage import open_responses


class _Line(msgspec.Struct, frozen=True):
    """A line of a reader's file."""

    study: str
    index: int
    trial: str
    reader: str
    label: ReadingLabel
    note: str = ""
    chance: float = 1.0


def read_readings(paths: Iterable[Path], root: Path | None = None) -> list[Reading]:
    """The readings in readers' files, each with today's verdict on the answer.

    root: the folder that relative paths of studies start from; None: the working folder. Raises BadInput for
    a line that is malformed, that names a trial of another study, or whose answer is not in the folder.
    """
    by_study: dict[Path, dict[int, list[tuple[Path, int, _Line]]]] = {}
    for path in paths:
        for number, cells in readers.json_lines(path):
            line = _checked(path, number, cells)
            study = by_study.setdefault((root or Path()) / line.study, {})
            study.setdefault(line.index, []).append((path, number, line))
    return [row for folder, found in by_study.items() for row in _of_study(folder, found)]


def read_forms(paths: Iterable[Path], root: Path | None = None) -> list[AnswerForm]:
    """The form of each model's judged answers, in the studies that were read (calibration/readings.py)."""
    lines = (_checked(path, number, cells) for path in paths for number, cells in readers.json_lines(path))
    pairs: dict[str, list[Pair]] = {}
    for folder in sorted({(root or Path()) / line.study for line in lines}):
        grid = Grid(read_plan(folder))
        for row in open_responses(folder):
            trial = grid.trial(row.index)
            if needs_judge(trial.probe) and row.error is None:
                pairs.setdefault(trial.model.name, []).append(pair_of(trial.probe, row))
    return [summarise(f"{OWN}{model}", some) for model, some in sorted(pairs.items())]


def _checked(path: Path, number: int, cells: readers.Row) -> _Line:
    known, label = get_args(ReadingLabel), cells.get("label")
    if isinstance(label, str) and label not in known:
        hint = did_you_mean(label, known)
        raise BadInput(
            path,
            f"no label '{label[:40]}'.{hint} There are: {', '.join(known)}",
            number,
            code="unknown-name",
        )
    try:
        line = msgspec.convert(cells, _Line)
    except msgspec.ValidationError as error:
        raise BadInput(path, str(error), number) from None
    if not 0 < line.chance <= 1:
        why = f"the chance {line.chance} is not above 0 and at most 1"
        raise BadInput(path, why, number)
    return line


def _of_study(folder: Path, found: dict[int, list[tuple[Path, int, _Line]]]) -> Iterator[Reading]:
    plan = read_plan(folder)
    grid = Grid(plan)
    for index, lines in found.items():
        for path, number, line in lines:
            if not grid.matches(index, line.trial):
                raise BadInput(path, f"trial '{line.trial[:40]}' is not number {index} of {folder}", number)
    names = {model.id: model.name for model in plan.models}
    answers = {row.index: row for row in open_responses(folder) if row.index in found}
    for index, lines in sorted(found.items()):
        path, number, line = lines[-1]
        response = answers.get(index)
        if response is None or response.error is not None:
            raise BadInput(path, f"{folder} has no answer to trial {index}", number)
        trial = grid.trial(index)
        verdict = default_verdict(trial.probe, response, plan.application)
        assert verdict.outcome is not None  # an answer without an error has a verdict
        judge = rules if needs_judge(trial.probe) else checks
        yield Reading(
            trial.id, digest_response(response), names[trial.model.id], trial.probe.technique,
            trial.probe.kind, trial.probe.check.kind, judge.name, judge.VERSION, verdict.outcome,
            {each.reader: each.label for _, _, each in lines}, line.chance,
        )  # fmt: skip
