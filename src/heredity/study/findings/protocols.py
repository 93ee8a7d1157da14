"""The protocol of findings: one statistic of a study, in one file.

A module of this folder defines

    NAME     the key of its rows in estimates.json, and its anchor in every report
    ORDER    its place among the sections; smaller comes first
    Row      the record of one row: it has n, an estimate with its method, and the model's id
    compute  the rows, from the outcomes and, if it watches them, the responses of a study
    show     the section for a reader; None if there is nothing to show, as for most findings without a row

Promises: all findings together read the responses once. Rows of a finding that is not installed stay in
estimates.json and are shown nowhere. An error of ours is raised; one of a package costs only its own rows and
section, and is a deviation of the study.
Leaves to others: reading the folder and the rates (aggregate.py), and every format (study/report/).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, Never, Protocol, TypeVar, runtime_checkable

import msgspec

from heredity.core import registry
from heredity.core.errors import Unavailable, first_line
from heredity.core.records import Record
from heredity.core.sections import Cell, CountedShare, Section, TextTable
from heredity.study.estimates import ALL, Estimates, Rate
from heredity.study.intervals import Bools, Intervals
from heredity.study.outcomes import JudgedOutcomes, Outcomes
from heredity.study.plan import Plan
from heredity.study.storage import RawResponse

FOLDER = "study.findings"
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class StudyEvidence:
    """The data that a finding computes its rows from."""

    folder: Path
    judged: JudgedOutcomes
    rates: Sequence[Rate] = ()
    faults: dict[str, str] = field(default_factory=dict, init=False)  # by plug-in: its error in words
    by: str = field(default="", init=False)  # the finding that computes now
    _watchers: list[tuple[Callable[[RawResponse], None], Container[int]]] = field(
        default_factory=list, init=False
    )
    _is_closed: bool = False

    @property
    def outcomes(self) -> Outcomes:
        """One code per trial."""
        return self.judged.outcomes

    @property
    def plan(self) -> Plan:
        """The plan of the study."""
        return self.judged.outcomes.plan

    def share(self, model: int, hits: Bools, counted: Bools, probes: Sequence[int]) -> CountedShare:
        """The share of hits among a model's counted trials of these probes, with the plan's interval.

        hits, counted: (trial,) over the whole study. model, probes: places in the plan.
        """
        indices = self.outcomes.indices_of(model, ALL, probes)
        kept = counted[indices]
        its, clusters = hits[indices[kept]], self.outcomes.clusters_of(ALL, probes, model)[kept]
        return CountedShare(Intervals.over(self.outcomes, model).rate(its, clusters), int(its.sum()))

    def watch(self, see: Callable[[RawResponse], None], probes: Container[int] | None = None) -> None:
        """Have `see` called with each judged response, before rows are taken.

        probes: the places of those whose responses it needs; None: of all. A generator runs too late for
        this: call it in a plain function that returns the generator.
        """
        if self._is_closed:
            raise RuntimeError("watch() after the responses were read: is `compute` a generator?")
        if self.by and _is_from_package(self.by):
            see = partial(attempt, self.faults, self.by, see)
        self._watchers.append((see, range(len(self.plan.probes)) if probes is None else probes))

    def read(self, responses: Iterable[RawResponse]) -> None:
        """Show each response."""
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


class BrokenFinding:
    """In place of a plug-in that cannot be loaded: raises its error."""

    ORDER, Row = 10_000, Record

    def __init__(self, name: str, error: Unavailable) -> None:
        self.NAME, self.error = name, error

    def compute(self, *_: object) -> Never:
        raise self.error

    show = compute


@cache
def every_finding() -> dict[str, FindingModule]:
    """All findings by the names of their files or entry points, in the order of their sections."""
    modules: dict[str, FindingModule] = {}
    places: dict[str, tuple[float, str]] = {}
    for name in sorted(registry.names(FOLDER), key=_is_from_package):
        try:
            module = registry.load_as(FindingModule, FOLDER, name)
            places[name] = float(module.ORDER), module.NAME
            if other := next((each for each in modules if modules[each].NAME == module.NAME), ""):
                raise registry.broken(FOLDER, name, f"has the NAME of '{other}', and would have its rows")
        except Exception as error:
            if not _is_from_package(name):
                raise
            its = (
                error if isinstance(error, Unavailable) else registry.broken(FOLDER, name, first_line(error))
            )
            module = BrokenFinding(name, its)
            places[name] = float(module.ORDER), name
        modules[name] = module
    return {name: modules[name] for name in sorted(modules, key=places.__getitem__)}


def refuse_broken() -> None:
    """Raise Unavailable for a plug-in that cannot be loaded: before anything is asked, it can be mended."""
    for each in every_finding().values():
        if isinstance(each, BrokenFinding):
            raise each.error


def keys_of_packages() -> set[str]:
    """The NAMEs of findings from packages."""
    return {each.NAME for name, each in every_finding().items() if _is_from_package(name)}


def _is_from_package(name: str) -> bool:
    return not registry.is_ours(FOLDER, name)


def attempt(faults: dict[str, str], name: str, call: Callable[..., T], *given: object) -> T | None:
    """The result of a call of a finding. An error of a package's is kept in `faults`, and it gets no more."""
    if not _is_from_package(name):
        return call(*given)
    try:
        return None if name in faults else call(*given)
    except Exception as error:  # of a package: its errors share no base
        faults[name] = registry.fault_words(FOLDER, name, error)
        _log.debug("the plug-in '%s' failed", name, exc_info=error)  # shown by --debug
        return None


def begin(evidence: StudyEvidence) -> dict[str, Iterable[Record] | None]:
    """The rows of each finding, to be taken when all responses have been seen."""
    rows = {}
    for name, each in every_finding().items():
        evidence.by = name
        rows[name] = attempt(evidence.faults, name, each.compute, evidence)
    return rows


def take(evidence: StudyEvidence, rows: dict[str, Iterable[Record] | None]) -> dict[str, list[object]]:
    """The rows of `begin` as estimates.json has them; a finding without rows has no key.

    Raises Unavailable for rows of ours that its Row does not read.
    """
    taken = {
        each.NAME: attempt(evidence.faults, name, _plain, name, each.Row, rows[name])
        for name, each in every_finding().items()
    }
    return {key: each for key, each in taken.items() if each}


def _plain(name: str, kind: type[Record], rows: Iterable[Record]) -> list[object]:
    if not isinstance(rows, Iterable):
        raise _returned(name, "compute", rows, f"rows of {kind.__name__} are expected")
    taken: list[object] = []
    for row in rows:
        if not isinstance(row, kind):
            raise _returned(name, "compute", row, f"{kind.__name__} is expected")
        if why := _mismatch(row, kind):
            raise _returned(name, "compute", row, f"{kind.__name__} is expected: {why}")
        taken.append(msgspec.to_builtins(row))
    return taken


def _mismatch(value: object, kind: object) -> str:
    """Why a value is not of this type, without the value itself, which may be an answer; "" if it is."""
    try:
        msgspec.convert(msgspec.to_builtins(value), kind)
    except (TypeError, msgspec.ValidationError) as error:
        return re.sub(r"(?s)(value) .*( - at )", r"\1\2", str(error))
    return ""


def sections(study: RecordedStudy) -> list[Section]:
    """The sections of a study, in their order. That of a plug-in that fails has its error.

    Raises Damaged for rows of ours of another type.
    """
    study, faults = study._replace(estimates=study.estimates.own), dict[str, str]()
    made = [attempt(faults, name, _section, name, each, study) for name, each in every_finding().items()]
    broken = [Section(name, f"{name}: not shown", words, (), (words,)) for name, words in faults.items()]
    return [section for section in made if section is not None] + broken


def note_unshown(evidence: StudyEvidence, study: RecordedStudy) -> None:
    """Add those to the faults of `evidence` whose section cannot be made."""
    for name, each in every_finding().items():
        if _is_from_package(name):
            attempt(evidence.faults, name, _section, name, each, study)


def _section(name: str, finding: FindingModule, study: RecordedStudy) -> Section | None:
    section = finding.show(study.estimates.rows(finding.NAME, finding.Row), study)
    if section is None:
        return None
    if not isinstance(section, Section):
        raise _returned(name, "show", section, "Section is expected")
    texts: list[object] = [section.name, section.title, section.claim, *section.sentences]
    for table in section.tables:
        if not isinstance(table, TextTable):
            raise _returned(name, "show", table, "TextTable is expected")
        texts += [table.title, table.summary, table.claim]
        for number, row in enumerate(table.rows, 1):
            place = f"row {number} of the table '{table.title}'"
            if not isinstance(row, list | tuple) or len(row) != len(table.head):
                raise _returned(name, "show", row, f"{len(table.head)} cells are expected: {place}")
            for column, cell in enumerate(row, 1):
                if why := _mismatch(cell, type(cell)) if isinstance(cell, Cell) else "it is none":
                    wanted = f"a Cell is expected: column {column} of {place}: {why}"
                    raise _returned(name, "show", cell, wanted)
    for text in texts:
        if not isinstance(text, str):
            raise _returned(name, "show", text, "a text of the section is expected")
    return section


def _returned(name: str, member: str, value: object, wanted: str) -> Unavailable:
    """The error for a finding that returned another type. It has no value, which may hold an answer."""
    return registry.broken(FOLDER, name, f"returned {type(value).__name__} from `{member}`, where {wanted}")
