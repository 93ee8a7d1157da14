"""docs/reference/formats.md names every field of the types, and its examples can be read."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from heredity.application import spec
from heredity.core import records
from heredity.core.records import Response, Verdict
from heredity.lineage import graph
from heredity.study import attack_context, deviations, estimates, importers, plan, storage

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
EXAMPLES: list[str] = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
RESULTS = (storage.RunRecord, estimates.Rate, estimates.ModelPair, estimates.Inheritance)
TYPES = [
    *(
        getattr(estimates, name)
        for name in (
            "Estimates",
            "Rate",
            "ModelPair",
            "Inheritance",
            "SeedGroup",
            "Manners",
            "Bounds",
            "Table2x2",
        )
    ),
    *(getattr(estimates, name) for name in ("ModelCard", "ApplicationCard", "TechniqueCard", "JudgeQuality")),
    *(
        getattr(estimates, name)
        for name in (
            "SkippedProbe",
            "Circumstances",
            "Competence",
            "UnpromptedRate",
            "Multiverse",
            "MultiverseCell",
            "ShrunkRates",
            "TechniqueRate",
            "TechniqueTest",
            "Deviation",
        )
    ),
    graph.Edge,
    storage.RunRecord,
    *(plan.PlanFile, plan.Plan, plan.PlannedModel, storage.PromptPrefix),
    *(plan.Analysis, plan.ComparisonFamily, plan.StudyForecast, plan.ForecastRow, deviations.StudyEvent),
    *(
        Response,
        Verdict,
        records.Exchange,
        records.Consulted,
        attack_context.SearchResult,
        records.Estimate,
        records.Probe,
        records.Check,
        records.ToolResult,
    ),
    *(records.Model, records.RecipeRecord, records.FileHash, records.Made),
    *(spec.Application, spec.Secret, spec.Passage),
    *(getattr(importers, name) for name in ("RecordedVerdict", "Agreements", "Agreement")),
    *(getattr(importers, name) for name in ("JudgedRate", "JudgedPair")),
    *(records.Tool, records.ToolCall, records.Message, records.Decoding),
]


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_every_field_is_named_on_the_page(kind: type[msgspec.Struct]) -> None:
    named = set(re.findall(r"`(?:plan\.)?(\w+)`", PAGE))
    assert set(kind.__struct_fields__) <= named


@pytest.mark.parametrize(
    ("place", "kind"),
    list(enumerate([storage.PromptPrefix, Response, Verdict, *RESULTS])),
)
def test_the_examples_are_rows_that_heredity_reads(place: int, kind: type[msgspec.Struct]) -> None:
    assert len(EXAMPLES) == 7
    row = msgspec.json.decode(EXAMPLES[place], type=kind)
    always = {f.name for f in msgspec.structs.fields(kind) if f.default is not msgspec.UNSET}
    assert set(msgspec.json.decode(EXAMPLES[place])) == always
    newest = {f.name: f.default for f in msgspec.structs.fields(kind)}.get("schema")
    assert getattr(row, "schema", None) == newest
