"""Parts of a page in Markdown: tables, lists and paragraphs that fit a page of the documents.

Promises: `escaped` and `listed` escape their text. A column without a value is left out.
Leaves to others: the pages themselves (inherit_page.py, adapt_page.py).
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from pathlib import Path

from heredity.core.files import write_atomic
from heredity.core.records import Estimate
from heredity.core.sanitize import label
from heredity.study.report.markdown import plain
from heredity.study.wording import bare, points, points_interval

NOTHING = "–"
SPACE = "\N{NO-BREAK SPACE}"  # inside a figure, which a narrow column would break into four lines
_WIDTH = 118


def write_page(path: Path, figure: str, render: Callable[[str], str]) -> Path:
    """Write a page, and its figure next to it with the ending .svg. Returns the page's path.

    render: returns the page, given the file name of the figure.
    """
    drawn = path.with_suffix(".svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(drawn, figure.encode("utf-8"))
    write_atomic(path, render(drawn.name).encode("utf-8"))
    return path


def escaped(text: str) -> str:
    """Text for Markdown: no part of it ends a cell, and none is a tag, a link or an image."""
    return plain(text, 600)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table without the columns that have no value; [] without rows."""
    has_value = [any(row[i].replace("<br>", "").strip(NOTHING) for row in rows) for i in range(len(head))]
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return [f"| {' | '.join(compress(line, has_value))} |" for line in lines]


def whole(figure: str) -> str:
    """A figure that is not broken at its spaces."""
    return figure.replace(" ", SPACE)


def change(found: Estimate | None) -> str:
    """A difference in points with its interval: `+24.4 [+11.6 to +36.8]`."""
    if found is None or found.value is None:
        return NOTHING
    return f"{bare(points(found.value))} [{bare(points_interval(found))}]"


def section(heading: str, lines: Sequence[str]) -> Iterator[str]:
    """Lines below a heading, if there are any."""
    if lines:
        yield from ("", *((heading, "") if heading else ()), *lines)


def listed(items: Iterable[str]) -> Iterator[str]:
    """A list of text in which nothing is markup."""
    yield from bullets(escaped(item) for item in items)


def bullets(items: Iterable[str]) -> Iterator[str]:
    """A list of Markdown."""
    for item in items:
        yield from textwrap.wrap(
            item, _WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip


def paragraph(text: str) -> list[str]:
    """Text in lines that fit a page of the documents."""
    return textwrap.wrap(text.strip(), _WIDTH, break_long_words=False, break_on_hyphens=False)


def code(text: str) -> str:
    """A name in a code span."""
    return f"`{label(text, 240).replace('`', chr(39))}`"
