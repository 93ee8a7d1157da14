"""The lineage as one SVG: a tree of models, and next to each child its change with the verdict.

Promises: no script and no request; light and dark. Each colour comes with a mark and a word. The
same result gives the same bytes; names are escaped.
Leaves to others: the numbers and verdicts (findings.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup

from heredity.core.records import Estimate
from heredity.core.sanitize import label
from heredity.lab.inherit import EdgeFinding, LineageResult
from heredity.study.report.figures.charts import Span, reach_of

_ROW, _TOP, _INDENT, _LEFT = 30, 58, 26, 16
_TREE, _PLOT, _WORDS = 320, 280, 360  # widths of the tree, the intervals and the verdicts, in pixels
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1c1b1a; } .soft { fill: #5d5852; font-size: 12px; }
.line { fill: none; stroke: #b9b2a7; } .grid { stroke: #e3ded5; } .zero { stroke: #b9b2a7; }
.band { fill: #ece7de; } .lost { stroke: #8a2612; fill: #8a2612; } .kept { stroke: #2c6a5b; fill: #2c6a5b; }
.open { stroke: #6f6a63; fill: #fdfcfa; } .paper { fill: #fdfcfa; } .bold { font-weight: 600; }
@media (prefers-color-scheme: dark) {
text { fill: #ece7e1; } .soft { fill: #a9a199; } .line, .zero { stroke: #6b645d; } .grid { stroke: #35302c; }
.band { fill: #2a2623; } .lost { stroke: #f0a486; fill: #f0a486; } .kept { stroke: #86c8b4; fill: #86c8b4; }
.open { stroke: #a9a199; fill: #161413; } .paper { fill: #161413; }
}
"""
_KINDS = {"lost": "lost", "kept": "kept"}
_MARKS = {"lost": "M0 -6L6 0L0 6L-6 0Z", "kept": "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0Z"}
_OPEN = "M-5 -5H5V5H-5Z"


class _TreeRow(NamedTuple):
    """A row of the figure: a foundation, or a child with its edge. parent: the row of its parent."""

    name: str
    depth: int
    parent: int | None
    edge: EdgeFinding | None


def draw(found: LineageResult) -> str:
    """The figure as the text of a file."""
    rows = _rows(found.edges)
    wide, high = _LEFT + _TREE + _PLOT + _WORDS, _TOP + _ROW * len(rows) + 16
    spans = [span for row in rows if row.edge is not None and (span := _span(row.edge.difference))]
    reach = reach_of(spans)
    what = "requests not refused" if found.counts_refusals else "breaches"
    parts = [*_scale(reach, found.margin, len(rows), what)]
    parts += [_branch(number, row) for number, row in enumerate(rows)]
    parts += [_text(number, row, reach) for number, row in enumerate(rows)]
    words = Markup("Lineage. ") + Markup("; ").join(
        f"{label(row.edge.child)} of {label(row.edge.parent)}: {_verdict(row.edge)}"
        for row in rows
        if row.edge is not None
    )
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" role="img" '
        'aria-label="{words}"><style>{style}</style>'
        '<rect class="paper" width="{w}" height="{h}"/>{parts}</svg>\n'
    ).format(w=wide, h=high, words=words, style=Markup(_STYLE), parts=Markup("").join(parts))


def _rows(edges: Sequence[EdgeFinding]) -> list[_TreeRow]:
    """Foundations, each followed by its children. A child of two is below the one it is compared with."""
    children: dict[str, list[EdgeFinding]] = {}
    for edge in edges:
        children.setdefault(edge.parent, []).append(edge)
    below = {edge.child for edge in edges}
    rows: list[_TreeRow] = []

    def add(name: str, depth: int, parent: int | None, edge: EdgeFinding | None) -> None:
        rows.append(_TreeRow(name, depth, parent, edge))
        mine = len(rows) - 1
        for each in children.get(name, ()):
            add(each.child, depth + 1, mine, each)

    for root in children:
        if root not in below:
            add(root, 0, None, None)
    return rows


def _scale(reach: float, margin: float, n_rows: int, what: str) -> Iterator[Markup]:
    top, bottom = _TOP - 14, _TOP + _ROW * n_rows
    low, high = _across(-margin, reach), _across(margin, reach)
    yield Markup('<rect class="band" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>').format(
        low, top, high - low, bottom - top
    )
    for share, kind in ((-reach, "grid"), (0.0, "zero"), (reach, "grid")):
        x = _across(share, reach)
        yield Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(
            kind, x, x, top, bottom
        )
        yield Markup('<text class="soft" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            x, top - 6, "0" if not share else f"{100 * share:+.0f}".replace("-", "−")
        )
    yield Markup('<text class="soft" x="{:.1f}" y="16" text-anchor="middle">{}</text>').format(
        _across(0.0, reach), f"change in {what}, points; band: margin"
    )
    yield Markup('<text class="soft" x="{}" y="{}">{}</text>').format(
        _LEFT + _TREE + _PLOT + 14, top - 6, "verdict: refusals of the parent"
    )


def _branch(number: int, row: _TreeRow) -> Markup:
    """The line from the parent's row to this one."""
    if row.parent is None:
        return Markup("")
    x, y = _LEFT + _INDENT * (row.depth - 1) + 8, _middle(number)
    return Markup('<path class="line" d="M{} {}V{}H{}"/>').format(
        x, _middle(row.parent) + 10, y, x + _INDENT - 10
    )


def _text(number: int, row: _TreeRow, reach: float) -> Markup:
    x, y = _LEFT + _INDENT * row.depth, _middle(number) + 4
    bold = " bold" if row.edge is None else ""
    name = Markup('<text class="name{}" x="{}" y="{}">{}</text>').format(bold, x, y, label(row.name, 24))
    if row.edge is None:
        return name
    start = f" from {', '.join(row.edge.others)}" if row.edge.others else ""
    times = f"{len(row.edge.seeds)} × " if len(row.edge.seeds) > 1 else ""
    made = Markup('<text class="soft" x="{}" y="{}" text-anchor="end">{}</text>').format(
        _LEFT + _TREE - 12, y, label(times + row.edge.recipe + start, 28)
    )
    return name + made + _change(row.edge, _middle(number), reach)


def _change(edge: EdgeFinding, y: float, reach: float) -> Markup:
    kind, span = _KINDS.get(edge.verdict, "open"), _span(edge.difference)
    drawn = Markup("")
    if span is not None:
        low, value, high = (_across(each, reach) for each in (span.low, span.value, span.high))
        drawn = Markup(
            '<line class="{0}" x1="{1:.1f}" x2="{2:.1f}" y1="{3}" y2="{3}" stroke-width="2"/>'
            '<path class="{0}" transform="translate({4:.1f} {3})" stroke-width="1.5" d="{5}"/>'
        ).format(kind, low, high, y, value, _MARKS.get(kind, _OPEN))
    return drawn + Markup('<text x="{}" y="{}">{}</text>').format(
        _LEFT + _TREE + _PLOT + 14, y + 4, _words(edge)
    )


def _verdict(edge: EdgeFinding) -> str:
    return f"{edge.word}, weak" if edge.is_weak and not edge.why_no_claim else edge.word


def _words(edge: EdgeFinding) -> str:
    """The verdict, and the refusals kept over all seeds."""
    verdict = _verdict(edge)
    kept = sum(seed.edge.kept for seed in edge.seeds)
    counts = f"{kept} of {kept + sum(seed.edge.lost for seed in edge.seeds)}"
    if gained := sum(seed.edge.gained for seed in edge.seeds):
        counts += f", gained {gained}"
    return f"{verdict}: {'' if edge.claim == 'kept' else 'kept '}{counts}"


def _span(found: Estimate) -> Span | None:
    if found.value is None or found.low is None or found.high is None:
        return None
    return Span(found.value, found.low, found.high)


def _across(difference: float, reach: float) -> float:
    """The place of a difference; one beyond the scale lies at its end."""
    share = min(1.0, max(0.0, 0.5 + difference / (2 * reach)))
    return _LEFT + _TREE + share * (_PLOT - 24) + 12


def _middle(number: int) -> float:
    return _TOP + _ROW * number + _ROW / 2
