"""Measure the checks on answers that readers read, and rewrite the shipped readings.

python bench/readings.py READINGS.jsonl...         two readers' kappa, and the checks' errors by technique
                                           and by answering model
python bench/readings.py READINGS.jsonl... --write also writes readings.jsonl (judges/calibration)
python bench/readings.py                           the same figures of the shipped readings

READINGS.jsonl  one answer a line: {"study": "runs/core", "index": 7, "trial": "7cfc...", "reader": "r1",
                "label": "broke", "note": ""}, and maybe `chance`, with which the answer was drawn
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec

from heredity.core import readers
from heredity.core.errors import BadInput, did_you_mean
from heredity.core.records import Estimate, digest_response
from heredity.redteam.judges import check_quality, checks, default_verdict, needs_judge, pair_of, rules
from heredity.redteam.judges.calibration import quality
from heredity.redteam.judges.calibration.quality import OWN, AnswerForm, Reading, ReadingLabel, summarise
from heredity.redteam.judges.protocols import Pair
from heredity.stats.intervals import wilson
from heredity.stats.paired import Table, cohens_kappa
from heredity.study.plan import Grid, read_plan
from heredity.study.storage import open_responses


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--root", type=Path, help="Relative paths of studies start here.")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rows = read_readings(arguments.files, arguments.root) if arguments.files else quality.shipped_readings()
    print_agreement(rows)
    print_errors(rows)
    if arguments.write and arguments.files:
        print(f"wrote {write_readings(rows)}")
        print(f"wrote {quality.write_forms(read_forms(arguments.files, arguments.root))}")
    return 0


def write_readings(rows: Iterable[Reading], path: Path = quality.SHIPPED_READINGS) -> Path:
    """Replace a file of readings, sorted by trial."""
    lines = [msgspec.json.encode(row) for row in sorted(rows, key=lambda row: row.trial)]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    quality.shipped_readings.cache_clear()
    return path


class ReaderAgreement(NamedTuple):
    """Two readers on the answers that both read, as yes or no; `n_unclear`: one of them was not sure."""

    a: str
    b: str
    kind: str
    kappa: Estimate
    agreed: Estimate
    n_unclear: int


def agreement(rows: Sequence[Reading]) -> Iterator[ReaderAgreement]:
    """Cohen's kappa of every two readers, on breach probes and on benign twins."""
    readers = sorted({reader for row in rows for reader in row.labels} - {quality.FINAL})
    for i, a in enumerate(readers):
        for b in readers[i + 1 :]:
            for kind in ("breach", "benign"):
                both = [row for row in rows if row.kind == kind and a in row.labels and b in row.labels]
                if both:
                    answers = [
                        (
                            quality._is_positive(row.labels[a], kind),
                            quality._is_positive(row.labels[b], kind),
                        )
                        for row in both
                    ]
                    sure = [pair for pair in answers if None not in pair]
                    table = Table(
                        *(
                            sure.count(pair)
                            for pair in ((True, True), (True, False), (False, True), (False, False))
                        )
                    )
                    agreed = wilson(table.both + table.neither, table.n)
                    yield ReaderAgreement(a, b, kind, cohens_kappa(table), agreed, len(answers) - len(sure))


def print_agreement(rows) -> None:
    cards = tomllib.loads(quality.READERS.read_text())
    for reader in sorted({reader for row in rows for reader in row.labels}):
        card = cards.get(reader, {"who": "no card", "read": ""})
        print(f"{reader}: {card['who']}. {card['read']}")
    print(f"{len(rows)} answers, {sum(row.truth is None for row in rows)} without one label")
    for found in agreement(rows):
        print(
            f"{found.a} and {found.b}, {found.kind}: kappa {show(found.kappa)}, agreed {show(found.agreed)}, "
            f"{found.n_unclear} unclear to one of them"
        )


def print_errors(rows) -> None:
    for endpoint in ("all_trials", "decided_trials"):
        print(endpoint)
        for model in ("", *sorted({row.model for row in rows})):
            found = check_quality(endpoint, [row for row in rows if model in ("", row.model)])
            for row in found[-1:] if model else found:
                print(f"  {row.judge}, {row.labels} {model}: sensitivity {show(row.sensitivity)}, "
                      f"specificity {show(row.specificity)}, agreement {show(row.accuracy)}")  # fmt: skip


def show(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"none (n={estimate.n})"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}] n={estimate.n}"


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
    """The form of each model's judged answers, in the studies that were read (calibration/quality.py)."""
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


if __name__ == "__main__":
    raise SystemExit(main())
