"""The ways as one SVG: quality against breach rate. The size of a mark is the cost, bars are the intervals.

Promises: no script and no request; light and dark. Every way has a number and a name. The same result gives
the same bytes; names are escaped.
Leaves to others: the numbers (findings.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup

from heredity.core.records import Estimate
from heredity.core.sanitize import label
from heredity.experiments.adapt.findings import AdaptResult, WayFinding
from heredity.experiments.adapt.ways import PLAIN

_LEFT, _TOP, _WIDE, _HIGH, _WORDS = 64, 36, 520, 380, 250  # of the plane, and of the list beside it
_SMALLEST, _LARGEST = 9.0, 26.0  # radius of a mark
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1c1b1a; } .soft { fill: #5d5852; font-size: 12px; }
.grid { stroke: #e3ded5; } .bar { stroke: #b9b2a7; }
.front { fill: none; stroke: #2c6a5b; stroke-dasharray: 5 4; }
.mark { fill: #ece7de; stroke: #6f6a63; stroke-width: 1.5; } .best { fill: #d5e5df; stroke: #2c6a5b; }
.number { text-anchor: middle; font-weight: 600; } .paper { fill: #fdfcfa; } .bold { font-weight: 600; }
@media (prefers-color-scheme: dark) {
text { fill: #ece7e1; } .soft { fill: #a9a199; } .grid { stroke: #35302c; } .bar { stroke: #6b645d; }
.front { stroke: #86c8b4; } .mark { fill: #2a2623; stroke: #a9a199; }
.best { fill: #22362f; stroke: #86c8b4; } .paper { fill: #161413; }
}
"""


class _PlacedWay(NamedTuple):
    """A way in the plane: its breach rate and its quality, both with intervals. radius in pixels."""

    number: int
    found: WayFinding
    breach: Estimate
    right: Estimate
    radius: float

    @property
    def x(self) -> float:
        return _across(self.breach.value or 0.0)

    @property
    def y(self) -> float:
        return _up(self.right.value or 0.0)


def draw(found: AdaptResult) -> str:
    """The figure as the text of a file."""
    marks = _marks(found)
    wide, high = _LEFT + _WIDE + _WORDS, _TOP + _HIGH + 60
    parts = [*_plane(found), *map(_bars, marks), _front(marks), *map(_dot, marks), *_names(found, marks)]
    words = Markup("Quality against breach rate. ") + Markup("; ").join(
        f"{mark.found.title}: {_percent(mark.right)} right, {_percent(mark.breach)} breaches"
        for mark in marks
    )
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" role="img" '
        'aria-label="{words}"><style>{style}</style>'
        '<rect class="paper" width="{w}" height="{h}"/>{parts}</svg>\n'
    ).format(w=wide, h=high, words=words, style=Markup(_STYLE), parts=Markup("").join(parts))


def _marks(found: AdaptResult) -> list[_PlacedWay]:
    """The ways that have both rates; the area of a mark grows with the seconds that the way takes."""
    placed = [
        (number, way, breach.rate, way.quality[0].rate)
        for number, way in enumerate(found.ways)
        if (breach := found.main(way)) is not None
        and breach.rate.value is not None
        and way.quality[0].rate.value is not None
    ]
    most = max((way.cost.seconds or 0.0 for _, way, _, _ in placed), default=0.0)
    return [
        _PlacedWay(number, way, breach, right, _radius(way.cost.seconds, most))
        for number, way, breach, right in placed
    ]


def _radius(seconds: float | None, most: float) -> float:
    share = (seconds or 0.0) / most if most else 0.0
    return max(_SMALLEST, _LARGEST * math.sqrt(share))


def _plane(found: AdaptResult) -> Iterator[Markup]:
    bottom, right = _TOP + _HIGH, _LEFT + _WIDE
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _across(tick), _up(tick)
        yield Markup('<path class="grid" d="M{:.1f} {}V{}M{} {:.1f}H{}"/>').format(
            x, _TOP, bottom, _LEFT, y, right
        )
        yield Markup('<text class="soft" x="{:.1f}" y="{}" text-anchor="middle">{:.0f}</text>').format(
            x, bottom + 18, 100 * tick
        )
        yield Markup('<text class="soft" x="{}" y="{:.1f}" text-anchor="end">{:.0f}</text>').format(
            _LEFT - 8, y + 4, 100 * tick
        )
    scope = "judge-free" if found.main_scope == "judge_free" else "judged"
    yield Markup('<text class="soft" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
        _across(0.5), bottom + 40, f"breaches, % ({scope}); further left is safer"
    )
    yield Markup('<text class="soft" x="{}" y="20">{}</text>').format(_LEFT - 40, "right answers, %")


def _bars(mark: _PlacedWay) -> Markup:
    """The intervals of both rates."""
    low, high = (_across(each) for each in _bounds(mark.breach))
    bottom, top = (_up(each) for each in _bounds(mark.right))
    return Markup('<path class="bar" d="M{:.1f} {:.1f}H{:.1f}M{:.1f} {:.1f}V{:.1f}"/>').format(
        low, mark.y, high, mark.x, bottom, top
    )


def _front(marks: Sequence[_PlacedWay]) -> Markup:
    """The line through the ways that no other one beats, by the point estimates."""
    best = sorted((mark.x, mark.y) for mark in marks if mark.found.is_on_front)
    if len(best) < 2:
        return Markup("")
    return Markup('<polyline class="front" points="{}"/>').format(
        " ".join(f"{x:.1f},{y:.1f}" for x, y in best)
    )


def _dot(mark: _PlacedWay) -> Markup:
    kind = "mark best" if mark.found.is_on_front else "mark"
    return Markup(
        '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>'
        '<text class="number" x="{:.1f}" y="{:.1f}">{}</text>'
    ).format(kind, mark.x, mark.y, mark.radius, mark.x, mark.y + 4, mark.number)


def _names(found: AdaptResult, marks: Sequence[_PlacedWay]) -> Iterator[Markup]:
    x, y = _LEFT + _WIDE + 28, _TOP + 10
    placed = {mark.number for mark in marks}
    for number, way in enumerate(found.ways):
        bold = "bold" if way.is_on_front else ""
        name = f"{number}  {label(way.title, 24)}"
        if way.way == PLAIN:
            name += " model"
        if number not in placed:
            name += " (no rate)"
        yield Markup('<text class="{}" x="{}" y="{}">{}</text>').format(bold, x, y + 24 * number, name)
    bottom = y + 24 * len(found.ways) + 12
    answers = f"{found.task.prices.answers:,}"
    for line in (
        "size: seconds of making and of",
        f"the first {answers} answers",
        "dashes, bold: the Pareto front",
    ):
        yield Markup('<text class="soft" x="{}" y="{}">{}</text>').format(x, bottom, line)
        bottom += 18


def _bounds(found: Estimate) -> tuple[float, float]:
    value = found.value or 0.0
    return (value if found.low is None else found.low, value if found.high is None else found.high)


def _percent(found: Estimate) -> str:
    return f"{100 * (found.value or 0.0):.0f} %"


def _across(share: float) -> float:
    return _LEFT + share * _WIDE


def _up(share: float) -> float:
    return _TOP + (1 - share) * _HIGH
