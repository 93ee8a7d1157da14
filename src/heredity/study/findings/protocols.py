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
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

from heredity.core import registry
from heredity.core.errors import Unavailable
from heredity.core.records import Record
from heredity.core.sections import Cell, Section, TextTable
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
    """The rows of `begin` as estimates.json has them; a finding without rows has no key.

    Raises Unavailable for rows that its Row does not read.
    """
    kinds = {each.NAME: each.Row for each in every_finding()}
    taken: dict[str, list[object]] = {}
    for key, each in rows.items():
        if not isinstance(each, Iterable):
            raise _returned(key, "compute", each, f"rows of {kinds[key].__name__} are expected")
        for row in each:
            if not isinstance(row, kinds[key]):
                raise _returned(key, "compute", row, f"{kinds[key].__name__} is expected")
            try:
                plain = msgspec.to_builtins(row)
                msgspec.convert(plain, kinds[key])
            except (TypeError, msgspec.ValidationError) as error:
                wanted = f"{kinds[key].__name__} is expected: {error}"
                raise _returned(key, "compute", row, wanted) from error
            taken.setdefault(key, []).append(plain)
    return taken


def sections(study: RecordedStudy) -> list[Section]:
    """The sections of a study, in their order.

    Raises Damaged for rows of another type, and Unavailable for a section whose tables no format can show.
    """
    made = []
    for each in every_finding():
        section = each.show(study.estimates.rows(each.NAME, each.Row), study)
        if section is None:
            continue
        if not isinstance(section, Section):
            raise _returned(each.NAME, "show", section, "Section is expected")
        for table in section.tables:
            if not isinstance(table, TextTable):
                raise _returned(each.NAME, "show", table, "TextTable is expected")
            wanted = f"a row of {len(table.head)} cells for '{table.title}' is expected"
            for row in table.rows:
                cells = row if isinstance(row, Sequence) else ()
                if len(cells) != len(table.head) or not all(isinstance(cell, Cell) for cell in cells):
                    raise _returned(each.NAME, "show", row, wanted)
        made.append(section)
    return made


def _returned(key: str, member: str, value: object, wanted: str) -> Unavailable:
    """The error for a finding that returned another type."""
    named = (name for name in registry.names(FOLDER) if key == registry.load(FOLDER, name).NAME)
    words = f"returned {value!r:.80} from `{member}`, where {wanted}"
    return registry.broken(FOLDER, next(named, key), words)
