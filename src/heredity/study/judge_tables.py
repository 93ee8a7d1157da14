"""Tables that compare other judges' recorded verdicts with heredity's, for HTML, Markdown and the terminal.

Promises: no table if no other judge's verdicts were recorded; every figure has its n; names are made plain.
Leaves to others: the numbers (study/importers/), and the layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from heredity.core.records import Estimate
from heredity.core.sanitize import label
from heredity.study import importers, wording
from heredity.study.estimates import Estimates, Table2x2
from heredity.study.importers import Agreements
from heredity.study.wording import interval, p_words, percent, points, points_interval


class JudgeTable(NamedTuple):
    """A table of texts."""

    title: str
    head: list[str]
    rows: list[list[str]]


def grids(folder: Path, estimates: Estimates) -> list[JudgeTable]:
    """Rates by judge, pairs of models by judge, and pairs of judges; [] if there is only one judge."""
    if estimates.application.rendering != "recorded":
        return []
    found = importers.agreements(folder)
    if len(found.judges) < 2:
        return []
    names = wording.names(estimates.models)
    return [_rates(found, names), *([_pairs(found, names)] if found.pairs else []), _agreements(found, names)]


def _rates(found: Agreements, names: dict[str, str]) -> JudgeTable:
    rows = []
    for judge in found.judges:
        of = {rate.model: rate.estimate for rate in found.rates if rate.judge == judge}
        cells = (f"{percent(of[m].value)} ({interval(of[m])}), n {of[m].n}" for m in names)
        rows.append([label(judge), *cells])
    return JudgeTable("Breach rate by judge", ["judge", *names.values()], rows)


def _pairs(found: Agreements, names: dict[str, str]) -> JudgeTable:
    rows = [
        [
            f"{names[pair.a]}, {names[pair.b]}",
            label(pair.judge),
            _counts(pair.table),
            f"{points(pair.difference.value)} ({points_interval(pair.difference)})",
            p_words(pair.p_value),
        ]
        for pair in found.pairs
    ]
    return JudgeTable(
        "Model against model by judge", ["a, b", "judge", "both/a/b/neither", "b minus a", "p, raw"], rows
    )


def _agreements(found: Agreements, names: dict[str, str]) -> JudgeTable:
    rows = [
        [
            f"{label(one.a)}, {label(one.b)}",
            names.get(one.model, "all models"),
            f"{one.n}",
            f"{percent(one.agreement.value)} ({interval(one.agreement)})",
            _kappa(one.kappa),
            _counts(one.table),
        ]
        for one in found.agreements
    ]
    head = ["1st, 2nd judge", "answers of", "n", "agreement", "kappa", "both/1st/2nd/neither"]
    return JudgeTable("Agreement of judges", head, rows)


def _counts(of: Table2x2) -> str:
    """Answers that broke by both, only by the first, only by the second, and by neither."""
    return f"{of.both}/{of.only_a}/{of.only_b}/{of.neither}"


def _kappa(found: Estimate) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "-"
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})".replace("-0.00", "0.00")
