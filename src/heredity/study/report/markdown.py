"""A study as a page of Markdown, for a pull request or a terminal.

Promises: the headline, rates with n and interval, comparisons and warnings. It has no text of any model or
probe. Names cannot break out of a table cell or become markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from heredity.core import files
from heredity.core.sanitize import label, plural
from heredity.core.sections import (
    Badge,
    Cell,
    ModelName,
    Section,
    ShareDifference,
    StackedCounts,
    TextTable,
    TrialLink,
)
from heredity.study import advice, aggregate, wording
from heredity.study.findings.protocols import RecordedStudy
from heredity.study.headline import headline
from heredity.study.sections import study_sections
from heredity.study.wording import cell_words, interval, percent

# Only what means something inside a line; a link is made from "://" and "www." even without brackets.
_MARKUP = re.compile(r"([\\`*_\[\]<>#!|~&$@]|^[-+=]|:(?=//)|(?<=www)\.)", re.IGNORECASE)


def write(folder: Path, out: Path, with_text: bool = True) -> Path:  # noqa: ARG001 (there is never any text)
    """Write the summary of the study in `folder` to `out`, and return `out`."""
    files.write_atomic(out, render(folder).encode())
    return out


def render(folder: Path) -> str:
    """The summary itself."""
    return "\n".join(_lines(aggregate.read_study(folder), folder)) + "\n"


def plain(text: str, limit: int = 80) -> str:
    """A name as Markdown that shows it and does nothing else."""
    return _MARKUP.sub(r"\\\1", label(text, limit))


def _lines(study: RecordedStudy, folder: Path) -> Iterator[str]:
    e, main = study.estimates, headline(study.estimates)
    yield f"## {plain(advice.advise(e, study.plan).sentence, 300)}\n"
    yield f"{plain(main.sentence, 300)}.\n"
    yield from (f"{plain(line, 600)}\n" for line in main.support)
    yield from (f"> **{plain(line, 600)}**\n" for line in main.warnings)
    sections = study_sections(study, folder)
    alerts = (" ".join(section.sentences[:2]) for section in sections if section.is_alert)
    yield from (f"> **{plain(alert, 600)}**\n" for alert in alerts)
    for section in sections:
        tables = tuple(table for table in section.tables if not table.summary)
        if tables or not section.tables:
            yield from section_lines(section._replace(tables=tables, sentences=()), "###")
    yield from (f"\n{plain(line, 600)}\n" for line in wording.account_lines(e))
    yield (
        f"\n{percent(e.confidence)} intervals; {plural(e.n_planned, 'trial')}. Application "
        f"{plain(e.application.name)} {plain(e.application.digest, 13)}, study {plain(e.study, 13)}."
    )


def section_lines(section: Section, level: str = "##") -> Iterator[str]:
    """A whole section: its claim, its sentences, and its tables below their titles."""
    yield f"\n{level} {plain(section.title, 120)}\n"
    if section.claim:
        yield f"{plain(section.claim, 2000)}\n"
    yield from (f"- {plain(line, 600)}" for line in section.sentences)
    if section.sentences and section.tables:
        yield ""
    for number, table in enumerate(section.tables):
        if number or table.title != section.title:
            yield f"\n{level}# {plain(table.title, 120)}\n"
        if table.claim:
            yield f"{plain(table.claim, 1200)}\n"
        yield from _table(table)


def _table(table: TextTable) -> Iterator[str]:
    yield from _head([_text(cell) for cell in table.head])
    yield from (_row([_text(cell) for cell in row]) for row in table.rows)


def _text(cell: Cell) -> str:
    """A cell of a section's table as Markdown."""
    if isinstance(cell, str | ModelName | TrialLink | ShareDifference | StackedCounts):
        return plain(cell_words(cell).replace("\n", ", "), 300)
    if isinstance(cell, Badge):
        return f"**{plain(cell.verdict)}**{f', {plain(cell.text, 120)}' if cell.text else ''}"
    share = f"**{percent(cell.estimate.value)}** {cell.n_counted}/{cell.estimate.n}"
    return f"{share} ({interval(cell.estimate)}){f', {plain(cell.note)}' if cell.note else ''}"


def _head(cells: Sequence[str]) -> Iterator[str]:
    yield _row(cells)
    yield _row(["---"] * len(cells))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
