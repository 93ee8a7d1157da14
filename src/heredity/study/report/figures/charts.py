"""Figures as inline SVG: pure functions of numbers, with no script, no style attribute and no request.

Promises: every figure has a text equivalent. Positions are percentages, so a figure fits a phone without
smaller text. Colours come only from the style sheet; model names are escaped.
Leaves to others: the numbers and the meaning of colours (_style.css).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from heredity.core.sanitize import label

TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_HEIGHT = 24  # pixels of a bar's row
_THIN = 9  # pixels of a bar inside a cell
_TINTS = 3
_LEFT, _TOP, _SIDE = 52, 12, 300  # the plane's square inside its figure
# One shape per model, so that no figure depends on colours; centred on 0,0.
_SHAPES = (
    "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0Z",  # circle
    "M-4.5 -4.5H4.5V4.5H-4.5Z",  # square
    "M0 -6.2L6.2 0L0 6.2L-6.2 0Z",  # diamond
    "M0 -5.6L5.6 4.4H-5.6Z",  # triangle
    "M0 5.6L5.6 -4.4H-5.6Z",  # triangle, point down
    "M-1.8 -5.6H1.8V-1.8H5.6V1.8H1.8V5.6H-1.8V1.8H-5.6V-1.8H-1.8Z",  # plus
)


class Span(NamedTuple):
    """A value with its bounds, as shares; a difference may be negative."""

    value: float
    low: float
    high: float


class Point(NamedTuple):
    """A model in the plane: breach across, over-refusal up. `order` picks its shape."""

    order: int
    name: str
    breach: Span
    over_refusal: Span


class BarSegment(NamedTuple):
    """A share of a stacked bar. `kind` is a class of the style sheet."""

    kind: str
    n: int


def marker(order: int) -> Markup:
    """The shape of the model at `order`, in one of three tints; after the sixth, shapes repeat, hollow."""
    hollow = " hollow" if (order // len(_SHAPES)) % 2 else ""
    return Markup('<path class="mark t{}{}" d="{}"/>').format(
        order % _TINTS, hollow, _SHAPES[order % len(_SHAPES)]
    )


def key(order: int) -> Markup:
    """A model's shape, small, for use before its name."""
    return Markup(
        '<svg class="key" width="14" height="14" viewBox="-7 -7 14 14" aria-hidden="true">{}</svg>'
    ).format(marker(order))


def interval_bar(span: Span | None, order: int, words: str) -> Markup:
    """A rate on a line from 0 to 100 %: the bar is its interval, the shape its value."""
    grid = Markup("").join(_tick(place) for place in TICKS)
    drawn = Markup("") if span is None else _whisker(span, order)
    return _figure(words, grid + drawn)


def cell_bar(span: Span) -> Markup:
    """The same inside a cell, in the colour of its text; the cell's words are its text equivalent."""
    middle = _THIN / 2
    return Markup(
        '<svg class="thin" width="100%" height="{}" aria-hidden="true">'
        '<line class="rail" x1="0%" x2="100%" y1="{m}" y2="{m}"/>'
        '<line class="reach" x1="{:.2f}%" x2="{:.2f}%" y1="{m}" y2="{m}"/>'
        '<svg x="{:.2f}%" y="{m}" overflow="visible"><path class="dot" d="M0 -4V4"/></svg></svg>'
    ).format(_THIN, span.low * 100, span.high * 100, span.value * 100, m=middle)


def difference_bar(span: Span | None, margin: float, reach: float, order: int, words: str) -> Markup:
    """A difference on a line from -`reach` to +`reach`; the band is the margin that counts as no worse."""
    low, high = _place(-margin, reach), _place(margin, reach)
    band = Markup('<rect class="band" x="{:.2f}%" y="2" width="{:.2f}%" height="{}"/>').format(
        low * 100, (high - low) * 100, _HEIGHT - 4
    )
    drawn = Markup("")
    if span is not None:
        drawn = _whisker(Span(*(_place(value, reach) for value in span)), order)
    return _figure(words, band + _tick(0.5) + drawn)


def axis(labels: Sequence[str]) -> Markup:
    """The scale beneath a column of bars, evenly spaced."""
    last = max(1, len(labels) - 1)
    ends = {0: "start", last: "end"}
    texts = (
        Markup('<text x="{:.2f}%" y="12" text-anchor="{}">{}</text>').format(
            100 * i / last, ends.get(i, "middle"), text
        )
        for i, text in enumerate(labels)
    )
    return Markup('<svg class="axis" width="100%" height="16" aria-hidden="true">{}</svg>').format(
        Markup("").join(texts)
    )


def stack(parts: Sequence[BarSegment], words: str) -> Markup:
    """Shares of a whole, side by side; an empty whole draws nothing."""
    total, start, drawn = sum(part.n for part in parts), 0.0, Markup("")
    for part in parts:
        if part.n:
            width = 100 * part.n / total
            drawn += Markup('<rect class="{}" x="{:.2f}%" y="3" width="{:.2f}%" height="{}"/>').format(
                part.kind, start, width, _HEIGHT - 6
            )
            start += width
    return _figure(words, drawn)


def plane(points: Sequence[Point], words: str) -> Markup:
    """Breach across and over-refusal up, a cross of intervals for each model; bottom left is best."""
    grid = Markup("").join(_plane_grid(tick) for tick in TICKS)
    drawn = Markup("").join(map(_cross, points)) + Markup("").join(map(_dot, points))  # no line over a shape
    titles = Markup(
        '<text class="title" x="{}" y="{}" text-anchor="middle">breach rate</text>'
        '<text class="title" x="0" y="0" text-anchor="middle" transform="translate(11 {}) rotate(-90)">'
        "over-refusal rate</text>"
    ).format(_LEFT + _SIDE / 2, _TOP + _SIDE + 36, _TOP + _SIDE / 2)
    return Markup('<svg class="plane" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _LEFT + _SIDE + 20, _TOP + _SIDE + 42, label(words, 400), grid + titles + drawn
    )


def reach_of(spans: Sequence[Span]) -> float:
    """The smallest round reach that shows every difference whole."""
    widest = max((max(abs(s.low), abs(s.high)) for s in spans), default=0.0)
    return next((reach for reach in (0.1, 0.2, 0.3, 0.5) if widest <= reach), 1.0)


def _figure(words: str, content: Markup) -> Markup:
    return Markup('<svg class="bar" width="100%" height="{}" role="img" aria-label="{}">{}</svg>').format(
        _HEIGHT, label(words, 200), content
    )


def _tick(place: float) -> Markup:
    return Markup('<line class="grid" x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="{1}"/>').format(
        place * 100, _HEIGHT
    )


def _whisker(span: Span, order: int) -> Markup:
    middle = _HEIGHT / 2
    return Markup(
        '<line class="whisker" x1="{:.2f}%" x2="{:.2f}%" y1="{}" y2="{}"/>'
        '<svg x="{:.2f}%" y="{}" overflow="visible">{}</svg>'
    ).format(span.low * 100, span.high * 100, middle, middle, span.value * 100, middle, marker(order))


def _place(difference: float, reach: float) -> float:
    """Where a difference lies between -reach (0) and +reach (1)."""
    return min(1.0, max(0.0, 0.5 + difference / (2 * reach)))


def _across(rate: float) -> float:
    return round(_LEFT + _SIDE * rate, 1)


def _up(rate: float) -> float:
    return round(_TOP + _SIDE * (1 - rate), 1)


def _plane_grid(tick: float) -> Markup:
    return Markup(
        '<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'
        '<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
        '<text x="{x}" y="{below}" text-anchor="middle">{percent}</text>'
        '<text x="{before}" y="{beside}" text-anchor="end">{percent}</text>'
    ).format(
        x=_across(tick),
        y=_up(tick),
        top=_up(1),
        bottom=_up(0),
        left=_across(0),
        right=_across(1),
        below=_up(0) + 16,
        before=_LEFT - 6,
        beside=_up(tick) + 4,
        percent=f"{tick:.0%}",
    )


def _cross(point: Point) -> Markup:
    breach, over = point.breach, point.over_refusal
    return Markup(
        '<line class="whisker" x1="{}" x2="{}" y1="{y}" y2="{y}"/>'
        '<line class="whisker" x1="{x}" x2="{x}" y1="{}" y2="{}"/>'
    ).format(
        _across(breach.low),
        _across(breach.high),
        _up(over.low),
        _up(over.high),
        x=_across(breach.value),
        y=_up(over.value),
    )


def _dot(point: Point) -> Markup:
    return Markup('<svg x="{}" y="{}" overflow="visible">{}</svg>').format(
        _across(point.breach.value), _up(point.over_refusal.value), marker(point.order)
    )
