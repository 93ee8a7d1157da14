"""The page of a program: its sentences, a figure, and the sections that a report has, too.

Promises: the same result gives the same bytes. Names are escaped.
Leaves to others: the content (inherit.py, adapt.py), and the look of a section (study/report/).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

from heredity.core.files import write_atomic
from heredity.core.records import Estimate
from heredity.core.sections import Cell, CountedShare, Section, TextTable
from heredity.study.report.markdown import plain, section_lines
from heredity.study.wording import NONE, bare, points, points_interval


class Screen(NamedTuple):
    """A table for a terminal. ranks: those of the lowest rank stay if not all fit; without any, all stay."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    ranks: Sequence[float] = ()
    n_names: int = 1  # the first columns, which name a model


class ResultPage(NamedTuple):
    """All that is shown of a finished run.

    verb       of the command that wrote it; file: the name of its page
    caution    "" unless the run shows nothing
    gist       those of the sentences that the short table does not say
    asides     further lines below the sentences
    figure     SVG; caption: of it
    """

    verb: str
    file: str
    title: str
    caution: str
    sentences: Sequence[str]
    gist: Sequence[str]
    asides: Sequence[str]
    figure: str
    caption: str
    sections: Sequence[Section]
    short: Screen
    full: Screen

    def markdown(self, figure: str) -> str:
        """The page as Markdown. figure: the file name of the figure."""
        return "\n".join(self._lines(figure)) + "\n"

    def _lines(self, figure: str) -> Iterator[str]:
        yield f"<!-- Written by `heredity {self.verb}`. Run it again instead of editing this page. -->\n"
        yield f"# {plain(self.title, 600)}\n"
        if self.caution:
            yield f"**{self.caution}**\n"
        yield from (f"- {plain(line, 1000)}" for line in (*self.sentences, *self.asides))
        yield f"\n[![{self.caption}]({figure})]({figure})"
        for section in self.sections:
            yield from section_lines(section)

    def write(self, path: Path) -> Path:
        """Write the page, and its figure next to it with the ending .svg. Returns the page's path."""
        drawn = path.with_suffix(".svg")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(drawn, self.figure.encode("utf-8"))
        write_atomic(path, self.markdown(drawn.name).encode("utf-8"))
        return path


def grid(
    title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], claim: str = "", summary: str = ""
) -> list[TextTable]:
    """A table without the columns that have no value; [] without rows."""
    if not rows:
        return []
    has_value = [any(row[i] not in ("", NONE) for row in rows) for i in range(len(head))]
    kept = [list(compress(row, has_value)) for row in rows]
    return [TextTable(title, list(compress(head, has_value)), kept, summary, claim)]


def listing(name: str, title: str, lines: Sequence[str], claim: str = "") -> list[Section]:
    """A section that has only lines; [] without any."""
    return [Section(name, title, claim, (), tuple(lines))] if lines or claim else []


def share(estimate: Estimate | None) -> Cell:
    """A share of trials with its count; a dash if it is not known."""
    if estimate is None or estimate.value is None:
        return NONE
    return CountedShare(estimate, round(estimate.value * estimate.n))


def change(estimate: Estimate | None) -> str:
    """A difference in points with its interval: `+24.4 (+11.6 to +36.8)`."""
    if estimate is None or estimate.value is None:
        return NONE
    return f"{bare(points(estimate.value))} ({bare(points_interval(estimate))})"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
