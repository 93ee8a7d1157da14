"""Canary answers: a fixed set that every study judges again, so that a judge that drifts is noticed.

A judge behind an API can change under the same name. Its verdicts on these answers are on record. The package
has them for the shipped judges, and the store for a judge that a user calibrated.

Promises: at most 24 requests to a model. Requests and answers are ours and harmless.
Leaves to others: the study's folder (study/drift.py), and the warning (study/report/).
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec

from heredity.application.spec import Application
from heredity.core.records import SCHEMA, Check, Exchange, Outcome, Probe, Record, Response, digest
from heredity.redteam.judges._choice import identity, judge_rows
from heredity.redteam.judges.protocols import Judge, Task
from heredity.redteam.judges.rules.no_answer import is_stamped

_ANSWERS = Path(__file__).with_name("canaries.toml")
_RECORDED = Path(__file__).with_name("canaries.json")
_APPLICATION = Application("canaries", "You are a helpful assistant.")


class CanaryAnswer(Record, frozen=True):
    """One request with one answer, for one task of a judge."""

    id: str
    task: Task
    prompt: str
    answer: str


class CanaryVerdicts(Record, frozen=True):
    """A judge's verdicts on the canaries, by their id; None where the judge failed.

    `judged_by` is the digest of the judge, `answers` that of the canaries.
    """

    judge: str
    judged_by: str
    answers: str
    outcomes: dict[str, Outcome | None]
    schema: int = SCHEMA


class _Answers(msgspec.Struct, frozen=True):
    canary: tuple[CanaryAnswer, ...]


@lru_cache(maxsize=1)
def canaries() -> tuple[CanaryAnswer, ...]:
    """The canaries, in order."""
    return msgspec.convert(tomllib.loads(_ANSWERS.read_text(encoding="utf-8")), _Answers).canary


def judge_canaries(judge: Judge) -> CanaryVerdicts:
    """The judge's verdicts on the canaries."""
    rows = [(_probe(each), _response(i, each)) for i, each in enumerate(canaries())]
    verdicts = judge_rows(judge, rows, _APPLICATION)
    outcomes = {each.id: row.outcome for each, row in zip(canaries(), verdicts, strict=True)}
    return CanaryVerdicts(judge.name, identity(judge), _digest(), outcomes)


def _probe(canary: CanaryAnswer) -> Probe:
    kind: Literal["breach", "benign"] = "breach" if canary.task == "harm" else "benign"
    return Probe(canary.id, "canaries", kind, (canary.prompt,), Check("refusal"), canary.id)


def _response(index: int, canary: CanaryAnswer) -> Response:
    exchange = Exchange(canary.prompt, "", "", canary.answer, (), "end", 0, 0)
    return Response(
        index, digest(canary.id), "", _APPLICATION.digest, canary.id, "direct", 0, 0, (exchange,), "canaries"
    )


def _digest() -> str:
    return digest([msgspec.to_builtins(each) for each in canaries()])


def recorded_verdicts(judge: str, judged_by: str) -> CanaryVerdicts | None:
    """The verdicts that the package recorded for exactly this judge on these canaries, or None."""
    found = msgspec.json.decode(_RECORDED.read_bytes(), type=tuple[CanaryVerdicts, ...])
    wanted = (judge, _digest())
    same = (row for row in found if (row.judge, row.answers) == wanted)
    return next((row for row in same if is_stamped(judged_by, row.judged_by)), None)


def record_verdicts(rows: list[CanaryVerdicts]) -> Path:
    """Replace the record in the package: for `make judges`. Rows of other judges stay as they are."""
    held = msgspec.json.decode(_RECORDED.read_bytes(), type=tuple[CanaryVerdicts, ...])
    names = {row.judge for row in rows}
    kept = [row for row in held if row.judge not in names and row.answers == _digest()]
    _RECORDED.write_bytes(msgspec.json.format(msgspec.json.encode([*kept, *rows]), indent=1) + b"\n")
    return _RECORDED


def drifted(now: CanaryVerdicts, then: CanaryVerdicts) -> tuple[str, ...]:
    """The canaries whose verdict changed, sorted. A canary on which the judge failed tells nothing."""
    both = ((name, now.outcomes.get(name), then.outcomes.get(name)) for name in sorted(now.outcomes))
    return tuple(name for name, a, b in both if a is not None and b is not None and a != b)
