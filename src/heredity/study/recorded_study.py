"""Read a study's plan and estimates for a report, and check that they belong together.

Promises: no report shows estimates of another plan, or estimates that the verdicts do not give.
Leaves to others: making either (study/plan.py, study/aggregate.py).
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
    """The plan and the estimates of one study."""

    plan: Plan
    estimates: Estimates


def read(folder: Path) -> RecordedStudy:
    """Read the plan and the estimates of the study in `folder`.

    Raises UsageError if one is missing, NotComparable if they are of different studies or schemas, and
    Damaged if the verdicts give other estimates. Corrections for the judge's errors and wordings are not
    compared, because an older study keeps its own.
    """
    study = _together(folder)
    _compare(folder, _counted(study.estimates), _counted(aggregate.estimate(study.plan, folder)))
    return study


def proven(folder: Path) -> Estimates:
    """Read the estimates in `folder`, and check that its verdicts give the same ones now.

    Raises as `read_study` does, and Damaged also if a correction or a wording differs.
    """
    plan, estimates = _together(folder)
    _compare(folder, estimates, aggregate.estimate(plan, folder))
    return estimates


def _compare(folder: Path, held: Estimates, found: Estimates) -> None:
    found = msgspec.structs.replace(found, circumstances=held.circumstances)
    names = [n for n in Estimates.__struct_fields__ if encode(getattr(held, n)) != encode(getattr(found, n))]
    if names:
        raise Damaged(
            f"{folder / storage.ESTIMATES}: {', '.join(names)} differ from the estimates that the verdicts "
            "give. Run the same study again: it estimates again, and asks nothing twice.",
            code="estimates-contradict-verdicts",
        )


def _counted(found: Estimates) -> Estimates:
    """The estimates without corrections, wordings and judges: counts and what follows from them."""
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
            f"{folder / storage.ESTIMATES} is of another plan than {plans.PLAN} in that folder. "
            "Estimate again.",
            code="another-plan",
        )
    if estimates.application.digest != plan.application.digest:
        raise NotComparable(
            f"{folder / storage.ESTIMATES} is of another application than {plans.PLAN}. Estimate again."
        )
    return RecordedStudy(plan, estimates)
