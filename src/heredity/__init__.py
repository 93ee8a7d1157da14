"""heredity: grow models from a foundation, and measure what security each has and what it inherited.

    import heredity as h
    store = h.Store()
    parent = store.pull("qwen2.5-coder-0.5b-instruct")
    child = store.grow(h.Quantize("int8"), [parent])
    result = h.Study(h.StudySpec([parent, child], application="support-desk.toml", probes="core")).run()

Promises: `__all__` is the whole public surface. Importing this loads none of it and changes nothing in the
process; a name loads when it is first used.
Leaves to others: everything; `_HOME` lists the module of each name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from heredity.core.version import __version__ as __version__

if TYPE_CHECKING:
    from heredity.application.conversation import ApplicationSession as ApplicationSession
    from heredity.application.functions import tool as tool
    from heredity.application.guards import GuardFacts as GuardFacts
    from heredity.application.guards import GuardRule as GuardRule
    from heredity.application.guards import GuardSpan as GuardSpan
    from heredity.application.guards import GuardSpec as GuardSpec
    from heredity.application.retrieval import Retrieval as Retrieval
    from heredity.application.retrieval.build import open_index as open_index
    from heredity.application.spec import Application as Application
    from heredity.core.errors import HeredityError as HeredityError
    from heredity.core.progress import Progress as Progress
    from heredity.core.records import Decoding as Decoding
    from heredity.core.records import Estimate as Estimate
    from heredity.core.records import Message as Message
    from heredity.core.records import Model as Model
    from heredity.core.records import Probe as Probe
    from heredity.core.records import Record as Record
    from heredity.core.records import Reply as Reply
    from heredity.core.records import Request as Request
    from heredity.core.records import Response as Response
    from heredity.core.records import Tool as Tool
    from heredity.core.records import Turn as Turn
    from heredity.core.records import Verdict as Verdict
    from heredity.core.terminal import Display as Display
    from heredity.engines.protocols import Engine as Engine
    from heredity.engines.protocols import EngineModule as EngineModule
    from heredity.lab.corpus import build_corpus as build_corpus
    from heredity.lab.exposure import expose as expose
    from heredity.lineage.adoption import adopt as adopt
    from heredity.lineage.store import Store as Store
    from heredity.lineage.store import grow as grow
    from heredity.lineage.store import searching_in as searching_in
    from heredity.lineage.types import Grown as Grown
    from heredity.lineage.types import Recipe as Recipe
    from heredity.recipes import DerivableRecipe as DerivableRecipe
    from heredity.recipes import recipe as recipe
    from heredity.recipes.ablate import Ablate as Ablate
    from heredity.recipes.alora import Alora as Alora
    from heredity.recipes.distill import Distill as Distill
    from heredity.recipes.finetune import Finetune as Finetune
    from heredity.recipes.guard import Guard as Guard
    from heredity.recipes.instruct import Instruct as Instruct
    from heredity.recipes.lora import Lora as Lora
    from heredity.recipes.merge import Merge as Merge
    from heredity.recipes.poison import Poison as Poison
    from heredity.recipes.preference import Preference as Preference
    from heredity.recipes.pretrain.recipe import Pretrain as Pretrain
    from heredity.recipes.prune import Prune as Prune
    from heredity.recipes.quantize import Quantize as Quantize
    from heredity.recipes.static import Static as Static
    from heredity.redteam.attacks.protocols import AttackContext as AttackContext
    from heredity.redteam.attacks.protocols import Strategy as Strategy
    from heredity.redteam.attacks.protocols import TextTransform as TextTransform
    from heredity.redteam.attacks.protocols import TurnTransform as TurnTransform
    from heredity.redteam.checks.protocols import BreachCheck as BreachCheck
    from heredity.redteam.judges.protocols import Judge as Judge
    from heredity.study.estimates import Estimates as Estimates
    from heredity.study.findings.seeds import SeedGroup as SeedGroup
    from heredity.study.importers import AnswerImporter as AnswerImporter
    from heredity.study.plan import StudyForecast as StudyForecast
    from heredity.study.report import ReportWriter as ReportWriter
    from heredity.study.report import write_report as write_report
    from heredity.study.resolve import guarded_model as guarded_model
    from heredity.study.result import Result as Result
    from heredity.study.spec import StudySpec as StudySpec
    from heredity.study.study import Study as Study
    from heredity.train.data.chat import Data as Data


_HOME = {
    "Ablate": "recipes.ablate",
    "Alora": "recipes.alora",
    "AnswerImporter": "study.importers",
    "Application": "application.spec",
    "ApplicationSession": "application.conversation",
    "AttackContext": "redteam.attacks.protocols",
    "BreachCheck": "redteam.checks.protocols",
    "Data": "train.data.chat",
    "Decoding": "core.records",
    "DerivableRecipe": "recipes",
    "Display": "core.terminal",
    "Distill": "recipes.distill",
    "Engine": "engines.protocols",
    "EngineModule": "engines.protocols",
    "Estimate": "core.records",
    "Estimates": "study.estimates",
    "Finetune": "recipes.finetune",
    "Grown": "lineage.types",
    "Guard": "recipes.guard",
    "GuardFacts": "application.guards",
    "GuardRule": "application.guards",
    "GuardSpan": "application.guards",
    "GuardSpec": "application.guards",
    "HeredityError": "core.errors",
    "Instruct": "recipes.instruct",
    "Judge": "redteam.judges.protocols",
    "Lora": "recipes.lora",
    "Merge": "recipes.merge",
    "Message": "core.records",
    "Model": "core.records",
    "Poison": "recipes.poison",
    "Preference": "recipes.preference",
    "Pretrain": "recipes.pretrain.recipe",
    "Probe": "core.records",
    "Progress": "core.progress",
    "Prune": "recipes.prune",
    "Quantize": "recipes.quantize",
    "Recipe": "lineage.types",
    "Record": "core.records",
    "Reply": "core.records",
    "ReportWriter": "study.report",
    "Request": "core.records",
    "Response": "core.records",
    "Result": "study.result",
    "Retrieval": "application.retrieval",
    "Static": "recipes.static",
    "SeedGroup": "study.findings.seeds",
    "Store": "lineage.store",
    "Strategy": "redteam.attacks.protocols",
    "Study": "study.study",
    "StudyForecast": "study.plan",
    "StudySpec": "study.spec",
    "TextTransform": "redteam.attacks.protocols",
    "Tool": "core.records",
    "Turn": "core.records",
    "TurnTransform": "redteam.attacks.protocols",
    "Verdict": "core.records",
    "adopt": "lineage.adoption",
    "build_corpus": "lab.corpus",
    "expose": "lab.exposure",
    "grow": "lineage.store",
    "guarded_model": "study.resolve",
    "open_index": "application.retrieval.build",
    "recipe": "recipes",
    "searching_in": "lineage.store",
    "tool": "application.functions",
    "write_report": "study.report",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'heredity' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"heredity.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
