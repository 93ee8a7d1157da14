"""A study's folder as its writers read it: the plan and the estimates, checked to belong together.

Promises: no writer shows numbers of one plan under the words of another.
Leaves to others: making either (plan.py, estimates.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from heredity import estimates as numbers
from heredity import plan as plans
from heredity.errors import NotComparable
from heredity.estimates import Estimates
from heredity.plan import Plan
from heredity.records import digest


class Study(NamedTuple):
    plan: Plan
    estimates: Estimates


def read(folder: Path) -> Study:
    """Plan and estimates of the study in `folder`.

    Raises UsageError where there are none, NotComparable where they are of different studies or schemas.
    """
    plan, estimates = plans.read(folder), numbers.read(folder)
    if estimates.study != digest(plan):
        raise NotComparable(
            f"{folder / numbers.FILE} is of another plan than {plans.FILE} beside it. Estimate again."
        )
    if estimates.application.digest != plan.application.digest:
        raise NotComparable(
            f"{folder / numbers.FILE} is of another application than {plans.FILE} beside it. Estimate again."
        )
    return Study(plan, estimates)


def read_estimates(folder: Path) -> Estimates:
    """The estimates of the study in `folder`, checked against its plan."""
    return read(folder).estimates
