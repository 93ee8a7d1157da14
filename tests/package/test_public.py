"""The public names: all there, all lazy, all documented."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import heredity
from heredity.core import registry
from tests.support.errors import raises

API = Path(__file__).parents[2] / "docs" / "reference" / "api.md"
PUBLIC = [
    "Ablate", "Alora", "AnswerImporter", "Application", "ApplicationSession", "AttackContext",
    "Badge", "BreachCheck", "BreachEvidence", "Cell", "CountedShare", "Data", "Decoding",
    "DerivableRecipe", "Description", "Display", "Distill", "Engine", "EngineModule", "Estimate",
    "Estimates", "Finetune", "Grown", "Guard", "GuardFacts", "GuardRule", "GuardSpan", "GuardSpec",
    "HeredityError", "Instruct", "Judge", "Lora", "Merge", "Message", "Model", "ModelName",
    "Outcome", "Poison", "Preference", "Pretrain", "Probe", "Progress", "Prune", "Quantize",
    "RawResponse", "Recipe", "Record", "RecordedAnswer", "RecordedStudy", "Reply", "ReportWriter",
    "Request", "Response", "Result", "Retrieval", "Section", "ShareDifference", "StackedCounts",
    "Static", "Store", "Strategy", "Study", "StudyEvidence", "StudyForecast", "StudySpec",
    "TextTable", "TextTransform", "Tool", "TrialLink", "Turn", "TurnTransform", "Unavailable",
    "Verdict", "__version__", "adopt", "build_corpus", "expose", "grow", "guarded_model",
    "open_index", "recipe", "searching_in", "tool", "write_atomic", "write_report",
]  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert sorted(heredity.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(heredity))


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in ("__version__", "Cell", "Outcome")])
def test_a_public_name_loads_when_used_and_says_what_it_is(name: str) -> None:
    assert getattr(heredity, name).__doc__, name


def test_the_names_for_the_type_checker_are_the_names_at_run_time() -> None:
    source = Path(heredity.__file__).read_text(encoding="utf-8")
    for name, home in heredity._HOME.items():
        assert f"from heredity.{home} import {name} as {name}" in source


def test_programs_on_top_import_the_homes_of_public_names_and_at_most_15_other_modules() -> None:
    settings = tomllib.loads((API.parents[2] / "pyproject.toml").read_text("utf-8"))["tool"]
    contracts = settings["importlinter"]["contracts"]
    (of_programs,) = (each for each in contracts if each.get("source_modules") == ["heredity.lab"])
    allowed = {line.partition(" -> heredity.")[2] for line in of_programs["ignore_imports"]}
    documented = {name for name in allowed if f"`heredity.{name}`" in API.read_text("utf-8")}
    assert len(allowed - documented - set(heredity._HOME.values())) <= 15


def test_every_recipe_that_derive_offers_is_an_exported_class() -> None:
    from heredity.recipes import derivable

    offered = {kind: registry.load("recipes", kind).DERIVES for kind in derivable()}
    assert offered and {each.__name__ for each in offered.values()} <= set(PUBLIC)
    for kind, each in offered.items():
        assert getattr(heredity, each.__name__) is each and each.kind == kind


def test_an_unknown_name_is_an_attribute_error() -> None:
    with raises(AttributeError, mentions=["Storr"]):
        _ = heredity.Storr  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_records_load_no_torch_and_no_numpy() -> None:
    code = "import heredity, sys; heredity.Probe, heredity.Application; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & {"torch", "numpy", "scipy", "rich", "httpx"}


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].glob("examples/**/*.py")), ids=lambda p: p.name
)
def test_an_example_needs_public_names_alone(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    taken = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "h"
    }
    assert not any(name.startswith("heredity") for name in taken)
    assert not any(name.startswith("heredity.") for name in named)
    assert used <= set(PUBLIC)
