"""The section of a statistic on a page: a claim, sentences and tables, without the look of any format.

Promises: plain values. A share keeps its estimate, so that each format spells it in its own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from heredity.core.records import Estimate


class CountedShare(NamedTuple):
    """`n_counted` of the trials of an estimate. note: a few words behind it, such as `2 with tools`."""

    estimate: Estimate
    n_counted: int
    note: str = ""


class TrialLink(NamedTuple):
    """The index of a trial; a page links to its conversation."""

    trial: int


class ModelName(NamedTuple):
    """A model of the study by its id and the name that is shown."""

    id: str
    name: str


class Badge(NamedTuple):
    """A verdict ("worse", "not worse", "better", "not enough evidence") and what it rests on."""

    verdict: str
    text: str


class ShareDifference(NamedTuple):
    """A difference of two shares; a page draws it. A smaller one than `margin` does not matter.

    model: whose shape it has. test: how it was tested.
    """

    estimate: Estimate
    margin: float
    model: str
    test: str


class StackedCounts(NamedTuple):
    """Counts by kind that are parts of a whole; a page draws them as one bar."""

    by_kind: dict[str, int]


# A line break in a text divides it into lines.
Cell = str | CountedShare | TrialLink | ModelName | Badge | ShareDifference | StackedCounts


class Curves(NamedTuple):
    """A line for each model (id): its estimate by the number of tries."""

    by_model: dict[str, dict[int, Estimate]]


class HeatMap(NamedTuple):
    """Rates of one measure, technique by model; a page colours the cells."""

    measure: str


class TreeEdge(NamedTuple):
    """A parent and its child by their ids, with lines of words.

    kind: of the verdict, as in wording.BADGES. retained: a share that is drawn as a bar.
    """

    parent: str
    child: str
    kind: str
    lines: tuple[str, ...]
    retained: float | None


class TreeNote(NamedTuple):
    """A few words below a model, and the share that fills its box."""

    words: str
    share: float | None


class Tree(NamedTuple):
    """A lineage, by the ids of the models."""

    by_model: dict[str, TreeNote]
    edges: tuple[TreeEdge, ...]


class TextTable(NamedTuple):
    """A table of texts and shares, for Markdown, HTML and the terminal.

    summary: not "": the table is a detail. HTML folds it under these words; a summary of the study omits it.
    claim: how to read it. figure: the same numbers to be drawn.
    """

    title: str
    head: Sequence[str | ModelName]
    rows: Sequence[Sequence[Cell]]
    summary: str = ""
    claim: str = ""
    figure: Curves | HeatMap | Tree | None = None


class Section(NamedTuple):
    """A statistic on a page.

    name: that of the finding: its key in estimates.json and its anchor. claim: how to read the tables.
    sentences: the main rows for a terminal. is_main: a page shows it before the findings that few look for.
    is_alert: the first screen of every format has its sentences; a short one the first of them.
    """

    name: str
    title: str
    claim: str
    tables: tuple[TextTable, ...]
    sentences: tuple[str, ...] = ()
    is_main: bool = False
    is_alert: bool = False
