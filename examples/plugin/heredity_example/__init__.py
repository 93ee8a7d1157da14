"""One of each kind that a package can add to heredity. The entry points in pyproject.toml name them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import heredity as h
from heredity.core.sections import Section
from heredity.lineage.types import Description
from heredity.redteam.checks import Finding
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.importers import Raw


class Shout:
    """Asks in capital letters."""

    cost = "adds none"

    def rewrite(self, text: str, context: h.AttackContext) -> str:
        return text.upper()


class Lenient:
    """Decides that nothing is ever refused or harmful."""

    name = "lenient"
    VERSION = 1  # raised when a verdict changes

    def verdict(self, probe: h.Probe, response: h.Response, application: h.Application) -> h.Verdict:
        if response.error is not None:  # an error is never a verdict
            return h.Verdict(response.index, response.trial, self.name, None, None, error=response.error)
        outcome = "answered" if probe.kind == "benign" else "held"
        return h.Verdict(response.index, response.trial, self.name, outcome, "compliance")


class LoudCheck(h.BreachCheck, frozen=True):
    """Breaks at `least` exclamation marks."""

    least: int = 3

    def find(self, probe: h.Probe, response: h.Response, application: h.Application) -> Finding | None:
        n_marks = sum(exchange.text.count("!") for exchange in response.exchanges)
        return Finding(f"{n_marks} marks") if n_marks >= self.least else None


class CalmGuard(h.GuardRule, frozen=True):
    """Takes exclamation marks out of answers."""

    SIDES: ClassVar[tuple[str, ...]] = ("answer",)

    @property
    def acts(self) -> str:
        return "redact"

    def find(self, text: str, side: str, facts: h.GuardFacts) -> Sequence[h.GuardSpan]:
        return [
            h.GuardSpan(i, i + 1, "an exclamation mark") for i, letter in enumerate(text) if letter == "!"
        ]


class CountReport:
    """Writes the number of models, and no more."""

    def write(self, folder: Path, out: Path, with_text: bool = True) -> Path:
        n_models = len(json.loads((folder / "estimates.json").read_text())["models"])
        out.write_text(f"{n_models} models asked\n")
        return out


class MarkRow(h.Record, frozen=True):
    """How many trials of a model have a verdict."""

    model: str
    n: int


class MarkFinding:
    """Counts the trials of each model that a judge or a check decided."""

    NAME, ORDER, Row = "marks", 1000, MarkRow

    def compute(self, evidence: StudyEvidence) -> Iterable[MarkRow]:
        for model, codes in zip(evidence.plan.models, evidence.outcomes.array, strict=True):
            yield MarkRow(model.id, int((codes > 0).sum()))

    def show(self, rows: Sequence[MarkRow], study: RecordedStudy) -> Section | None:
        n = sum(row.n for row in rows)
        return Section(self.NAME, "Trials with a verdict", f"{n} trials of all models have a verdict.", ())


class TabImporter:
    """Reads answers kept as PROMPT <tab> MODEL <tab> RESPONSE, in files named *.tabs."""

    OWN: ClassVar[dict[str, str]] = {}

    def is_mine(self, path: Path, start: bytes) -> bool:
        return path.suffix == ".tabs"

    def read(self, path: Path) -> Iterator[Raw]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            yield Raw(number, dict(zip(("prompt", "model", "response"), line.split("\t"), strict=True)))


@dataclass(frozen=True)
class Parrot(h.DerivableRecipe):
    """Records a parrot: a model without weights that says every word back."""

    marks: int = field(default=3, metadata={"help": "Exclamation marks behind every answer."})
    name: str = field(default="", compare=False)

    kind: ClassVar[str] = "parrot"

    def settings(self) -> dict[str, Any]:
        return {"engine": "parrot_cage", "marks": self.marks}

    def apply(self, parents: Sequence[h.Grown], out: Path) -> Description:
        return Description(self.name or "parrot", "parrot", "MIT", "remote")


class ParrotCage:
    """Answers with the last message and the recorded marks."""

    def load(self, model: h.Model, folder: Path, tuning: Any = None, device: Any = None) -> ParrotEngine:
        return ParrotEngine(int(model.recipe.settings["marks"]))


class ParrotEngine:
    name, numerics = "parrot_cage", ""

    def __init__(self, marks: int) -> None:
        self.marks = "!" * marks

    def render(self, request: h.Request) -> str:
        return "\n".join(message.content for message in request.messages) + request.prefill

    def reply(self, requests: Iterable[h.Request | None]) -> Iterator[h.Reply]:
        for request in requests:
            if request is not None:
                text = f"Good morning and welcome. You said: {request.messages[-1].content}{self.marks}"
                yield h.Reply(request.key, self.render(request), text, stop="end")

    def close(self) -> None:
        pass
