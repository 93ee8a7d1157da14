"""The lineage of a study's models as a figure: parents above children, each edge with its verdict in words.

Promises: as charts.py, no script, no style of its own, and a text equivalent. Each colour comes with a line
pattern and words. The same models give the same figure; no line crosses a model.
Leaves to others: the numbers and the words, and the meaning of colours (_style.css).

Layout (Sugiyama et al. 1981): a model's level is its longest path from a foundation. An edge that passes a
level gets a dummy node there. Nodes are ordered by the mean position of their neighbours, then moved closer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from heredity.core.sanitize import label
from heredity.study.report.figures.charts import marker

_HIGH, _GAP, _ASIDE, _EDGE = 62, 96, 26, 12  # a box, between levels, between boxes, around all; in pixels
_PASSING = 24  # the width of a place that an edge passes
_LETTER, _LINE = 7.2, 15  # of a bold letter, on the wide side
_ROUNDS = 6
_NEAR, _DOWN = 0.62, 0.55  # place of the words: nearer to the child, where siblings are farther apart


class Node(NamedTuple):
    """A model: its position in the study's order selects its shape; `note` is printed below its name."""

    id: str
    name: str
    order: int
    note: str


class Arrow(NamedTuple):
    """An edge: `kind` is a class of the style sheet, `lines` are its label."""

    parent: str
    child: str
    kind: str
    lines: tuple[str, ...]


class _Place(NamedTuple):
    level: int
    key: str  # a model's id, or that of an edge that passes


def graph(nodes: Sequence[Node], arrows: Sequence[Arrow], words: str) -> Markup:
    """The figure; models without an edge are in its first row."""
    return _Layout(nodes, arrows).drawn(words)


class _Layout:
    def __init__(self, nodes: Sequence[Node], arrows: Sequence[Arrow]) -> None:
        self._nodes = {node.id: node for node in nodes}
        self._arrows = [a for a in arrows if a.parent in self._nodes and a.child in self._nodes]
        self._level = _levels(self._nodes, self._arrows)
        # In a round trip, which no lineage has, one edge leads upward: it is not drawn.
        self._arrows = [a for a in self._arrows if self._level[a.parent] < self._level[a.child]]
        self._ways = [self._way(number, arrow) for number, arrow in enumerate(self._arrows)]
        self._rows = self._ordered()
        widest = max(sum(place.key in self._nodes for place in row) for row in self._rows)
        self._wide = 206 if widest <= 4 else 164
        self._x = self._placed()

    # --- where ---

    def _way(self, number: int, arrow: Arrow) -> list[_Place]:
        """The places of an edge, level by level, from its parent to its child."""
        top, bottom = self._level[arrow.parent], self._level[arrow.child]
        passing = [_Place(level, f"\0{number}") for level in range(top + 1, bottom)]
        return [_Place(top, arrow.parent), *passing, _Place(bottom, arrow.child)]

    def _ordered(self) -> list[list[_Place]]:
        rows: list[list[_Place]] = [[] for _ in range(max(self._level.values()) + 1)]
        for ident, level in self._level.items():
            rows[level].append(_Place(level, ident))
        for way in self._ways:
            for place in way[1:-1]:
                rows[place.level].append(place)
        above, below = self._neighbours()
        for turn in range(2 * _ROUNDS + 1):
            near, sweep = (above, rows) if turn % 2 == 0 else (below, rows[::-1])
            at = {place: float(i) for row in rows for i, place in enumerate(row)}
            for row in sweep:
                row.sort(key=lambda place: _mean(near.get(place, []), at, at[place]))
                at |= {place: float(i) for i, place in enumerate(row)}
        return rows

    def _neighbours(self) -> tuple[dict[_Place, list[_Place]], dict[_Place, list[_Place]]]:
        above: dict[_Place, list[_Place]] = {}
        below: dict[_Place, list[_Place]] = {}
        for way in self._ways:
            for upper, lower in pairwise(way):
                above.setdefault(lower, []).append(upper)
                below.setdefault(upper, []).append(lower)
        return above, below

    def _placed(self) -> dict[_Place, float]:
        """The middle of every place, none nearer to the next than their widths allow."""
        above, below = self._neighbours()
        near = {place: above.get(place, []) + below.get(place, []) for row in self._rows for place in row}
        x = {place: 0.0 for row in self._rows for place in row}
        for turn in range(2 * _ROUNDS):
            for row in self._rows if turn % 2 == 0 else self._rows[::-1]:
                wanted = [_mean(near[place], x, x[place]) for place in row]
                x |= dict(zip(row, _apart(wanted, [self._width(p) for p in row]), strict=True))
        left = min(x[place] - self._width(place) / 2 for place in x)
        return {place: round(value - left + _EDGE, 1) for place, value in x.items()}

    def _width(self, place: _Place) -> float:
        return self._wide if place.key in self._nodes else _PASSING

    # --- drawing ---

    def drawn(self, words: str) -> Markup:
        ports = self._ports()
        at = self._worded(ports)
        ends = [x + self._width(place) / 2 for place, x in self._x.items()]
        wide = max([*ends, *(at[n] + _room(arrow) / 2 for n, arrow in enumerate(self._arrows))]) + _EDGE
        high = _top(len(self._rows) - 1) + _HIGH + _EDGE
        parts = [self._line(number, arrow, ports) for number, arrow in enumerate(self._arrows)]
        parts += [self._words(arrow, at[number]) for number, arrow in enumerate(self._arrows)]
        parts += [self._box(node) for node in self._nodes.values()]
        return Markup(
            '<svg class="lineage" width="{:.0f}" height="{:.0f}" viewBox="0 0 {:.0f} {:.0f}" role="img"'
            ' aria-label="{}">{}</svg>'
        ).format(wide, high, wide, high, label(words, 2000), Markup("").join(parts))

    def _ports(self) -> dict[int, float]:
        """Where each edge meets its child's box: side by side, in the order in which they come."""
        by_child: dict[str, list[int]] = {}
        for number, arrow in enumerate(self._arrows):
            by_child.setdefault(arrow.child, []).append(number)
        ports: dict[int, float] = {}
        for child, numbers in by_child.items():
            numbers.sort(key=lambda number: self._x[self._ways[number][-2]])
            middle = self._x[_Place(self._level[child], child)]
            step = min(48.0, 0.7 * self._wide / len(numbers))
            for i, number in enumerate(numbers):
                ports[number] = middle + (i - (len(numbers) - 1) / 2) * step
        return ports

    def _worded(self, ports: Mapping[int, float]) -> dict[int, float]:
        """The centre of each edge's label: on its last segment, moved aside to avoid overlaps."""
        at: dict[int, float] = {}
        for level in range(1, len(self._rows)):
            numbers = [n for n, way in enumerate(self._ways) if way[-1].level == level]
            wanted = {n: self._x[self._ways[n][-2]] * (1 - _NEAR) + ports[n] * _NEAR for n in numbers}
            numbers.sort(key=wanted.__getitem__)
            rooms = [_room(self._arrows[n]) for n in numbers]
            at |= dict(zip(numbers, _apart([wanted[n] for n in numbers], rooms, 0), strict=True))
        return {n: max(x, _room(self._arrows[n]) / 2) for n, x in at.items()}

    def _words(self, arrow: Arrow, x: float) -> Markup:
        """The label of an edge, on a ground that hides the line behind it."""
        middle, wide = _top(self._level[arrow.child]) - _GAP * (1 - _DOWN), _room(arrow) - 8
        high = _LINE * len(arrow.lines)
        ground = Markup('<rect class="ground" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}"/>').format(
            x - wide / 2, middle - high / 2, wide, high
        )
        return ground + _lines(arrow.lines, x, middle - high / 2 + _LINE / 2 + 4, f"word {arrow.kind}")

    def _line(self, number: int, arrow: Arrow, ports: Mapping[int, float]) -> Markup:
        way = self._ways[number]
        xs = [*(self._x[place] for place in way[:-1]), ports[number]]
        path = f"M{xs[0]:.1f} {_top(way[0].level) + _HIGH}"
        for place, before, x in zip(way[1:], xs[:-1], xs[1:], strict=True):
            y0, y1 = _top(place.level) - _GAP, _top(place.level)
            bend = (y0 + y1) / 2
            path += f"C{before:.1f} {bend:.1f} {x:.1f} {bend:.1f} {x:.1f} {y1}"
            path += f"V{y1 + _HIGH}" if place is not way[-1] else ""
        end, y = xs[-1], _top(way[-1].level)
        head = f"M{end - 4.5:.1f} {y - 9}L{end:.1f} {y - 1}L{end + 4.5:.1f} {y - 9}Z"
        return Markup('<path class="edge {0}" d="{1}"/><path class="head {0}" d="{2}"/>').format(
            arrow.kind, path, head
        )

    def _box(self, node: Node) -> Markup:
        place = _Place(self._level[node.id], node.id)
        left, top = self._x[place] - self._wide / 2, _top(place.level)
        names = _wrapped(node.name, int((self._wide - 42) / _LETTER))
        said = [*names, *([node.note] if node.note else [])]
        first = top + _HIGH / 2 - _LINE * (len(said) - 1) / 2 + 4
        return (
            Markup('<rect class="node" x="{:.1f}" y="{}" width="{}" height="{}"/>').format(
                left, top, self._wide, _HIGH
            )
            + Markup('<svg x="{:.1f}" y="{:.1f}" overflow="visible">{}</svg>').format(
                left + 17, first - 4, marker(node.order)
            )
            + _lines(names, left + 32, first, "named", "start")
            + _lines(said[len(names) :], left + 32, first + _LINE * len(names), "note", "start")
        )


def _levels(nodes: Mapping[str, Node], arrows: Sequence[Arrow]) -> dict[str, int]:
    """The longest way from a foundation to each model; a round trip, which no lineage has, ends as well."""
    level = dict.fromkeys(nodes, 0)
    for _ in nodes:
        found = dict(level)
        for arrow in arrows:
            found[arrow.child] = max(found[arrow.child], level[arrow.parent] + 1)
        if found == level:
            break
        level = found
    used = {depth: i for i, depth in enumerate(sorted(set(level.values())))}
    return {ident: used[depth] for ident, depth in level.items()}


def _top(level: int) -> int:
    return _EDGE + level * (_HIGH + _GAP)


def _mean(near: Sequence[_Place], at: Mapping[_Place, float], otherwise: float) -> float:
    return sum(at[place] for place in near) / len(near) if near else otherwise


def _room(arrow: Arrow) -> float:
    return max((len(line) for line in arrow.lines), default=0) * _LETTER * 0.9 + 8


def _apart(wanted: Sequence[float], widths: Sequence[float], aside: float = _ASIDE) -> list[float]:
    """Places near the wanted ones, in their order, each far enough from the next."""
    steps = [(a + b) / 2 + aside for a, b in pairwise(widths)]
    left, right = list(wanted), list(wanted)
    for i, step in enumerate(steps):
        left[i + 1] = max(left[i + 1], left[i] + step)
    for i, step in reversed(list(enumerate(steps))):
        right[i] = min(right[i], right[i + 1] - step)
    return [(a + b) / 2 for a, b in zip(left, right, strict=True)]


def _wrapped(name: str, n_letters: int) -> list[str]:
    """A name on one line or two, broken at a separator."""
    if len(name) <= n_letters:
        return [label(name)]
    joints = (i for i in range(n_letters, n_letters // 2, -1) if name[i - 1] in "-_./: ")
    at = next(joints, n_letters)
    return [label(name[:at]), label(name[at:], n_letters)]


def _lines(lines: Sequence[str], x: float, y: float, kind: str, anchor: str = "middle") -> Markup:
    return Markup("").join(
        Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
            kind, x, y + i * _LINE, anchor, label(line, 26)
        )
        for i, line in enumerate(lines)
    )
