"""A study as JUnit XML, for the test tab of a CI system: a suite per model and technique, a case per trial.

    broke                        failure, except in a capability probe
    error                        error
    unclear, not asked, pending  skipped, with the reason
    refused benign twin          pass, with a property

Promises: one case in memory at a time; no character that XML forbids, and none that controls a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from heredity.core.sanitize import shown
from heredity.study import aggregate
from heredity.study.estimates import Estimates
from heredity.study.plan import Plan
from heredity.study.report._rows import WANTED, TrialRow, TrialTable, chosen_names, outcomes, whole

# XML 1.0 allows no other control code; DEL and C1 it allows, but a terminal obeys them.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_CODES = {kind: code for code, kind in enumerate(WANTED, 1)}


class Suite(NamedTuple):
    """The trials of one model under one technique: their indices in the plan, and their outcomes."""

    model: str
    technique: str
    places: NDArray[np.int64]
    codes: NDArray[np.uint8]
    is_baseline: bool = False  # a capability: nothing there is a failure

    @property
    def name(self) -> str:
        return f"{self.model} x {self.technique}"

    def count(self, kind: str) -> int:
        return int((self.codes == _CODES[kind]).sum())

    @property
    def n_failures(self) -> int:
        return 0 if self.is_baseline else self.count("broke")

    @property
    def n_skipped(self) -> int:
        return self.count("unclear") + self.count("not asked") + int((self.codes == 0).sum())


def write(folder: Path, out: Path, with_text: bool = True, models: Sequence[str] = ()) -> Path:
    """Write every trial of the study in `folder`, or of these models, to `out`, and return `out`.

    Without text: probes, models and outcomes, but no prompts and answers.
    """
    study = aggregate.read_study(folder)
    names = chosen_names(study.estimates.models, models)
    suites = list(_suites(folder, study.plan, names))
    with TrialTable(folder, study.plan, names, with_text) as table, whole(out) as file:
        for piece in _document(suites, table, study.estimates):
            file.write(piece.encode())
    return out


def legal(text: str) -> str:
    """`text` without the characters that XML forbids and without control codes."""
    return _FORBIDDEN.sub("", text)


def _attribute(text: str) -> str:
    return quoteattr(legal(text))


def _suites(folder: Path, plan: Plan, names: Mapping[str, str]) -> Iterator[Suite]:
    codes = outcomes(folder, plan).reshape(plan.shape)
    places = np.arange(plan.n_trials, dtype=np.int64).reshape(plan.shape)
    techniques = list(dict.fromkeys(probe.technique for probe in plan.probes))
    for m, model in enumerate(plan.models):
        if model.id not in names:
            continue
        for technique in techniques:
            own = [i for i, probe in enumerate(plan.probes) if probe.technique == technique]
            # Probe by probe, then attack and sample, so that cases of a probe are next to each other.
            of = places[m][:, own].transpose(1, 0, 2).ravel()
            cells = codes[m][:, own].transpose(1, 0, 2).ravel()
            yield Suite(names[model.id], technique, of, cells, all(plan.probes[i].is_baseline for i in own))


def _document(suites: list[Suite], table: TrialTable, estimates: Estimates) -> Iterator[str]:
    yield '<?xml version="1.0" encoding="UTF-8"?>\n'
    yield f'<testsuites name="heredity {estimates.study[:13]}" {_counts(suites)}>\n'
    for number, suite in enumerate(suites):
        yield (
            f"  <testsuite id={_attribute(str(number))} name={_attribute(suite.name)}"
            f" {_counts([suite])} timestamp={_attribute(estimates.circumstances.at)}"
            f" hostname={_attribute(estimates.circumstances.host)}>\n"
        )
        for place, code in zip(suite.places.tolist(), suite.codes.tolist(), strict=True):
            trial = table.grid.trial(place)
            name = f"{trial.probe.id} [{trial.attack}]" + (
                f" #{trial.sample}" if table.grid.plan.samples > 1 else ""
            )
            head = (
                f"    <testcase classname={_attribute(f'{suite.model}.{suite.technique}')} "
                f'name={_attribute(name)} time="0">\n'
            )
            row = table.row(place)
            inside = _properties(row) if row is not None else ""
            yield (head + inside + _finding(table, place, row, code, suite.is_baseline) + "    </testcase>\n")
        yield "  </testsuite>\n"
    yield "</testsuites>\n"


def _counts(suites: list[Suite]) -> str:
    counts = {
        "tests": sum(suite.places.size for suite in suites),
        "failures": sum(suite.n_failures for suite in suites),
        "errors": sum(suite.count("error") for suite in suites),
        "skipped": sum(suite.n_skipped for suite in suites),
    }
    return " ".join(f'{name}="{n}"' for name, n in counts.items())


def _properties(row: TrialRow) -> str:
    facts = {"trial": row.trial, "kind": row.kind, "outcome": row.outcome, "manner": row.manner}
    facts["judge"] = row.judge
    facts["severity"] = None if row.severity is None else str(row.severity)
    lines = (
        f"        <property name={_attribute(name)} value={_attribute(value)}/>\n"
        for name, value in facts.items()
        if value
    )
    return f"      <properties>\n{''.join(lines)}      </properties>\n"


def _finding(table: TrialTable, place: int, row: TrialRow | None, code: int, is_baseline: bool) -> str:
    if row is None or code == _CODES["not asked"]:
        return '      <skipped message="not asked"/>\n'
    if code == _CODES["error"]:
        return f'      <error type="error" message={_attribute(row.error or "an error")}/>\n'
    if code == _CODES["broke"]:
        if is_baseline:
            return ""
        message = _attribute("broke" + (f": {row.evidence}" if row.evidence else ""))
        return f'      <failure type="breach" message={message}>{_transcript(table, place)}</failure>\n'
    if code == _CODES["unclear"]:
        return f"      <skipped message={_attribute(f'unclear: {row.manner}')}/>\n"
    return '      <skipped message="not judged yet"/>\n' if code == 0 else ""


def _transcript(table: TrialTable, place: int) -> str:
    """Prompts and answers, each cut to a readable length."""
    steps = (
        f"--- prompt\n{shown(step.prompt).text}\n--- answer\n{shown(step.text).text}\n"
        for step in table.exchanges(place)
    )
    return escape(legal("".join(steps)))
