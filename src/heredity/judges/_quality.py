"""How good a judge is: measured on labelled answers, shipped as a table, rebuilt by `make judges`.

Promises: every figure has its n and a Wilson interval; the table names the SHA-256 of the labels and of the
judge's source, so that a test can tell when it is stale; what a judge was developed on is never measured on.
Leaves to others: correcting a rate by it (stats/judge_error.py).
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from heredity import registry
from heredity.errors import UsageError
from heredity.judges import _labels
from heredity.records import SCHEMA, Estimate, Manner, Record
from heredity.stats.intervals import wilson

Task = Literal["refusal", "harm"]
Half = Literal["all", "even", "odd"]

# What a judge must say for a positive: the answer refused; or it did what was asked, which was harmful.
_POSITIVE: dict[Task, Manner] = {"refusal": "refusal", "harm": "compliance"}
_SHIPPED = Path(__file__).with_name("quality.json")
_SOURCES = ("_signs.py", "_text.py", "rules.py")  # what the figures of `rules` depend on


class JudgeQuality(Record, frozen=True):
    """What a judge scored on one labelled set, one task: shares of the positives, the negatives and all."""

    judge: str
    task: Task
    labels: str
    sensitivity: Estimate
    specificity: Estimate
    accuracy: Estimate


class Calibration(NamedTuple):
    """Counts for Rogan-Gladen: right among the positives and the negatives, and whose labels they were."""

    sens_k: int
    sens_n: int
    spec_k: int
    spec_n: int
    labels: str


class LabelSet(NamedTuple):
    """A labelled set that is shipped as measured: its files below the data folder, and how to read them."""

    name: str
    task: Task
    files: tuple[str, ...]
    columns: dict[str, str]
    positive: tuple[str, ...]
    half: Half
    without: dict[str, str]  # column -> how its value begins in the rows that are left out


class Row(Record, frozen=True):
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
    """judges/quality.json."""

    command: str
    source: str  # SHA-256 of the judge's source
    table: tuple[Row, ...]
    schema: int = SCHEMA


_XSTEST = {"prompt": "prompt", "response": "completion", "label": "final_label"}
_REFUSED = ("2_full_refusal", "3_partial_refusal")
_SAFE = {"type": "contrast"}  # leaves out the unsafe prompts that stand beside the safe ones
_LLAMA, _MISTRAL = "xstest/completions_llama2orig.jsonl", "xstest/completions_mistralinstruct.jsonl"
LABEL_SETS = (
    LabelSet("XSTest: Llama-2 and Mistral", "refusal", (_LLAMA, _MISTRAL), _XSTEST, _REFUSED, "odd", {}),
    LabelSet("XSTest: Llama-2", "refusal", (_LLAMA,), _XSTEST, _REFUSED, "odd", {}),
    LabelSet("XSTest: Mistral", "refusal", (_MISTRAL,), _XSTEST, _REFUSED, "odd", {}),
    LabelSet(
        "XSTest safe prompts: Llama-2 and Mistral",
        "refusal",
        (_LLAMA, _MISTRAL),
        _XSTEST,
        _REFUSED,
        "odd",
        _SAFE,
    ),
    LabelSet("XSTest safe prompts: Llama-2", "refusal", (_LLAMA,), _XSTEST, _REFUSED, "odd", _SAFE),
    LabelSet("XSTest safe prompts: Mistral", "refusal", (_MISTRAL,), _XSTEST, _REFUSED, "odd", _SAFE),
    LabelSet(
        "GPTFuzz: ChatGPT under jailbreaks",
        "harm",
        ("gptfuzz_labels/train.jsonl",),
        {"response": "Response", "label": "label"},
        ("1",),
        "odd",
        {},
    ),
    LabelSet(
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


def quality() -> tuple[JudgeQuality, ...]:
    """The shipped table: each judge that can be wrong, on each labelled set, with n and intervals."""
    return tuple(_as_quality(row.judge, row.task, _counts(row)) for row in shipped().table)


def calibration(task: Task) -> Calibration | None:
    """The counts that correct the `rules` judge's rates, or None where nothing was measured.

    "harm" for breaches by compliance with a harmful request, "refusal" for the over-refusal of benign twins.
    """
    return next(iter(calibrations(task)), None)


def calibrations(task: Task) -> tuple[Calibration, ...]:
    """The counts that correct a rate, and after them the same of each family of models that gave the answers.

    Between families a judge errs differently, which no interval from the pooled counts knows. Where there is
    but one family, as for "harm", nothing stands after it: how far others differ was never measured.
    """
    rows = {row.labels: row for row in shipped().table if (row.judge, row.task) == ("rules", task)}
    return tuple(_counts(rows[name]) for name in _CALIBRATES.get(task, ()) if name in rows)


def calibrate(
    judge_name: str,
    labels: Path,
    columns: dict[str, str],
    positive: Collection[str],
    task: Task,
    half: Half = "all",
) -> JudgeQuality:
    """Measure a judge on a file of labelled answers, JSON lines or CSV.

    `columns` maps "prompt" (may be left out), "response" and "label" to the file's names; `positive` are the
    labels that mean "refused" (task "refusal") or "harmful" (task "harm"). `half` takes the even or the odd
    rows, counted from 0. Raises BadInput with file and line, UnknownName, or UsageError where the labels do
    not hold a positive.
    """
    counts = _measure(judge_name, [Path(labels)], columns, positive, task, half)
    return _as_quality(judge_name, task, counts)


def rebuild(data: Path) -> QualityTable:
    """Measure everything again on the labelled sets below `data`."""
    table = []
    for each in LABEL_SETS:
        paths = [data / name for name in each.files]
        counts = _measure("rules", paths, each.columns, each.positive, each.task, each.half, each.without)
        files = {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in each.files}
        table.append(
            Row("rules", each.task, each.name, *counts[:4], each.half, each.positive, files, each.without)
        )
    return QualityTable("make judges", source_hash(), tuple(table))


@lru_cache(maxsize=1)
def shipped() -> QualityTable:
    """The table in this package, as it was measured."""
    return msgspec.json.decode(_SHIPPED.read_bytes(), type=QualityTable)


def write(table: QualityTable) -> Path:
    """Put a rebuilt table in the shipped one's place."""
    _SHIPPED.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=2) + b"\n")
    shipped.cache_clear()
    return _SHIPPED


def source_hash() -> str:
    """SHA-256 of the judge's source, the same whatever the line ends on this system."""
    texts = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in _SOURCES)
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def _measure(
    judge_name: str,
    paths: Sequence[Path],
    columns: dict[str, str],
    positive: Collection[str],
    task: Task,
    half: Half,
    without: dict[str, str] | None = None,
) -> Calibration:
    judge = registry.load("judges", judge_name)
    if not hasattr(judge, "manner"):
        raise UsageError(f"The judge '{judge_name}' is deterministic: there is nothing to calibrate.")
    if task not in _POSITIVE:
        raise UsageError(f"No task '{task}'. There are: {', '.join(_POSITIVE)}.")
    found = [row for path in paths for row in _labels.read(path, columns, without)]
    seen = {row.label for row in found}
    rows = [row for row in found if half == "all" or row.row % 2 == (half == "odd")]
    said = [judge.manner(row.prompt, row.response) == _POSITIVE[task] for row in rows]
    tally: Counter[tuple[bool, ...]] = Counter(zip((row.label in positive for row in rows), said, strict=True))
    if not seen & set(positive):
        wanted, there = " or ".join(sorted(positive)), ", ".join(sorted(seen)[:12])
        raise UsageError(f"No row is labelled {wanted}. The labels are: {there}.")
    hit, miss, alarm, clear = (tally[key] for key in itertools.product((True, False), repeat=2))
    name = " + ".join(path.name for path in paths) + ("" if half == "all" else f" ({half} rows)")
    return Calibration(hit, hit + miss, clear, clear + alarm, name)


def _counts(row: Row) -> Calibration:
    name = row.labels if row.rows == "all" else f"{row.labels} ({row.rows} rows)"
    return Calibration(row.sens_k, row.sens_n, row.spec_k, row.spec_n, name)


def _as_quality(judge: str, task: Task, counts: Calibration) -> JudgeQuality:
    return JudgeQuality(
        judge,
        task,
        counts.labels,
        sensitivity=wilson(counts.sens_k, counts.sens_n),
        specificity=wilson(counts.spec_k, counts.spec_n),
        accuracy=wilson(counts.sens_k + counts.spec_k, counts.sens_n + counts.spec_n),
    )
