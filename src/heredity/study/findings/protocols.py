"""The protocol of findings: one statistic of a study, in one file.

A module of this folder defines

    NAME     the key of its rows in estimates.json, and its anchor in every report
    ORDER    its place among the sections; smaller comes first
    Row      the record of one row: it has n, an estimate with its method, and the model's id
    compute  the rows, from the outcomes and, if it watches them, the responses of a study
    show     the section for a reader; None if there is nothing to show, as for most findings without a row

Promises: all findings together read the responses once. Rows of a finding that is not installed stay in
estimates.json and are shown nowhere.
Leaves to others: reading the folder and the rates (aggregate.py), and every format (study/report/).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

from heredity.core import registry
from heredity.core.errors import Unavailable
from heredity.core.records import Record
from heredity.core.sections import Section
from heredity.study.estimates import Estimates, Rate
from heredity.study.outcomes import JudgedOutcomes, Outcomes
from heredity.study.plan import Plan
from heredity.study.storage import RawResponse

FOLDER = "study.findings"


@dataclass
class StudyEvidence:
    """The data that a finding computes its rows from."""

    folder: Path
    judged: JudgedOutcomes
    rates: Sequence[Rate] = ()
    _watchers: list[tuple[Callable[[RawResponse], None], Container[int]]] = field(default_factory=list)
    _is_closed: bool = False

    @property
    def outcomes(self) -> Outcomes:
        """One code per trial."""
        return self.judged.outcomes

    @property
    def plan(self) -> Plan:
        """The plan of the study."""
        return self.judged.outcomes.plan

    def watch(self, see: Callable[[RawResponse], None], probes: Container[int] | None = None) -> None:
        """Have `see` called with each judged response, in the order of the file, before rows are taken.

        probes: the places of those whose responses it needs; None: of all. A generator runs too late for
        this: call it in a plain function that returns the generator.
        """
        if self._is_closed:
            raise RuntimeError("watch() after the responses were read: is `compute` a generator?")
        self._watchers.append((see, range(len(self.plan.probes)) if probes is None else probes))

    def read(self, responses: Iterable[RawResponse]) -> None:
        """Show each response to the watchers."""
        self._is_closed = True
        samples, n_probes = self.plan.samples, len(self.plan.probes)
        by_probe = [[see for see, probes in self._watchers if p in probes] for p in range(n_probes)]
        for response in responses:
            for see in by_probe[response.index // samples % n_probes]:
                see(response)


class RecordedStudy(NamedTuple):
    """The plan and the estimates of one study."""

    plan: Plan
    estimates: Estimates


@runtime_checkable
class FindingModule(Protocol):
    """A module of the open folder study/findings."""

    NAME: str
    ORDER: int
    Row: type[Record]

    def compute(self, evidence: StudyEvidence) -> Iterable[Record]:
        """The rows. They are taken after the watchers have seen every response: yield them."""
        ...

    def show(self, rows: Sequence[Record], study: RecordedStudy) -> Section | None:
        """The section of these rows; None if there is nothing to show."""
        ...


@cache
def every_finding() -> tuple[FindingModule, ...]:
    """All findings, in the order of their sections. Raises Unavailable for two with one NAME, too."""
    modules = {name: registry.load_as(FindingModule, FOLDER, name) for name in registry.names(FOLDER)}
    by_key: dict[str, str] = {}
    for name, module in modules.items():
        if (other := by_key.setdefault(module.NAME, name)) != name:
            raise Unavailable(
                f"The findings '{other}' and '{name}' have one NAME, '{module.NAME}', so that one would have "
                "the rows of the other. Rename one, or uninstall its package.",
                code="plugin-broken",
            )
    return tuple(sorted(modules.values(), key=lambda each: (each.ORDER, each.NAME)))


def begin(evidence: StudyEvidence) -> dict[str, Iterable[Record]]:
    """The rows of each finding, to be taken when all responses have been seen."""
    return {each.NAME: each.compute(evidence) for each in every_finding()}


def take(rows: dict[str, Iterable[Record]]) -> dict[str, list[object]]:
    """The rows of `begin` as estimates.json has them; a finding without rows has no key."""
    taken = {name: [msgspec.to_builtins(row) for row in each] for name, each in rows.items()}
    return {name: each for name, each in taken.items() if each}


def sections(study: RecordedStudy) -> list[Section]:
    """The sections of a study, in their order.

    Raises Damaged for rows of another type, and ValueError for a table whose rows have not a cell per head.
    """
    shown = (each.show(study.estimates.rows(each.NAME, each.Row), study) for each in every_finding())
    made = [section for section in shown if section is not None]
    for table in chain.from_iterable(section.tables for section in made):
        if wrong := {len(row) for row in table.rows} - {len(table.head)}:
            raise ValueError(
                f"The table '{table.title}' has {len(table.head)} heads and a row of {min(wrong)}."
            )
    return made
