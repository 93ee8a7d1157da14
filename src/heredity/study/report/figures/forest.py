"""A tree of models as one SVG, each with its differences from its parent: their intervals, and a verdict.

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
    differences: Sequence[DrawnDifference] = ()
    words: str = ""
    is_bold: bool = False


class PlotColumn(NamedTuple):
    """A column of differences. margin: 0 for none."""

    title: str
    margin: float = 0.0


def draw(
    title: str, rows: Sequence[TreeRow], columns: Sequence[PlotColumn], of_words: str = "verdict"
) -> str:
    """The figure as the text of a file. of_words: the heading of the words of the rows."""
    left = _LEFT + _TREE + _PLOT * len(columns)
    wide, high = left + _WORDS, _TOP + _ROW * len(rows) + 16
    parts = [Markup('<text class="soft" x="{}" y="{}">{}</text>').format(left + 14, _TOP - 20, of_words)]
    for number, column in enumerate(columns):
        parts += _plot(_LEFT + _TREE + _PLOT * number, column, number, rows)
    for number, row in enumerate(rows):
        parts += _tree(number, row, rows)
        parts.append(
            Markup('<text x="{}" y="{}">{}</text>').format(left + 14, _middle(number) + 4, row.words)
        )
    words = "; ".join(f"{label(row.name)}: {row.words}" for row in rows if row.words)
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" role="img" '
        'aria-label="{title}. {words}"><style>{style}</style>'
        '<rect class="paper" width="{w}" height="{h}"/>{parts}</svg>\n'
    ).format(w=wide, h=high, title=title, words=words, style=Markup(_STYLE), parts=Markup("").join(parts))


def _plot(start: int, column: PlotColumn, number: int, rows: Sequence[TreeRow]) -> Iterator[Markup]:
    drawn = {n: row.differences[number] for n, row in enumerate(rows) if len(row.differences) > number}
    spans = {n: span for n, each in drawn.items() if (span := _span(each.estimate)) is not None}
    reach = reach_of(list(spans.values()))

    def across(difference: float) -> float:
        share = min(1.0, max(0.0, 0.5 + difference / (2 * reach)))
        return start + share * (_PLOT - 56) + 28  # the numbers at both ends keep clear of a next column

    top, bottom, margin = _TOP - 14, _TOP + _ROW * len(rows), column.margin
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
        across(0.0), f"{column.title}, points{'; band: margin' if margin else ''}"
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
