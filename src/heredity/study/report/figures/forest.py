"""Models as one SVG: a tree with their differences from their parents, or a plane of two rates.

Promises: no script and no request; light and dark. Each colour comes with a mark and a word. The same rows
give the same bytes; names are escaped.
Leaves to others: the numbers and the verdicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from markupsafe import Markup

from heredity.core.records import Estimate
from heredity.core.sanitize import label
from heredity.study.report.figures import Span, reach_of

_ROW, _TOP, _INDENT, _LEFT = 30, 58, 26, 16
_TREE, _PLOT, _WORDS = 320, 280, 360  # widths of the tree, of the intervals and of the words, in pixels
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1c1b1a; } .soft { fill: #5d5852; font-size: 12px; }
.line { fill: none; stroke: #b9b2a7; } .grid { stroke: #e3ded5; } .zero { stroke: #b9b2a7; }
.band { fill: #ece7de; } .worse { stroke: #8a2612; fill: #8a2612; } .good { stroke: #2c6a5b; fill: #2c6a5b; }
.open { stroke: #6f6a63; fill: #fdfcfa; } .paper { fill: #fdfcfa; } .bold { font-weight: 600; }
@media (prefers-color-scheme: dark) {
text { fill: #ece7e1; } .soft { fill: #a9a199; } .line, .zero { stroke: #6b645d; } .grid { stroke: #35302c; }
.band { fill: #2a2623; } .worse { stroke: #f0a486; fill: #f0a486; } .good { stroke: #86c8b4; fill: #86c8b4; }
.open { stroke: #a9a199; fill: #161413; } .paper { fill: #161413; }
}
"""
Kind = Literal["worse", "good", "open"]
_MARKS: dict[Kind, str] = {
    "worse": "M0 -6L6 0L0 6L-6 0Z", "good": "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0Z", "open": "M-5 -5H5V5H-5Z",
}  # fmt: skip


class DrawnDifference(NamedTuple):
    """A difference from the parent, and what it shows: the child is worse, it is good, or neither."""

    kind: Kind
    estimate: Estimate | None


class TreeRow(NamedTuple):
    """A model of the tree. parent: the row of its parent, above it. made: a few words on how it was made."""

    name: str
    parent: int | None = None
    made: str = ""
    difference: DrawnDifference | None = None
    words: str = ""
    is_bold: bool = False


class RatePoint(NamedTuple):
    """A model in the plane of two rates. The best place is at the top on the left."""

    name: str
    kind: Kind
    across: Estimate
    up: Estimate
    is_bold: bool = False


def draw(title: str, rows: Sequence[TreeRow], column: str, margin: float, of_words: str) -> str:
    """The figure as the text of a file. column, of_words: headings of the differences and of the words."""
    left = _LEFT + _TREE + _PLOT
    wide, high = left + _WORDS, _TOP + _ROW * len(rows) + 16
    parts = [Markup('<text class="soft" x="{}" y="{}">{}</text>').format(left + 14, _TOP - 20, of_words)]
    parts += _plot(column, margin, rows)
    for number, row in enumerate(rows):
        parts += _tree(number, row, rows)
        parts.append(
            Markup('<text x="{}" y="{}">{}</text>').format(left + 14, _middle(number) + 4, row.words)
        )
    words = "; ".join(f"{label(row.name)}: {row.words}" for row in rows if row.words)
    return _file(wide, high, f"{title}. {words}", parts)


def _file(wide: float, high: float, words: str, parts: Sequence[Markup]) -> str:
    """A whole file. words: its text equivalent."""
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" role="img" '
        'aria-label="{words}"><style>{style}</style>'
        '<rect class="paper" width="{w}" height="{h}"/>{parts}</svg>\n'
    ).format(w=round(wide), h=round(high), words=words, style=Markup(_STYLE), parts=Markup("").join(parts))


def _plot(column: str, margin: float, rows: Sequence[TreeRow]) -> Iterator[Markup]:
    drawn = {n: row.difference for n, row in enumerate(rows) if row.difference is not None}
    spans = {n: span for n, each in drawn.items() if (span := _span(each.estimate)) is not None}
    reach = reach_of(list(spans.values()))

    def across(difference: float) -> float:
        share = min(1.0, max(0.0, 0.5 + difference / (2 * reach)))
        return _LEFT + _TREE + share * (_PLOT - 56) + 28

    top, bottom = _TOP - 14, _TOP + _ROW * len(rows)
    if margin:
        yield Markup('<rect class="band" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>').format(
            across(-margin), top, across(margin) - across(-margin), bottom - top
        )
    for share, kind in ((-reach, "grid"), (0.0, "zero"), (reach, "grid")):
        yield Markup(
            '<line class="{0}" x1="{1:.1f}" x2="{1:.1f}" y1="{2}" y2="{3}"/>'
            '<text class="soft" x="{1:.1f}" y="{4}" text-anchor="middle">{5}</text>'
        ).format(
            kind, across(share), top, bottom, top - 6,
            "0" if not share else f"{100 * share:+.0f}".replace("-", "−"),
        )  # fmt: skip
    yield Markup('<text class="soft" x="{:.1f}" y="16" text-anchor="middle">{}</text>').format(
        across(0.0), f"{column}, points{'; band: margin' if margin else ''}"
    )
    for n, span in spans.items():
        yield Markup(
            '<line class="{0}" x1="{1:.1f}" x2="{2:.1f}" y1="{3}" y2="{3}" stroke-width="2"/>'
            '<path class="{0}" transform="translate({4:.1f} {3})" stroke-width="1.5" d="{5}"/>'
        ).format(
            drawn[n].kind, across(span.low), across(span.high), _middle(n), across(span.value),
            _MARKS[drawn[n].kind],
        )  # fmt: skip


def _tree(number: int, row: TreeRow, rows: Sequence[TreeRow]) -> Iterator[Markup]:
    depth = _depth(row, rows)
    x, y = _LEFT + _INDENT * depth, _middle(number)
    if row.parent is not None:
        yield Markup('<path class="line" d="M{} {}V{}H{}"/>').format(
            x - _INDENT + 8, _middle(row.parent) + 10, y, x - 10
        )
    yield Markup('<text class="name{}" x="{}" y="{}">{}</text>').format(
        " bold" if row.is_bold else "", x, y + 4, label(row.name, 24)
    )
    if row.made:
        yield Markup('<text class="soft" x="{}" y="{}" text-anchor="end">{}</text>').format(
            _LEFT + _TREE - 12, y + 4, label(row.made, 28)
        )


def _depth(row: TreeRow, rows: Sequence[TreeRow]) -> int:
    return 0 if row.parent is None else 1 + _depth(rows[row.parent], rows)


def _span(estimate: Estimate | None) -> Span | None:
    if estimate is None or estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    return Span(estimate.value, estimate.low, estimate.high)


def _middle(number: int) -> float:
    return _TOP + _ROW * number + _ROW / 2


# --- the plane ----------------------------------------------------------------------------------------

_PLANE = 300  # width and height of the plane, in pixels
_LINE = 17  # height of a name beside it


def scatter(title: str, points: Sequence[RatePoint], across: str, up: str) -> str:
    """Two rates of each model with their intervals, as the text of a file. across, up: what the rates are."""
    placed = [(each, x, y) for each in points if (x := _span(each.across)) and (y := _span(each.up))]
    reaches = (0.1, 0.2, 0.5, 1.0)
    wide = next(reach for reach in reaches if all(x.high <= reach for _, x, _ in placed))
    high = next(reach for reach in reaches if all(y.high <= reach for _, _, y in placed))
    parts = [*_axes(wide, high, across, up)]
    name_y = 20.0 + _PLANE + _LINE
    for each, x, y in sorted(placed, key=lambda point: point[2].value):
        low_x, at_x, high_x = (60 + _PLANE * rate / wide for rate in (x.low, x.value, x.high))
        low_y, at_y, high_y = (20 + _PLANE * (1 - rate / high) for rate in (y.low, y.value, y.high))
        name_y = min(name_y - _LINE, at_y)  # no name lies on another
        parts.append(
            Markup(
                '<path class="{k}" d="M{:.1f} {y:.1f}H{:.1f}M{x:.1f} {:.1f}V{:.1f}"/>'
                '<path class="line" d="M{x:.1f} {y:.1f}L{} {:.1f}"/>'
                '<path class="{k}" transform="translate({x:.1f} {y:.1f})" d="{}"/>'
                '<text class="name{}" x="{}" y="{:.1f}">{}</text>'
            ).format(
                low_x, high_x, low_y, high_y, 70 + _PLANE, name_y, _MARKS[each.kind],
                " bold" if each.is_bold else "", 76 + _PLANE, name_y + 4, label(each.name, 24),
                k=each.kind, x=at_x, y=at_y,
            )
        )  # fmt: skip
    words = "; ".join(f"{label(p.name)}: {y.value:.0%}, {x.value:.0%}" for p, x, y in placed)
    return _file(250 + _PLANE, 70 + _PLANE, f"{title}: {up}, {across}. {words}", parts)


def _axes(wide: float, high: float, across: str, up: str) -> Iterator[Markup]:
    for share in (0.0, 0.5, 1.0):
        x, y = 60 + _PLANE * share, 20 + _PLANE * (1 - share)
        yield Markup(
            '<path class="grid" d="M{x} 20V{}M60 {y}H{}"/>'
            '<text class="soft" x="{x}" y="{}" text-anchor="middle">{:g} %</text>'
            '<text class="soft" x="54" y="{}" text-anchor="end">{:g} %</text>'
        ).format(
            20 + _PLANE, 60 + _PLANE, 36 + _PLANE, 100 * wide * share, y + 4, 100 * high * share, x=x, y=y
        )
    yield Markup('<text x="60" y="12">{}</text><text x="{}" y="{}" text-anchor="middle">{}</text>').format(
        up, 60 + _PLANE / 2, 58 + _PLANE, across
    )
