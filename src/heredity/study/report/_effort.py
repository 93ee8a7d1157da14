"""The cost of a breach for a report: queries, tokens and money by attack and model, and ASR@k curves.

Promises: shows what estimates.json holds. Without a breach a cost is a lower bound ("at least"), never 0.
Money is shown only if all runs of a model had the same price.
Leaves to others: the numbers (study/attack_cost.py), the figure (figures/curve.py), the page
(_effort.html.jinja).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
from markupsafe import Markup

from heredity.core.records import Estimate
from heredity.study.estimates import JUDGE_FREE, JUDGED, Cost, Curve, Estimates
from heredity.study.report._pairs import span
from heredity.study.report.figures import curve as curve_figure

_SCOPES = {JUDGE_FREE: "Judge-free", JUDGED: "Judged"}
_SMALL = 20  # counts per breach below it are shown with one decimal place


class CostRow(NamedTuple):
    """One attack in one scope, with a cell per model in the study's order; None if it was not asked."""

    scope: str
    attack: str
    cells: tuple[Cost | None, ...]


class CurveRow(NamedTuple):
    """One attack in one scope over several tries, with a curve per model in the study's order."""

    scope: str
    attack: str
    curves: tuple[Curve, ...]
    ks: tuple[int, ...]


def cost_rows(found: Estimates) -> list[CostRow]:
    """Costs by scope and attack: judge-free before judged, attacks in the study's order."""
    cells = {(c.technique, c.attack, c.model): c for c in found.costs}
    rows = (
        CostRow(title, attack, tuple(cells.get((scope, attack, card.id)) for card in found.models))
        for scope, title in _SCOPES.items()
        for attack in found.attacks
    )
    return [row for row in rows if any(row.cells)]


def curve_rows(found: Estimates) -> list[CurveRow]:
    """Curves by scope and attack."""
    order = {card.id: i for i, card in enumerate(found.models)}
    rows = []
    for scope, title in _SCOPES.items():
        for attack in found.attacks:
            mine = [c for c in found.curves if (c.technique, c.attack) == (scope, attack) and c.points]
            mine.sort(key=lambda curve: order.get(curve.model, 0))
            if ks := tuple(sorted({point.k for curve in mine for point in curve.points})):
                rows.append(CurveRow(title, attack, tuple(mine), ks))
    return rows


def figure(row: CurveRow, found: Estimates) -> Markup:
    """The row's curves in one figure."""
    order = {card.id: i for i, card in enumerate(found.models)}
    lines = [curve_figure.CurveSeries(order.get(c.model, 0), tuple(_steps(c))) for c in row.curves]
    words = f"{row.scope} breaches within k tries under {row.attack}; the table next to it has the numbers"
    return curve_figure.curve([line for line in lines if line.steps], words)


def at(curve: Curve, k: int) -> Estimate | None:
    """The curve's point for k tries."""
    return next((point.estimate for point in curve.points if point.k == k), None)


def per_breach(estimate: Estimate, count: Callable[[float], str] | None = None) -> str:
    """`12.5 (9.8 to 17.1)`; without a breach `none; at least 40`."""
    count = count or _count
    if estimate.value is None and not estimate.n:
        return "unknown"
    if estimate.value is None:
        return "none" if estimate.low is None else f"none; at least {count(estimate.low)}"
    high = "no bound" if estimate.high is None else count(estimate.high)
    return f"{count(estimate.value)} ({count(estimate.low or 0.0)} to {high})"


def lines(cost: Cost, found: Estimates) -> list[str]:
    """The cost of one breach, one line each: queries, tokens, attacker queries and money if known."""
    costs = [f"{per_breach(cost.queries_per_breach)} queries", f"{per_breach(cost.tokens_per_breach)} tokens"]
    if cost.attacker_queries_per_breach is not None:
        costs.append(f"{per_breach(cost.attacker_queries_per_breach)} queries to the attacker")
    if (money := _money(cost, found)) is not None:
        costs.append(f"{per_breach(money, _amount)} in money")
    return costs


def _money(cost: Cost, found: Estimates) -> Estimate | None:
    """The price of the tokens per breach; None if the model has no price.

    Prompt tokens count at full price even if they were cached, because the next user pays that.
    """
    prices = found.circumstances.accounts.get(cost.model, {}).get("price", [])
    tokens = cost.n_prompt_tokens + cost.n_tokens
    if len(prices) != 1 or not tokens:
        return None
    prompt, answer = map(float, str(prices[0]).split(","))
    each = (cost.n_prompt_tokens * prompt + cost.n_tokens * answer) / 1e6 / tokens
    of = cost.tokens_per_breach
    value, low, high = (None if x is None else x * each for x in (of.value, of.low, of.high))
    return msgspec.structs.replace(of, value=value, low=low, high=high)


def _amount(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 else f"{value:.2g}"


def _count(value: float) -> str:
    return f"{value:.1f}" if value < _SMALL else f"{value:,.0f}"


def _steps(curve: Curve) -> Iterator[curve_figure.CurvePoint]:
    for point in curve.points:
        if found := span(point.estimate):
            yield curve_figure.CurvePoint(point.k, found)
