"""The rows behind a cell of the report: which lines of the study's files its counts are from.

Promises: ranges are of the field `index`, in the plan's order, and together they are all of a cell's trials.
Leaves to others: the counts (estimates.json), and reading the files (_rows.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from heredity.study.estimates import ALL
from heredity.study.outcomes import is_part
from heredity.study.plan import Plan

_MAX_RANGES = 6  # more than these make no readable filter; the rows are then found by probe name


def ranges(plan: Plan, model: str, technique: str, attack: str = ALL) -> list[tuple[int, int]]:
    """First and last index of each run of rows behind a cell, in the plan's order.

    Breach probes bring their benign twins, which are adjacent rows with verdicts of another kind.
    """
    own = {p.id for p in plan.probes if is_part(p, technique)}
    of = [i for i, p in enumerate(plan.probes) if p.id in own or (p.kind == "benign" and p.twin in own)]
    models = [i for i, card in enumerate(plan.models) if card.id == model]
    attacks = [i for i, name in enumerate(plan.attacks) if attack in (ALL, name)]
    per_attack = len(plan.probes) * plan.samples
    starts = (
        (m * len(plan.attacks) + a) * per_attack + p * plan.samples
        for m in models
        for a in attacks
        for p in of
    )
    return _runs(starts, plan.samples)


def rows(plan: Plan, model: str, technique: str) -> str:
    """The rows behind a cell, as ranges of `index`."""
    found = ranges(plan, model, technique)
    if len(found) > _MAX_RANGES:
        return f"{len(found)} runs: filter by model and probe"
    return ", ".join(f"{first}–{last}" for first, last in found)


def condition(plan: Plan, model: str, technique: str) -> str:
    """A jq condition that picks the first rows of a cell out of verdicts.jsonl."""
    found = ranges(plan, model, technique)[:_MAX_RANGES]
    return " or ".join(f"(.index >= {first} and .index <= {last})" for first, last in found)


def _runs(starts: Iterator[int], width: int) -> list[tuple[int, int]]:
    """Neighbouring blocks of `width` indices joined: (first, last) of each run."""
    runs: list[tuple[int, int]] = []
    for start in starts:
        if runs and runs[-1][1] == start - 1:
            runs[-1] = (runs[-1][0], start + width - 1)
        else:
            runs.append((start, start + width - 1))
    return runs
