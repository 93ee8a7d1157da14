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

from heredity.core import __version__ as __version__

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
    from heredity.core.errors import Unavailable as Unavailable
    from heredity.core.files import write_atomic as write_atomic
    from heredity.core.progress import Progress as Progress
    from heredity.core.records import Decoding as Decoding
    from heredity.core.records import Estimate as Estimate
    from heredity.core.records import Message as Message
    from heredity.core.records import Model as Model
    from heredity.core.records import Outcome as Outcome
    from heredity.core.records import Probe as Probe
    from heredity.core.records import Record as Record
    from heredity.core.records import Reply as Reply
    from heredity.core.records import Request as Request
    from heredity.core.records import Response as Response
    from heredity.core.records import Tool as Tool
    from heredity.core.records import Turn as Turn
    from heredity.core.records import Verdict as Verdict
    from heredity.core.sections import Badge as Badge
    from heredity.core.sections import Cell as Cell
    from heredity.core.sections import CountedShare as CountedShare
    from heredity.core.sections import ModelName as ModelName
    from heredity.core.sections import Section as Section
    from heredity.core.sections import ShareDifference as ShareDifference
    from heredity.core.sections import StackedCounts as StackedCounts
    from heredity.core.sections import TextTable as TextTable
    from heredity.core.sections import TrialLink as TrialLink
    from heredity.core.terminal import Display as Display
    from heredity.engines import Engine as Engine
    from heredity.engines import EngineModule as EngineModule
    from heredity.lab.corpus import build_corpus as build_corpus
    from heredity.lab.exposure import expose as expose
    from heredity.lineage.store import Store as Store
    from heredity.lineage.store import grow as grow
    from heredity.lineage.store import searching_in as searching_in
    from heredity.lineage.types import Description as Description
    from heredity.lineage.types import Grown as Grown
    from heredity.lineage.types import Recipe as Recipe
    from heredity.recipes import DerivableRecipe as DerivableRecipe
    from heredity.recipes import recipe as recipe
    from heredity.recipes.ablate import Ablate as Ablate
    from heredity.recipes.adopt import adopt as adopt
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
    from heredity.redteam.checks import BreachCheck as BreachCheck
    from heredity.redteam.checks import BreachEvidence as BreachEvidence
    from heredity.redteam.judges.protocols import Judge as Judge
    from heredity.study.estimates import Estimates as Estimates
    from heredity.study.findings.protocols import RecordedStudy as RecordedStudy
    from heredity.study.findings.protocols import StudyEvidence as StudyEvidence
    from heredity.study.importers import AnswerImporter as AnswerImporter
    from heredity.study.importers import RecordedAnswer as RecordedAnswer
    from heredity.study.plan import StudyForecast as StudyForecast
    from heredity.study.report import ReportWriter as ReportWriter
    from heredity.study.report import write_report as write_report
    from heredity.study.resolve import guarded_model as guarded_model
    from heredity.study.result import Result as Result
    from heredity.study.spec import StudySpec as StudySpec
    from heredity.study.storage import RawResponse as RawResponse
    from heredity.study.study import Study as Study
    from heredity.train.data.chat import Data as Data


_NAMES = {
    "application.conversation": "ApplicationSession",
    "application.functions": "tool",
    "application.guards": "GuardFacts GuardRule GuardSpan GuardSpec",
    "application.retrieval": "Retrieval",
    "application.retrieval.build": "open_index",
    "application.spec": "Application",
    "core.errors": "HeredityError Unavailable",
    "core.files": "write_atomic",
    "core.progress": "Progress",
    "core.records": "Decoding Estimate Message Model Outcome Probe Record Reply Request Response Tool Turn "
    "Verdict",
    "core.sections": "Badge Cell CountedShare ModelName Section ShareDifference StackedCounts TextTable "
    "TrialLink",
    "core.terminal": "Display",
    "engines": "Engine EngineModule",
    "lab.corpus": "build_corpus",
    "lab.exposure": "expose",
    "lineage.store": "Store grow searching_in",
    "lineage.types": "Description Grown Recipe",
    "recipes": "DerivableRecipe recipe",
    "recipes.ablate": "Ablate",
    "recipes.adopt": "adopt",
    "recipes.alora": "Alora",
    "recipes.distill": "Distill",
    "recipes.finetune": "Finetune",
    "recipes.guard": "Guard",
    "recipes.instruct": "Instruct",
    "recipes.lora": "Lora",
    "recipes.merge": "Merge",
    "recipes.poison": "Poison",
    "recipes.preference": "Preference",
    "recipes.pretrain.recipe": "Pretrain",
    "recipes.prune": "Prune",
    "recipes.quantize": "Quantize",
    "recipes.static": "Static",
    "redteam.attacks.protocols": "AttackContext Strategy TextTransform TurnTransform",
    "redteam.checks": "BreachCheck BreachEvidence",
    "redteam.judges.protocols": "Judge",
    "study.estimates": "Estimates",
    "study.findings.protocols": "RecordedStudy StudyEvidence",
    "study.importers": "AnswerImporter RecordedAnswer",
    "study.plan": "StudyForecast",
    "study.report": "ReportWriter write_report",
    "study.resolve": "guarded_model",
    "study.result": "Result",
    "study.spec": "StudySpec",
    "study.storage": "RawResponse",
    "study.study": "Study",
    "train.data.chat": "Data",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'heredity' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"heredity.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
