"""Figures as SVG: pure functions of numbers, with no script, no style attribute and no request.

Promises: every figure has a text equivalent. Positions are percentages, so a figure fits a phone without
smaller text. Colours come only from the style sheet; model names are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from markupsafe import Markup

from heredity.core.records import Estimate
from heredity.core.sanitize import label

_CURVE_WIDTH, _CURVE_HEIGHT = 400, 200
_OFFSET = 5  # pixels between the whiskers of two models at the same k


# --- curve -------------------------------------------------------------------------------------------
# Success within k tries as a figure: tries across, doubling; the share of probes broken up. Promises: no
# script, no style of its own, a text equivalent, one shape a model.
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
    grid = Markup("").join(
        [
            *map(_curve_row, TICKS),
            *(
                (
                    Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                        _curve_x(k, ks), _TOP + _CURVE_HEIGHT + 18, k
                    )
                )
                for k in ks
            ),
        ]
    )
    middle = (len(lines) - 1) / 2
    drawn = Markup("").join(_curve_line(line, ks, (i - middle) * _OFFSET) for i, line in enumerate(lines))
    titles = Markup(
        '<text class="title" x="{}" y="{}" text-anchor="middle">tries</text>'
        '<text class="title" x="0" y="0" text-anchor="middle" transform="translate(11 {}) rotate(-90)">'
        "probes broken</text>"
    ).format(_LEFT + _CURVE_WIDTH / 2, _TOP + _CURVE_HEIGHT + 36, _TOP + _CURVE_HEIGHT / 2)
    return Markup('<svg class="plane curve" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _LEFT + _CURVE_WIDTH + 20, _TOP + _CURVE_HEIGHT + 42, label(words, 400), grid + titles + drawn
    )


def _curve_line(line: CurveSeries, ks: Sequence[int], aside: float) -> Markup:
    places = [(_curve_x(step.k, ks) + aside, step.share) for step in line.steps]
    path = "M" + "L".join(f"{x:.1f} {_curve_y(share.value):.1f}" for x, share in places)
    whiskers = (
        Markup('<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
            _curve_y(share.low), _curve_y(share.high), x=x
        )
        for x, share in places
    )
    dots = (
        Markup('<svg x="{:.1f}" y="{:.1f}" overflow="visible">{}</svg>').format(
            x, _curve_y(share.value), marker(line.order)
        )
        for x, share in places
    )
    return Markup('<path class="path" d="{}"/>').format(path) + Markup("").join([*whiskers, *dots])


def _curve_x(k: int, ks: Sequence[int]) -> float:
    """The horizontal position of `k` on a log scale, with room at both ends for the offsets."""
    last = math.log2(max(2, ks[-1]))
    return _LEFT + 24 + (_CURVE_WIDTH - 48) * math.log2(k) / last


def _curve_y(share: float) -> float:
    return _TOP + _CURVE_HEIGHT * (1 - share)


def _curve_row(tick: float) -> Markup:
    return Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>'
        '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
    ).format(_LEFT, _LEFT + _CURVE_WIDTH, _LEFT - 6, _curve_y(tick) + 4, f"{tick:.0%}", y=_curve_y(tick))


_HIGH = 58  # of a box, in pixels
_BEND = 38  # before the straight end of an edge, which has its words
_ROOMY, _NARROW = (
    (190, 148),
    (156, 110),
)  # the width of a box, and the straight end: to two levels, and of more
_ASIDE, _MARGIN = 12, 14  # between boxes, and around all
_PORT = 62  # the height of an edge's end with its words
_PASSING = 20  # the height of a place that an edge passes
_LETTER, _LINE = 7.2, 15  # of a bold letter, on the wide side
_WORD = 22  # letters of a line of an edge's words
_BAR = 56  # the width of a retention of 100 %
_ROUNDS = 6


# --- lineage graph -----------------------------------------------------------------------------------
# The lineage of a study's models as a figure: parents left of children, each edge with its verdict in
# words. Promises: as the charts, no script, no style of its own, and a text equivalent. Each colour comes
# with a line pattern and words. The same models give the same figure; no line crosses a model, and no word
# lies on a line. Layout (Sugiyama et al. 1981): a model's level is its longest path from a foundation. An
# edge that passes a level gets a dummy node there. Nodes are ordered by the mean position of their
# neighbours, then moved closer. Levels run to the right, because a foundation often has many children, and
# rows of text are wide and low.
class Node(NamedTuple):
    """A model: its position in the study's order selects its shape; `note` is printed below its name.

    order      None: it has no shape
    share      fills the box from the left, from 0 to 1; None fills nothing
    href       where a click leads; "" for nowhere
    is_chosen  whether it is the one that the figure is about
    """

    id: str
    name: str
    order: int | None
    note: str
    share: float | None = None
    href: str = ""
    is_chosen: bool = False


class DrawnEdge(NamedTuple):
    """An edge: `kind` is a class of the style sheet. The first of `lines` is above it, the others below.

    retained   the share of a bar below the edge, from 0 to 1; None draws no bar
    href       where a click leads; "" for nowhere
    words      the name of the link
    """

    parent: str
    child: str
    kind: str
    lines: tuple[str, ...]
    retained: float | None = None
    href: str = ""
    words: str = ""


class _Place(NamedTuple):
    level: int
    key: str  # a model's id, or that of an edge that passes


def graph(
    nodes: Sequence[Node], edges: Sequence[DrawnEdge], description: str, *, is_scrolled: bool = False
) -> Markup:
    """The figure; models without an edge are in its first column.

    description: its text equivalent.
    is_scrolled: in a box of its own, so that its boxes stay wide at any depth.
    """
    return _Layout(nodes, edges, is_scrolled).drawn(description)


class _Layout:
    def __init__(self, nodes: Sequence[Node], edges: Sequence[DrawnEdge], is_scrolled: bool) -> None:
        self._nodes = {node.id: node for node in nodes}
        self._edges = [a for a in edges if a.parent in self._nodes and a.child in self._nodes]
        level = dict.fromkeys(self._nodes, 0)
        for _ in self._nodes:
            levels = dict(level)
            for edge in self._edges:
                levels[edge.child] = max(levels[edge.child], level[edge.parent] + 1)
            if levels == level:
                break
            level = levels
        used = {depth: i for i, depth in enumerate(sorted(set(level.values())))}
        self._level = {ident: used[depth] for ident, depth in level.items()}
        # In a round trip, which no lineage has, one edge leads back: it is not drawn.
        self._edges = [a for a in self._edges if self._level[a.parent] < self._level[a.child]]
        self._ways = [self._way(number, edge) for number, edge in enumerate(self._edges)]
        self._columns = self._ordered()
        self._wide, self._run = _ROOMY if is_scrolled or len(self._columns) < 3 else _NARROW
        before, after = self._neighbours()
        near = {p: before.get(p, []) + after.get(p, []) for column in self._columns for p in column}
        y = {place: 0.0 for column in self._columns for place in column}
        for turn in range(2 * _ROUNDS):
            for column in self._columns if turn % 2 == 0 else self._columns[::-1]:
                wanted = [_mean(near[place], y, y[place]) for place in column]
                heights = [self._height(p) for p in column]
                steps = [(a + b) / 2 + _ASIDE for a, b in pairwise(heights)]
                first, last = list(wanted), list(wanted)
                for i, step in enumerate(steps):
                    first[i + 1] = max(first[i + 1], first[i] + step)
                for i, step in reversed(list(enumerate(steps))):
                    last[i] = min(last[i], last[i + 1] - step)
                y |= dict(zip(column, [(a + b) / 2 for a, b in zip(first, last, strict=True)], strict=True))
        top = min(y[place] - self._height(place) / 2 for place in y)
        self._y = {place: round(value - top + _MARGIN, 1) for place, value in y.items()}

    # --- where ---

    def _way(self, number: int, edge: DrawnEdge) -> list[_Place]:
        """The places of an edge, level by level, from its parent to its child."""
        first, last = self._level[edge.parent], self._level[edge.child]
        passing = [_Place(level, f"\0{number}") for level in range(first + 1, last)]
        return [_Place(first, edge.parent), *passing, _Place(last, edge.child)]

    def _ordered(self) -> list[list[_Place]]:
        columns: list[list[_Place]] = [[] for _ in range(max(self._level.values()) + 1)]
        for ident, level in self._level.items():
            columns[level].append(_Place(level, ident))
        for way in self._ways:
            for place in way[1:-1]:
                columns[place.level].append(place)
        before, after = self._neighbours()
        for turn in range(2 * _ROUNDS + 1):
            near, sweep = (before, columns) if turn % 2 == 0 else (after, columns[::-1])
            at = {place: float(i) for column in columns for i, place in enumerate(column)}
            for column in sweep:
                column.sort(key=lambda place: _mean(near.get(place, []), at, at[place]))
                at |= {place: float(i) for i, place in enumerate(column)}
        return columns

    def _neighbours(self) -> tuple[dict[_Place, list[_Place]], dict[_Place, list[_Place]]]:
        before: dict[_Place, list[_Place]] = {}
        after: dict[_Place, list[_Place]] = {}
        for way in self._ways:
            for upper, lower in pairwise(way):
                before.setdefault(lower, []).append(upper)
                after.setdefault(upper, []).append(lower)
        return before, after

    def _height(self, place: _Place) -> float:
        """A box is as high as all edges that end at it."""
        if place.key not in self._nodes:
            return _PASSING
        return max(_HIGH, _PORT * sum(edge.child == place.key for edge in self._edges))

    def _left(self, level: int) -> int:
        return _MARGIN + level * (self._wide + _BEND + self._run)

    # --- drawing ---

    def drawn(self, words: str) -> Markup:
        by_child: dict[str, list[int]] = {}
        for number, edge in enumerate(self._edges):
            by_child.setdefault(edge.child, []).append(number)
        ports: dict[int, float] = {}
        for child, numbers in by_child.items():
            numbers.sort(key=lambda number: self._y[self._ways[number][-2]])
            middle = self._y[_Place(self._level[child], child)]
            for i, number in enumerate(numbers):
                ports[number] = middle + (i - (len(numbers) - 1) / 2) * _PORT
        ports = ports
        high = max(y + self._height(place) / 2 for place, y in self._y.items()) + _MARGIN
        wide = self._left(len(self._columns) - 1) + self._wide + _MARGIN
        parts = [
            _linked(self._line(n, edge, ports) + self._words(edge, ports[n]), edge.href, edge.words)
            for n, edge in enumerate(self._edges)
        ]
        parts += [_linked(self._box(node), node.href, node.name) for node in self._nodes.values()]
        # What is in an image cannot be reached by keys; a group's links can.
        is_linked = any(n.href for n in self._nodes.values()) or any(a.href for a in self._edges)
        role = "group" if is_linked else "img"
        return Markup(
            '<svg class="lineage{}" width="{:.0f}" height="{:.0f}" viewBox="0 0 {:.0f} {:.0f}" role="{}"'
            ' aria-label="{}">{}</svg>'
        ).format(
            " deep" if len(self._columns) == 3 else "",
            *(wide, high, wide, high),
            role,
            label(words, 2000),
            Markup("").join(parts),
        )

    def _words(self, edge: DrawnEdge, y: float) -> Markup:
        """The words of an edge above and below its straight end, with the bar of its retention."""
        x = self._left(self._level[edge.child]) - self._run
        kind = f"word {edge.kind}"
        above, below = edge.lines[:1], edge.lines[1:3]
        lines = _lines(above, x, y - 6, "word soft") + _lines(below, x, y + _LINE, kind)
        if edge.retained is None:
            return lines
        at = y + _LINE * len(below) + 6
        return lines + Markup(
            '<rect class="room" x="{x:.1f}" y="{y:.1f}" width="{}" height="4"/>'
            '<rect class="kept {}" x="{x:.1f}" y="{y:.1f}" width="{:.1f}" height="4"/>'
        ).format(_BAR, edge.kind, _BAR * edge.retained, x=x, y=at)

    def _line(self, number: int, edge: DrawnEdge, ports: Mapping[int, float]) -> Markup:
        way = self._ways[number]
        ys = [*(self._y[place] for place in way[:-1]), ports[number]]
        path = f"M{self._left(way[0].level) + self._wide} {ys[0]:.1f}"
        for place, before, y in zip(way[1:], ys[:-1], ys[1:], strict=True):
            start = self._left(place.level) - _BEND - self._run
            middle, end = start + _BEND / 2, start + _BEND - 4
            path += f"C{middle:.0f} {before:.1f} {middle:.0f} {y:.1f} {end} {y:.1f}"
            path += f"H{self._left(place.level) + (self._wide if place is not way[-1] else -2)}"
        x, y = self._left(way[-1].level), ys[-1]
        head = f"M{x - 9} {y - 4.5:.1f}L{x - 1} {y:.1f}L{x - 9} {y + 4.5:.1f}Z"
        return Markup('<path class="edge {0}" d="{1}"/><path class="head {0}" d="{2}"/>').format(
            edge.kind, path, head
        )

    def _box(self, node: Node) -> Markup:
        place = _Place(self._level[node.id], node.id)
        high = self._height(place)
        left, top = self._left(place.level), self._y[place] - high / 2
        inset = 32 if node.order is not None else 12
        names = _wrapped(node.name, int((self._wide - 42) / _LETTER))
        lines = [*names, *([node.note] if node.note else [])]
        first = self._y[place] - _LINE * (len(lines) - 1) / 2 + 4
        fill = Markup('<rect class="fill" x="{}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            left, top, self._wide * (node.share or 0.0), high
        )
        return (
            Markup('<rect class="node{}" x="{}" y="{:.1f}" width="{}" height="{:.1f}"/>').format(
                " chosen" if node.is_chosen else "", left, top, self._wide, high
            )
            + (fill if node.share else Markup(""))
            + _shape(node.order, left + 17, first - 4)
            + _lines(names, left + inset, first, "named")
            + _lines(lines[len(names) :], left + inset, first + _LINE * len(names), "note")
        )


def _shape(order: int | None, x: float, y: float) -> Markup:
    if order is None:
        return Markup("")
    return Markup('<svg x="{}" y="{:.1f}" overflow="visible">{}</svg>').format(x, y, marker(order))


def _linked(drawn: Markup, href: str, words: str) -> Markup:
    if not href:
        return drawn
    return Markup('<a href="{}" aria-label="{}">{}</a>').format(href, label(words, 400), drawn)


def _mean(near: Sequence[_Place], at: Mapping[_Place, float], otherwise: float) -> float:
    return sum(at[place] for place in near) / len(near) if near else otherwise


def _wrapped(name: str, n_letters: int) -> list[str]:
    """A name on one line or two, broken at a separator."""
    if len(name) <= n_letters:
        return [label(name)]
    joints = (i for i in range(n_letters, n_letters // 2, -1) if name[i - 1] in "-_./: ")
    at = next(joints, n_letters)
    return [label(name[:at]), label(name[at:], n_letters)]


def _lines(lines: Sequence[str], x: float, y: float, kind: str) -> Markup:
    return Markup("").join(
        Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(
            kind, x, y + i * _LINE, label(line, _WORD)
        )
        for i, line in enumerate(lines)
    )


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


def span_of(estimate: Estimate | None) -> Span | None:
    """An estimate as it is drawn; None without a value or bounds."""
    if estimate is None or estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    return Span(estimate.value, estimate.low, estimate.high)


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
    grid = Markup("").join(
        (
            Markup(
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
        )
        for tick in TICKS
    )
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


# --- tree and plane -----------------------------------------------------------------
# Models as one SVG: a tree with their differences from their parents, or a plane of two rates.

_ROW, _TREE_TOP, _INDENT, _TREE_LEFT = 30, 58, 26, 16
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
    left = _TREE_LEFT + _TREE + _PLOT
    wide, high = left + _WORDS, _TREE_TOP + _ROW * len(rows) + 16
    parts = [Markup('<text class="soft" x="{}" y="{}">{}</text>').format(left + 14, _TREE_TOP - 20, of_words)]
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
    spans = {n: span for n, each in drawn.items() if (span := span_of(each.estimate)) is not None}
    reach = reach_of(list(spans.values()))

    def across(difference: float) -> float:
        share = min(1.0, max(0.0, 0.5 + difference / (2 * reach)))
        return _TREE_LEFT + _TREE + share * (_PLOT - 56) + 28

    top, bottom = _TREE_TOP - 14, _TREE_TOP + _ROW * len(rows)
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
    x, y = _TREE_LEFT + _INDENT * depth, _middle(number)
    if row.parent is not None:
        yield Markup('<path class="line" d="M{} {}V{}H{}"/>').format(
            x - _INDENT + 8, _middle(row.parent) + 10, y, x - 10
        )
    yield Markup('<text class="name{}" x="{}" y="{}">{}</text>').format(
        " bold" if row.is_bold else "", x, y + 4, label(row.name, 24)
    )
    if row.made:
        yield Markup('<text class="soft" x="{}" y="{}" text-anchor="end">{}</text>').format(
            _TREE_LEFT + _TREE - 12, y + 4, label(row.made, 28)
        )


def _depth(row: TreeRow, rows: Sequence[TreeRow]) -> int:
    return 0 if row.parent is None else 1 + _depth(rows[row.parent], rows)


def _middle(number: int) -> float:
    return _TREE_TOP + _ROW * number + _ROW / 2


# --- the plane ----------------------------------------------------------------------------------------

_PLANE = 300  # width and height of the plane, in pixels
_TREE_LINE = 17  # height of a name beside it


def scatter(title: str, points: Sequence[RatePoint], across: str, up: str) -> str:
    """Two rates of each model with their intervals, as the text of a file. across, up: what the rates are."""
    placed = [(each, x, y) for each in points if (x := span_of(each.across)) and (y := span_of(each.up))]
    reaches = (0.1, 0.2, 0.5, 1.0)
    wide = next(reach for reach in reaches if all(x.high <= reach for _, x, _ in placed))
    high = next(reach for reach in reaches if all(y.high <= reach for _, _, y in placed))
    parts = [*_axes(wide, high, across, up)]
    name_y = 20.0 + _PLANE + _TREE_LINE
    for each, x, y in sorted(placed, key=lambda point: point[2].value):
        low_x, at_x, high_x = (60 + _PLANE * rate / wide for rate in (x.low, x.value, x.high))
        low_y, at_y, high_y = (20 + _PLANE * (1 - rate / high) for rate in (y.low, y.value, y.high))
        name_y = min(name_y - _TREE_LINE, at_y)  # no name lies on another
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
