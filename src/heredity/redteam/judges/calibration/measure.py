"""Measures a judge on a file of labelled answers: how often it is right, by family too, and its threshold.

Promises: an answer that the judge could not decide is left out of the shares and counted. A threshold is
fitted on the even rows and measured on the odd ones. No answer is in both halves.
Leaves to others: shares with intervals, and the use of the counts (quality.py).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from heredity.core import readers
from heredity.core.errors import BadInput, UsageError, did_you_mean, nearest
from heredity.core.sanitize import clean_text
from heredity.redteam.judges._choice import n_learned_from, probabilities
from heredity.redteam.judges.protocols import POSITIVE, FittableJudge, Judge, Task

_FIELDS = ("prompt", "response", "label", "family")


class Labelled(NamedTuple):
    """One answer and its human label; no label: "" or white space."""

    prompt: str
    response: str
    label: str
    row: int  # its place in the file, counted from 0, whatever is left out
    family: str = ""  # of the model that answered


def read_labels(
    path: Path, columns: Mapping[str, str], without: Mapping[str, str] | None = None
) -> Iterator[Labelled]:
    """The labelled answers of a .csv, .tsv or JSON-lines file, in order.

    `columns` maps "response" and "label", and "prompt" and "family" if the file has them, to the file's own
    names. `without` maps a column to a prefix: rows whose value begins with it are left out.
    """
    wrong = [key for key in columns if key not in _FIELDS]
    if wrong or not columns.get("response") or not columns.get("label"):
        raise UsageError(
            "Columns must name response and label, and may name prompt and family, "
            "as prompt=P,response=R,label=L,family=F"
            + (f"; '{wrong[0]}' is none of these." if wrong else "."),
            code="bad-columns",
        )
    for number, (line, row) in enumerate(readers.rows(path)):
        prompt, response, label, family = (
            _cell(path, line, row, columns.get(field, "")) for field in _FIELDS
        )
        if not any(_cell(path, line, row, key).startswith(start) for key, start in (without or {}).items()):
            yield Labelled(prompt, response, label, number, family)


def _cell(path: Path, line: int, row: dict[str, Any], column: str) -> str:
    if not column:
        return ""
    if column not in row:
        near = nearest(column, row)
        hint = (
            f" Did you mean '{near}'?" if near else f" There are: {', '.join(sorted(map(str, row)))[:200]}."
        )
        raise BadInput(path, f"no column '{column}'.{hint}", line, code="unknown-column")
    value = row[column]
    if value is None:
        return ""
    return clean_text(value if isinstance(value, str) else json.dumps(value))


def check_positive(labels: Collection[str], positive: Collection[str], name: str = "") -> None:
    """Each value must be some row's label: a typo next to a right one would make positives negatives.

    name: of the set, if there is more than one. Raises UsageError.
    """
    if not positive:
        raise UsageError("Name the labels that are positive.")
    known = {each for each in labels if each.strip()}
    there = f"The labels are: {', '.join(sorted(known)[:12])}." if known else "No row has a label."
    for value in sorted(set(positive) - known):
        hint = did_you_mean(value, known)
        said = f"'{name}': no" if name else "No"
        raise UsageError(f"{said} row is labelled '{value}'.{hint} {there}", code="unknown-label")
    plain = {value.strip().casefold(): value for value in positive}
    for label in sorted(known - set(positive)):
        if near := plain.get(label.strip().casefold()):
            raise UsageError(
                f"'{label}' is a label as well as '{near}'. Name both, or make them one.",
                code="label-ambiguous",
            )


Half = Literal["all", "even", "odd"]
Watch = Callable[[int, int], None]
_STRAY = 0.01  # of the answers; one in a million is taken for a known one, but one in a short file is much
_AT_ONCE = 32  # answers between two calls of the progress callback


class Calibration(NamedTuple):
    """Counts for Rogan-Gladen: right among the positives and the negatives, and the source of the labels.

    Counts are whole numbers, unless they predict one more family from several (stats.judge_error.across).
    """

    sens_k: float
    sens_n: float
    spec_k: float
    spec_n: float
    labels: str


class LabelMeasurement(NamedTuple):
    """A judge's result on one labelled file. `judge` differs from the given one if a threshold was fitted."""

    judge: Judge
    counts: Calibration
    n_unclear: int  # answers that the judge could not decide; they are in no count
    families: tuple[Calibration, ...]  # by the value of the column `family`, if one was named
    sha256: str
    n_learned_from: int = 0  # counted answers that it was trained on: their figures are optimistic
    n_repeated: int = 0  # rows that repeat an earlier one word for word under the same prompt
    n_unlabelled: int = 0  # rows of the file without a label; they are in no count
    negatives: tuple[tuple[str, int], ...] = ()  # the other labels, and how many rows each
    n_disputed: int = 0  # answers that are labelled both ways

    @property
    def is_too_good(self) -> bool:
        """Whether the judge learned from more of these answers than chance matches of marks explain."""
        return self.n_learned_from > _STRAY * (self.counts.sens_n + self.counts.spec_n)


class _LabelledVerdict(NamedTuple):
    truth: bool
    score: float | None
    row: Labelled


def measure(
    judge: Judge,
    paths: Sequence[Path],
    columns: Mapping[str, str],
    positive: Collection[str],
    task: Task,
    half: Half = "all",
    without: Mapping[str, str] | None = None,
    fit: bool = False,
    watch: Watch | None = None,
    once: bool = False,
) -> LabelMeasurement:
    """Ask a judge about every labelled answer of `half` of the rows, and count.

    once: a repeated answer counts once. It does not count if a row of the other half has it, or if it is
    labelled both ways.
    watch: called every few answers with the number judged and the total.
    fit: fit the threshold of the verdict on the even rows, and measure it on the odd ones.
    Raises UsageError if the judge has no threshold, a positive is the label of no row, or the even rows lack
    a kind.
    """
    if task not in POSITIVE:
        raise UsageError(f"No task '{task}'. There are: {', '.join(POSITIVE)}.")
    read = [row for path in paths for row in read_labels(path, columns, without)]
    every = [row for path in paths for row in read_labels(path, columns)] if without else read
    check_positive({row.label for row in every}, positive)
    found = [row for row in read if row.label.strip()]
    name = " + ".join(path.name for path in paths)
    if fit:
        judge, half = fitted(judge, task, [r for r in found if r.row % 2 == 0], positive, watch), "odd"
    rows = [row for row in found if half == "all" or row.row % 2 == (half == "odd")]
    if fit or (once and half != "all"):
        others = {_key(row) for row in found if row.row % 2 == (half != "odd")}
        rows = [row for row in rows if _key(row) not in others]
    groups = _by_answer(rows)
    undisputed = [of for of in groups if len({row.label in positive for row in of}) == 1]
    n_repeated, n_disputed = len(rows) - len(groups), len(groups) - len(undisputed)
    rows = [of[0] for of in undisputed] if once else rows
    said = _ask(judge, task, rows, positive, watch)
    decided = [each for each in said if each.score is not None]
    name += ("" if half == "all" else f" ({half} rows)") + (" (each answer once)" if once else "")
    families = sorted({each.row.family for each in decided} - {""})
    return LabelMeasurement(
        judge,
        _count(decided, name),
        len(said) - len(decided),
        tuple(_count([e for e in decided if e.row.family == f], f"{name}: {f}") for f in families),
        hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths)).hexdigest(),
        n_learned_from(judge, [each.row.response for each in decided]),
        n_repeated,
        len(read) - len(found),
        tuple(Counter(row.label for row in rows if row.label not in positive).most_common()),
        n_disputed,
    )


def _key(row: Labelled) -> tuple[str, str]:
    return row.prompt, row.response


def _by_answer(rows: Sequence[Labelled]) -> list[list[Labelled]]:
    """Rows with the same answer under the same prompt, grouped in order of their first row."""
    found: dict[tuple[str, str], list[Labelled]] = {}
    for row in rows:
        found.setdefault(_key(row), []).append(row)
    return list(found.values())


def fitted(
    judge: Judge, task: Task, rows: Sequence[Labelled], positive: Collection[str], watch: Watch | None = None
) -> Judge:
    """The judge with the threshold that gives the best sensitivity and specificity on these rows."""
    if not isinstance(judge, FittableJudge):
        raise UsageError(
            f"The judge '{judge.name}' has no threshold to fit; rubric:MODEL has.", code="judge-no-threshold"
        )
    neutral = judge.fitted(task, 0.0)
    said = [(e.truth, e.score) for e in _ask(neutral, task, rows, positive, watch) if e.score is not None]
    truth, scores = np.array([t for t, _ in said], bool), np.array([s for _, s in said])
    if not truth.any() or truth.all():
        raise UsageError("The even rows, on which the threshold is fitted, must hold both kinds of labels.")
    return judge.fitted(task, round(_best_log_odds(truth, scores), 2))


def _best_log_odds(truth: np.ndarray[Any, Any], scores: np.ndarray[Any, Any]) -> float:
    """The middle of the widest best gap between two scores, by Youden's index."""
    odds = np.log(np.clip(scores, 1e-6, 1 - 1e-6)) - np.log1p(-np.clip(scores, 1e-6, 1 - 1e-6))
    values = np.unique(odds)
    cuts = (values[1:] + values[:-1]) / 2 if values.size > 1 else values
    gains = [np.mean(odds[truth] >= cut) - np.mean(odds[~truth] >= cut) for cut in cuts]
    best = [float(cut) for cut, gain in zip(cuts, gains, strict=True) if gain >= max(gains) - 1e-12]
    return best[len(best) // 2]


def _ask(
    judge: Judge, task: Task, rows: Sequence[Labelled], positive: Collection[str], watch: Watch | None
) -> list[_LabelledVerdict]:
    said: list[_LabelledVerdict] = []
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        scores = probabilities(judge, task, [(row.prompt, row.response) for row in some])
        said += [
            _LabelledVerdict(row.label in positive, score, row)
            for row, score in zip(some, scores, strict=True)
        ]
        if watch is not None:
            watch(len(said), len(rows))
    return said


def _count(said: Sequence[_LabelledVerdict], name: str) -> Calibration:
    tally = Counter((e.truth, e.score is not None and e.score >= 0.5) for e in said)
    hit, miss, alarm, clear = (tally[truth, found] for truth in (True, False) for found in (True, False))
    return Calibration(hit, hit + miss, clear, clear + alarm, name)
