"""Success within k tries as a figure: tries across, doubling; the share of probes broken up.

Promises: as charts.py: no script, no style of its own, a text equivalent, one shape a model.
Leaves to others: the numbers and which curves to draw (study/findings/tries.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from heredity.core.sanitize import label
from heredity.study.report.figures.charts import TICKS, Span, marker

_LEFT, _TOP, _WIDE, _HIGH = 52, 12, 400, 200
_ASIDE = 5  # pixels between the whiskers of two models at the same k


class CurvePoint(NamedTuple):
    """One point: k tries broke this share of the probes."""

    k: int
    share: Span


class CurveSeries(NamedTuple):
    """One model's points, in the order of k. `order` picks its shape."""

    order: int
    steps: tuple[CurvePoint, ...]


def curve(lines: Sequence[CurveSeries], words: str) -> Markup:
    """The figure. Models are drawn with a small offset, so that their intervals do not overlap."""
    ks = sorted({step.k for line in lines for step in line.steps})
    grid = Markup("").join([*map(_row, TICKS), *(_column(k, ks) for k in ks)])
    middle = (len(lines) - 1) / 2
    drawn = Markup("").join(_line(line, ks, (i - middle) * _ASIDE) for i, line in enumerate(lines))
    titles = Markup(
        '<text class="title" x="{}" y="{}" text-anchor="middle">tries</text>'
        '<text class="title" x="0" y="0" text-anchor="middle" transform="translate(11 {}) rotate(-90)">'
        "probes broken</text>"
    ).format(_LEFT + _WIDE / 2, _TOP + _HIGH + 36, _TOP + _HIGH / 2)
    return Markup('<svg class="plane curve" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _LEFT + _WIDE + 20, _TOP + _HIGH + 42, label(words, 400), grid + titles + drawn
    )


def _line(line: CurveSeries, ks: Sequence[int], aside: float) -> Markup:
    places = [(_across(step.k, ks) + aside, step.share) for step in line.steps]
    path = "M" + "L".join(f"{x:.1f} {_up(share.value):.1f}" for x, share in places)
    whiskers = (
        Markup('<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
            _up(share.low), _up(share.high), x=x
        )
        for x, share in places
    )
    dots = (
        Markup('<svg x="{:.1f}" y="{:.1f}" overflow="visible">{}</svg>').format(
            x, _up(share.value), marker(line.order)
        )
        for x, share in places
    )
    return Markup('<path class="path" d="{}"/>').format(path) + Markup("").join([*whiskers, *dots])


def _across(k: int, ks: Sequence[int]) -> float:
    """The horizontal position of `k` on a log scale, with room at both ends for the offsets."""
    last = math.log2(max(2, ks[-1]))
    return _LEFT + 24 + (_WIDE - 48) * math.log2(k) / last


def _up(share: float) -> float:
    return _TOP + _HIGH * (1 - share)


def _row(tick: float) -> Markup:
    return Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>'
        '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
    ).format(_LEFT, _LEFT + _WIDE, _LEFT - 6, _up(tick) + 4, f"{tick:.0%}", y=_up(tick))


def _column(k: int, ks: Sequence[int]) -> Markup:
    return Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
        _across(k, ks), _TOP + _HIGH + 18, k
    )
