"""A study's folder as its writers read it: the plan and the estimates, checked to belong together.

Promises: no writer shows numbers of one plan under the words of another, or numbers that are not what the
verdicts beside them come to.
Leaves to others: making either (plan.py, estimates.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from heredity.core.errors import Damaged, NotComparable
from heredity.core.records import digest, encode
from heredity.study import aggregate, storage
from heredity.study import plan as plans
from heredity.study.estimates import Estimates
from heredity.study.plan import Plan


class RecordedStudy(NamedTuple):
    plan: Plan
    estimates: Estimates


def read(folder: Path) -> RecordedStudy:
    """Plan and estimates of the study in `folder`.

    Raises UsageError where there are none, NotComparable where they are of different studies or schemas,
    Damaged where the numbers are not what the verdicts come to. The judge's own errors are left out of that,
    and words are: a report of an older study keeps those of its day.
    """
    study = _together(folder)
    _compare(folder, _counted(study.estimates), _counted(aggregate.estimate(study.plan, folder)))
    return study


def proven(folder: Path) -> Estimates:
    """The estimates in `folder`, equal in everything but circumstances to what its verdicts come to now.

    Raises as `read` does, and Damaged where the judge's quality or a word differs too.
    """
    plan, estimates = _together(folder)
    _compare(folder, estimates, aggregate.estimate(plan, folder))
    return estimates


def _compare(folder: Path, held: Estimates, found: Estimates) -> None:
    found = msgspec.structs.replace(found, circumstances=held.circumstances)
    names = [n for n in Estimates.__struct_fields__ if encode(getattr(held, n)) != encode(getattr(found, n))]
    if names:
        raise Damaged(
            f"{folder / storage.ESTIMATES}: {', '.join(names)} differ from what the verdicts come to. "
            "Run the same study again, which estimates anew and asks nothing twice.",
            code="estimates-contradict-verdicts",
        )


def _counted(found: Estimates) -> Estimates:
    """The estimates with nothing but what was counted, and what the formulas make of it."""
    replace = msgspec.structs.replace
    return replace(
        found,
        models=tuple(replace(card, engine="") for card in found.models),
        rates=tuple(replace(rate, corrected=None, by_family=()) for rate in found.rates),
        pairs=tuple(replace(pair, words="") for pair in found.pairs),
        technique_pairs=tuple(replace(pair, words="") for pair in found.technique_pairs),
        edges=tuple(replace(e, compared=replace(e.compared, words="")) for e in found.edges),
        technique_edges=tuple(
            replace(e, compared=replace(e.compared, words="")) for e in found.technique_edges
        ),
        judges=(),
        corrected_by={},
    )


def _together(folder: Path) -> RecordedStudy:
    plan, estimates = plans.read_plan(folder), storage.read_estimates(folder)
    if estimates.study != digest(plan):
        raise NotComparable(
            f"{folder / storage.ESTIMATES} is of another plan than {plans.PLAN} beside it. Estimate again.",
            code="another-plan",
        )
    if estimates.application.digest != plan.application.digest:
        raise NotComparable(
            f"{folder / storage.ESTIMATES} is of another application than {plans.PLAN}. Estimate again."
        )
    return RecordedStudy(plan, estimates)
