"""The multiverse table of a report: one comparison under each coding, judge and weighting, as rows.

Promises: the model of the higher rate in the declared cell comes first; signs and verdicts are turned to it.
Leaves to others: the numbers (study/multiverse.py), the page (_multiverse.html.jinja).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import msgspec

from heredity.core.records import Estimate
from heredity.study.estimands import Multiverse, MultiverseCell
from heredity.study.wording import BADGES, multiverse_words

_CODINGS = {"excluded": "left out", "held": "counted as held", "broke": "counted as broke"}
_WEIGHTINGS = {"trial": "each trial", "technique": "each technique"}
_JUDGES = {"checks": "Checks only", "judge": "Checks and judge"}


class AnalysisCell(NamedTuple):
    """One analysis; the difference is the rate of the table's `high` minus that of `low`.

    verdict: on `high`; "better" if the analysis calls the other model worse.
    """

    difference: Estimate
    p_value: float | None
    verdict: str
    badge: str
    is_declared: bool


class AnalysisRow(NamedTuple):
    """A coding and a weighting, with a cell for each judge."""

    coding: str
    weighting: str
    cells: tuple[AnalysisCell, ...]


class AnalysisTable(NamedTuple):
    """Two models under every analysis. `summary` counts the verdicts."""

    high: str
    low: str
    summary: str
    judges: tuple[str, ...]
    rows: tuple[AnalysisRow, ...]


def table(found: Multiverse) -> AnalysisTable:
    """The table of two models."""
    declared = next((cell for cell in found.cells if cell.is_declared), found.cells[0])
    is_b_high = (declared.difference.value or 0.0) >= 0
    high, low = (found.b, found.a) if is_b_high else (found.a, found.b)
    judges = tuple(dict.fromkeys(cell.judge for cell in found.cells))
    by_key = {(_coding(cell), cell.weighting, cell.judge): cell for cell in found.cells}
    codings = dict.fromkeys(map(_coding, found.cells))
    weightings = dict.fromkeys(cell.weighting for cell in found.cells)
    rows = tuple(
        AnalysisRow(
            coding,
            _WEIGHTINGS[weighting],
            tuple(_cell(by_key[key], is_b_high) for j in judges if (key := (coding, weighting, j)) in by_key),
        )
        for coding, weighting in product(codings, weightings)
    )
    names = tuple(_JUDGES.get(judge, f"Checks and {judge}") for judge in judges)
    return AnalysisTable(high, low, multiverse_words(found, high), names, rows)


def _coding(cell: MultiverseCell) -> str:
    """The coding of unclear answers; that of errors too, if they are not left out."""
    errors = "" if cell.errors == "excluded" else f", errors {_CODINGS[cell.errors]}"
    return _CODINGS[cell.coding] + errors


def tables(found: Sequence[Multiverse], first: tuple[str, str]) -> list[AnalysisTable]:
    """The tables of all pairs; that of the two models in `first` comes first."""
    return [table(each) for each in sorted(found, key=lambda each: {each.a, each.b} != set(first))]


def _cell(cell: MultiverseCell, is_b_high: bool) -> AnalysisCell:
    verdict, other = (cell.verdict_ab, cell.verdict_ba) if is_b_high else (cell.verdict_ba, cell.verdict_ab)
    turned = cell.difference if is_b_high else negated(cell.difference)
    shown = "better" if other == "worse" else verdict
    return AnalysisCell(turned, cell.p_value, shown, BADGES[verdict], cell.is_declared)


def negated(estimate: Estimate) -> Estimate:
    """The same difference the other way round."""
    value, low, high = (None if x is None else -x for x in (estimate.value, estimate.high, estimate.low))
    return msgspec.structs.replace(estimate, value=value, low=low, high=high)
