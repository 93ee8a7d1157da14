"""The ways as one SVG: quality against breach rate. The size of a mark is the cost, bars are the intervals.

Both axes begin at 0 and end above the highest interval, so that small rates are legible.

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
from heredity.lab.adapt import AdaptResult, WayFinding
from heredity.lab.task import PLAIN

_LEFT, _TOP, _WIDE, _HIGH, _WORDS = 64, 36, 520, 380, 250  # of the plane, and of the list beside it
_SMALLEST, _LARGEST = 4.0, 18.0  # radius of a mark
_ENDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)  # of an axis
_APART = 15.0  # pixels between two numbers
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1c1b1a; } .soft { fill: #5d5852; font-size: 12px; }
.grid { stroke: #e3ded5; } .bar { stroke: #b9b2a7; }
.front { fill: none; stroke: #2c6a5b; stroke-dasharray: 5 4; }
.mark { fill: #ece7de; stroke: #6f6a63; stroke-width: 1.5; fill-opacity: .6; }
.best { fill: #d5e5df; stroke: #2c6a5b; } .leader { stroke: #6f6a63; }
.number { text-anchor: middle; font-weight: 600; } .paper { fill: #fdfcfa; } .bold { font-weight: 600; }
@media (prefers-color-scheme: dark) {
text { fill: #ece7e1; } .soft { fill: #a9a199; } .grid { stroke: #35302c; } .bar { stroke: #6b645d; }
.front { stroke: #86c8b4; } .mark { fill: #2a2623; stroke: #a9a199; } .leader { stroke: #a9a199; }
.best { fill: #22362f; stroke: #86c8b4; } .paper { fill: #161413; }
}
"""


class _Scale(NamedTuple):
    """The shares at the ends of the two axes."""

    breach: float
    right: float

    def across(self, share: float) -> float:
        """The x of a breach rate, in pixels."""
        return _LEFT + share / self.breach * _WIDE

    def up(self, share: float) -> float:
        """The y of a share of right answers, in pixels."""
        return _TOP + (1 - share / self.right) * _HIGH


class _PlacedWay(NamedTuple):
    """A way in the plane: its breach rate and its quality, both with intervals. x, y, radius in pixels."""

    number: int
    found: WayFinding
    breach: Estimate
    right: Estimate
    radius: float
    scale: _Scale

    @property
    def x(self) -> float:
        return self.scale.across(self.breach.value or 0.0)

    @property
    def y(self) -> float:
        return self.scale.up(self.right.value or 0.0)


def draw(found: AdaptResult) -> str:
    """The figure as the text of a file."""
    marks = _marks(found)
    wide, high = _LEFT + _WIDE + _WORDS, _TOP + _HIGH + 60
    scale = marks[0].scale if marks else _Scale(1.0, 1.0)
    dots = map(_dot, sorted(marks, key=lambda mark: -mark.radius))  # none is hidden behind a larger one
    parts = [*_plane(found, scale), *map(_bars, marks), _front(marks), *dots]
    parts += [*_numbers(marks), *_names(found, marks)]
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
    highest = [
        max((_bounds(rate)[1] for rate in rates), default=1.0)
        for rates in ([broke for _, _, broke, _ in placed], [right for _, _, _, right in placed])
    ]
    scale = _Scale(_end(highest[0]), _end(highest[1]))
    return [
        _PlacedWay(number, way, broke, right, _radius(way.cost.seconds, most), scale)
        for number, way, broke, right in placed
    ]


def _radius(seconds: float | None, most: float) -> float:
    share = (seconds or 0.0) / most if most else 0.0
    return max(_SMALLEST, _LARGEST * math.sqrt(share))


def _end(highest: float) -> float:
    """The end of an axis that shows all up to this share."""
    return next((end for end in _ENDS if end >= highest), 1.0)


def _plane(found: AdaptResult, scale: _Scale) -> Iterator[Markup]:
    bottom, right = _TOP + _HIGH, _LEFT + _WIDE
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = scale.across(tick * scale.breach), scale.up(tick * scale.right)
        yield Markup('<path class="grid" d="M{:.1f} {}V{}M{} {:.1f}H{}"/>').format(
            x, _TOP, bottom, _LEFT, y, right
        )
        yield Markup('<text class="soft" x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>').format(
            x, bottom + 18, round(100 * tick * scale.breach, 2)
        )
        yield Markup('<text class="soft" x="{}" y="{:.1f}" text-anchor="end">{:g}</text>').format(
            _LEFT - 8, y + 4, round(100 * tick * scale.right, 2)
        )
    scope = "judge-free" if found.main_scope == "judge_free" else "judged"
    yield Markup('<text class="soft" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
        _LEFT + _WIDE / 2, bottom + 40, f"breaches, % ({scope}); further left is safer"
    )
    yield Markup('<text class="soft" x="{}" y="20">{}</text>').format(_LEFT - 40, "right answers, %")


def _bars(mark: _PlacedWay) -> Markup:
    """The intervals of both rates."""
    low, high = map(mark.scale.across, _bounds(mark.breach))
    bottom, top = map(mark.scale.up, _bounds(mark.right))
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
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(
        kind, mark.x, mark.y, mark.radius
    )


def _numbers(marks: Sequence[_PlacedWay]) -> Iterator[Markup]:
    """The number of each mark above it on the right, clear of those of other marks, joined to its centre."""
    taken: list[tuple[float, float]] = []
    for mark in sorted(marks, key=lambda mark: (-mark.y, mark.x)):
        x, y = mark.x + mark.radius * 0.7 + 10, mark.y - mark.radius * 0.7 - 10
        while any(abs(x - a) < _APART and abs(y - b) < _APART for a, b in taken) or any(
            math.hypot(x - each.x, y - each.y) < each.radius + 8 for each in marks
        ):
            x += _APART
        taken.append((x, y))
        yield Markup(
            '<path class="leader" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>'
            '<text class="number" x="{:.1f}" y="{:.1f}">{}</text>'
        ).format(mark.x, mark.y, x - 4, y + 4, x, y + 4, mark.number)


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
