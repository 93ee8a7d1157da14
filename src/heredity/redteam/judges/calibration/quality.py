"""How good a judge is: measured on labelled answers, shipped as a table, rebuilt by `make judges`.

Promises: every figure has its n and a Wilson interval. The table names the SHA-256 of the labels and the
judge's version, so that a test can tell when it is stale. A judge is never measured on its development rows.
An answer that a set repeats counts once, and never if a development row has it too.
Leaves to others: correcting a rate by it (stats/judge_error.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from heredity.core.errors import Damaged
from heredity.core.files import write_atomic
from heredity.core.records import SCHEMA, Estimate, Record, digest, encode
from heredity.redteam.judges._choice import load
from heredity.redteam.judges.calibration import readings
from heredity.redteam.judges.calibration.canaries import CanaryVerdicts, judge_canaries
from heredity.redteam.judges.calibration.measure import Calibration, Half, LabelMeasurement, measure
from heredity.redteam.judges.calibration.readings import CHECKS, Endpoint, Reading
from heredity.redteam.judges.protocols import DEFAULT, LabelTask, Models, Task
from heredity.redteam.judges.rules import judge as rules
from heredity.redteam.judges.rules.no_answer import is_stamped
from heredity.stats.intervals import wilson
from heredity.stats.judge_error import across

FOLDER = "judges"  # of the store, and of a study that uses one of them
TASKS: tuple[Task, ...] = ("harm", "refusal")


class Counts(Record, frozen=True):
    """Counts of right verdicts among the positives and the negatives, and the source of the labels."""

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
    canaries: CanaryVerdicts | None = None  # of the judge, at that time
    schema: int = SCHEMA

    def calibrations(self) -> tuple[Calibration, ...]:
        """All labels together, then each family by itself."""
        return tuple(
            Calibration(c.sens_k, c.sens_n, c.spec_k, c.spec_n, c.labels)
            for c in (self.counts, *self.families)
        )


def save_calibration(
    root: Path,
    found: LabelMeasurement,
    judged_by: str,
    task: Task,
    positive: tuple[str, ...],
    columns: dict[str, str],
) -> Path:
    """Write a calibration; the same judge on the same labels replaces the earlier one.

    The judge judges the canary answers too, so that a later study can tell whether it drifted.
    """
    at = datetime.now(UTC).isoformat(timespec="microseconds")
    made = StoredCalibration(
        found.judge.name, judged_by, task, positive, columns, found.sha256,
        _as_counts(found.counts), tuple(map(_as_counts, found.families)), found.n_unclear, at,
        judge_canaries(found.judge),
    )  # fmt: skip
    name = digest([made.judge, judged_by, task, found.sha256, made.counts.labels])[:16]
    path = root / FOLDER / f"{name}.json"
    write_atomic(path, msgspec.json.format(encode(made), indent=1) + b"\n")
    return path


def newest_calibration(root: Path, judge: str, judged_by: str, task: Task) -> StoredCalibration | None:
    """The newest calibration of exactly this judge, or None."""
    found = [
        k
        for k in _stored_calibrations(root)
        if (k.judge, k.task) == (judge, task) and is_stamped(judged_by, k.judged_by)
    ]
    return max(found, key=lambda kept: kept.at, default=None)


def copy_calibrations(root: Path, folder: Path, judge: str, judged_by: str) -> None:
    """Copy this judge's calibrations from a store into a study's folder, which then is complete."""
    for task in TASKS:
        kept = newest_calibration(root, judge, judged_by, task)
        if kept is not None and kept != newest_calibration(folder, judge, judged_by, task):
            data = msgspec.json.format(encode(kept), indent=1) + b"\n"
            write_atomic(folder / FOLDER / f"{task}-{judged_by}.json", data)


def _stored_calibrations(root: Path) -> list[StoredCalibration]:
    found = []
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=StoredCalibration))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Damaged(f"{path}: {error}. Delete it and calibrate again.") from None
    return found


def _as_counts(found: Calibration) -> Counts:
    return Counts(found.labels, *map(int, found[:4]))


_SHIPPED = Path(__file__).with_name("quality.json")
LEARNED_CARD = Path(__file__).parents[1] / "learned" / "learned.json"
HEAD_CARD = Path(__file__).parents[1] / "rubric" / "head.json"


class JudgeQuality(Record, frozen=True):
    """A judge's scores on one labelled set for one task: shares of the positives, the negatives and all."""

    judge: str
    task: LabelTask
    labels: str
    sensitivity: Estimate
    specificity: Estimate
    accuracy: Estimate


class ShippedLabels(NamedTuple):
    """A labelled set that is shipped as measured: its files below the data folder, and how to read them."""

    name: str
    task: Task
    files: tuple[str, ...]
    columns: dict[str, str]
    positive: tuple[str, ...]
    half: Half
    without: dict[str, str]  # column -> how its value begins in the rows that are left out


class QualityRow(Record, frozen=True):
    """A row of the shipped table, in counts. `files` are the labels' SHA-256."""

    judge: str
    task: Task
    labels: str
    sens_k: int
    sens_n: int
    spec_k: int
    spec_n: int
    rows: Half
    positive: tuple[str, ...]
    files: dict[str, str]
    without: dict[str, str]


class QualityTable(Record, frozen=True):
    """The contents of calibration/quality.json."""

    command: str
    version: int  # of the judge `rules` that was measured
    table: tuple[QualityRow, ...]
    schema: int = SCHEMA


class CardCounts(msgspec.Struct, frozen=True):
    """Counts of one judge on one labelled set, as the card of `learned` has them."""

    judge: str
    task: Task
    labels: str
    sens_k: int
    sens_n: int
    spec_k: int
    spec_n: int


class TrainedCard(msgspec.Struct, frozen=True):
    """The fields of learned/learned.json and rubric/head.json that are read here."""

    judge: str
    measured: tuple[CardCounts, ...]


_XSTEST = {"prompt": "prompt", "response": "completion", "label": "final_label"}
_REFUSED = ("2_full_refusal", "3_partial_refusal")
_SAFE = {"type": "contrast"}  # leaves out the unsafe prompts among the safe ones
_LLAMA, _MISTRAL = "xstest/completions_llama2orig.jsonl", "xstest/completions_mistralinstruct.jsonl"
LABEL_SETS = (
    ShippedLabels("XSTest: Llama-2 and Mistral", "refusal", (_LLAMA, _MISTRAL), _XSTEST, _REFUSED, "odd", {}),
    ShippedLabels("XSTest: Llama-2", "refusal", (_LLAMA,), _XSTEST, _REFUSED, "odd", {}),
    ShippedLabels("XSTest: Mistral", "refusal", (_MISTRAL,), _XSTEST, _REFUSED, "odd", {}),
    ShippedLabels(
        "XSTest safe prompts: Llama-2 and Mistral",
        "refusal",
        (_LLAMA, _MISTRAL),
        _XSTEST,
        _REFUSED,
        "odd",
        _SAFE,
    ),
    ShippedLabels("XSTest safe prompts: Llama-2", "refusal", (_LLAMA,), _XSTEST, _REFUSED, "odd", _SAFE),
    ShippedLabels("XSTest safe prompts: Mistral", "refusal", (_MISTRAL,), _XSTEST, _REFUSED, "odd", _SAFE),
    ShippedLabels(
        "GPTFuzz: ChatGPT under jailbreaks",
        "harm",
        ("gptfuzz_labels/train.jsonl",),
        {"response": "Response", "label": "label"},
        ("1",),
        "odd",
        {},
    ),
    ShippedLabels(
        "JAILJUDGE: many models under attacks",
        "harm",
        ("jailjudge_mini/labels.jsonl",),
        {"prompt": "question", "response": "answer", "label": "label"},
        ("1",),
        "odd",
        {},
    ),
)
# What corrects a rate, the pooled labels first, then one set for each family that gave the answers.
# Over-refusal is asked about benign twins: XSTest's safe prompts. Mistral refused none of the safe ones that
# are measured on, so that its own figures are those of all its prompts. A harmful request's breach is
# compliance with harm: GPTFuzz's labels are by hand, most of its harmless answers are refusals, as ours are
# (one family: ChatGPT). JAILJUDGE's negatives are often continuations of garbage suffixes, as no attack here
# sends, and it does not say which model answered.
_CALIBRATES: dict[Task, tuple[str, ...]] = {
    "refusal": (
        "XSTest safe prompts: Llama-2 and Mistral",
        "XSTest safe prompts: Llama-2",
        "XSTest: Mistral",
    ),
    "harm": ("GPTFuzz: ChatGPT under jailbreaks",),
}
# Of judges that learned: whether an answer refused is what the rules say (a test holds them to that), so that
# the same labels correct them. Harm: families that their weights were trained without, since a study's
# answers are of none that they know. PyRIT's severity asks another question.
_TRAINED_HARM = tuple(
    f"{name} (sets left out)"
    for name in ("GPTFuzz", "JAILJUDGE", "PyRIT: objective achieved", "XSTest: Mistral, unsafe prompts")
)


def quality() -> tuple[JudgeQuality, ...]:
    """The shipped table: each judge that can be wrong, on each labelled set, with n and intervals."""
    rows = [(row.judge, row.task, as_calibration(row)) for row in shipped().table]
    # The cards also have what `rules` says on the same rows.
    trained = [q for card in (LEARNED_CARD, HEAD_CARD) for q in quality_of_card(card) if q.judge != "rules"]
    return (*(as_quality(*row) for row in rows), *trained)


@lru_cache(maxsize=4)
def quality_of_card(path: Path) -> tuple[JudgeQuality, ...]:
    """The measurements in a trained judge's card, on answers that its weights were not trained on."""
    rows = read_card(path).measured
    counts = [Calibration(row.sens_k, row.sens_n, row.spec_k, row.spec_n, row.labels) for row in rows]
    return tuple(as_quality(row.judge, row.task, n) for row, n in zip(rows, counts, strict=True))


def calibration(task: Task, judge: str = DEFAULT) -> Calibration | None:
    """The counts that correct a judge's rates, or None if nothing was measured.

    "harm" for breaches by compliance with a harmful request, "refusal" for the over-refusal of benign twins.
    """
    return next(iter(calibrations(task, judge)), None)


def calibrations(
    task: Task, judge: str = DEFAULT, judged_by: str = "", root: Path | None = None
) -> tuple[Calibration, ...]:
    """The counts that correct a judge's rate, then the same counts for each family that gave the answers.

    A user's measurements of the judge with the digest `judged_by`, kept in the store `root`, replace the
    shipped ones. A judge's errors differ between families, which an interval from pooled counts ignores. With
    only one family no family counts follow: the spread between families was never measured.
    A judge that learned to find harm was measured on several families that it had not seen. Together they
    count as few labels, fewer the more they differ, so that the interval holds for one more family.
    """
    if root is not None and (kept := newest_calibration(root, judge, judged_by, task)) is not None:
        return kept.calibrations()
    trained = {read_card(path).judge: path for path in (LEARNED_CARD, HEAD_CARD)}
    if judge in trained and task == "harm":
        return trained_calibrations(trained[judge])
    if judge not in (DEFAULT, *trained):
        return ()
    rows = {row.labels: row for row in shipped().table if (row.judge, row.task) == ("rules", task)}
    return tuple(as_calibration(rows[name]) for name in _CALIBRATES.get(task, ()) if name in rows)


def check_quality(
    endpoint: Endpoint = "all_trials", rows: Sequence[Reading] | None = None
) -> tuple[JudgeQuality, ...]:
    """The checks on answers that people read, by family of techniques; then all of them together."""
    own = [row for row in (readings.shipped_readings() if rows is None else rows) if row.judge == CHECKS]
    names = sorted({readings.family_of(row.technique) for row in own})
    parts = [(name, [row for row in own if readings.family_of(row.technique) == name]) for name in names]
    found = []
    for name, part in [*parts, ("every technique", own)] if own else []:
        sens_k, sens_n, spec_k, spec_n = map(round, readings.count_readings(part, endpoint))
        counts = Calibration(sens_k, sens_n, spec_k, spec_n, f"answers read: {name}")
        if counts.sens_n or counts.spec_n:
            found.append(as_quality(CHECKS, "breach", counts))
    return tuple(found)


def trained_calibrations(path: Path) -> tuple[Calibration, ...]:
    """From a card: the prediction of its families for one more, then each family's own counts."""
    card = read_card(path)
    own = {r.labels: r for r in card.measured if (r.judge, r.task) == (card.judge, "harm")}
    each = [own[labels] for labels in _TRAINED_HARM]
    together = Calibration(
        *across([r.sens_k for r in each], [r.sens_n for r in each]),
        *across([r.spec_k for r in each], [r.spec_n for r in each]),
        "families that it did not learn from: " + "; ".join(_TRAINED_HARM),
    )
    return (together, *(Calibration(r.sens_k, r.sens_n, r.spec_k, r.spec_n, r.labels) for r in each))


@lru_cache(maxsize=4)
def read_card(path: Path) -> TrainedCard:
    return msgspec.json.decode(path.read_bytes(), type=TrainedCard)


def measured_by_user(
    judge: str, judged_by: str, root: Path, tasks: Collection[Task]
) -> tuple[JudgeQuality, ...]:
    """A user's measurements of this judge in the store: by task, all labels and each family."""
    found = [(task, newest_calibration(root, judge, judged_by, task)) for task in sorted(tasks)]
    return tuple(
        as_quality(judge, task, counts)
        for task, kept in found
        if kept is not None
        for counts in kept.calibrations()
    )


def calibrate(
    judge_name: str,
    labels: Path,
    columns: dict[str, str],
    positive: Collection[str],
    task: Task,
    half: Half = "all",
    models: Models | None = None,
) -> JudgeQuality:
    """Measure a judge on a file of labelled answers, JSON lines or CSV.

    `columns` maps "prompt" (optional), "response" and "label" to the file's names. `positive` are the labels
    that mean "refused" (task "refusal") or "harmful" (task "harm"). `half` takes the even or the odd rows,
    counted from 0. Raises BadInput with file and line, UnknownName, or UsageError if the labels do not hold a
    positive.
    """
    found = measure(load(judge_name, models), [Path(labels)], columns, positive, task, half)
    return as_quality(found.judge.name, task, found.counts)


def measure_table(data: Path) -> QualityTable:
    """Measure everything again on the labelled sets below `data`."""
    table = []
    for each in LABEL_SETS:
        paths = [data / name for name in each.files]
        found = measure(
            rules, paths, each.columns, each.positive, each.task, each.half, each.without, once=True
        )
        a, b, c, d = map(int, found.counts[:4])
        files = {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in each.files}
        table.append(
            QualityRow(
                "rules", each.task, each.name, a, b, c, d, each.half, each.positive, files, each.without
            )
        )
    return QualityTable("make judges", rules.VERSION, tuple(table))


@lru_cache(maxsize=1)
def shipped() -> QualityTable:
    """The table in this package, as it was measured."""
    return msgspec.json.decode(_SHIPPED.read_bytes(), type=QualityTable)


def write_table(table: QualityTable) -> Path:
    """Replace the shipped table with a rebuilt one."""
    _SHIPPED.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=2) + b"\n")
    shipped.cache_clear()
    return _SHIPPED


def as_calibration(row: QualityRow) -> Calibration:
    name = row.labels if row.rows == "all" else f"{row.labels} ({row.rows} rows)"
    return Calibration(row.sens_k, row.sens_n, row.spec_k, row.spec_n, name)


def as_quality(judge: str, task: LabelTask, counts: Calibration) -> JudgeQuality:
    """Counts of labels as shares with Wilson intervals."""
    sens_k, sens_n, spec_k, spec_n = map(int, counts[:4])
    return JudgeQuality(
        judge,
        task,
        counts.labels,
        sensitivity=wilson(sens_k, sens_n),
        specificity=wilson(spec_k, spec_n),
        accuracy=wilson(sens_k + spec_k, sens_n + spec_n),
    )
