"""heredity: grow models from a foundation, and measure what security each has and what it inherited.

    import heredity as h
    store = h.Store()
    study = h.Study(models=["a", "b"], application=h.Application.load("support-desk.toml"), store=store)
    result = study.run()

Promises: `__all__` is the whole public surface; importing this loads none of it, a name loads on first use.
Leaves to others: everything; each name says where it lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heredity.application import Application as Application
    from heredity.cli._progress import Display as Display
    from heredity.corpus import build_corpus as build_corpus
    from heredity.errors import HeredityError as HeredityError
    from heredity.estimates import Estimates as Estimates
    from heredity.exposure import expose as expose
    from heredity.lineage import Grown as Grown
    from heredity.lineage import Recipe as Recipe
    from heredity.lineage import Store as Store
    from heredity.lineage import grow as grow
    from heredity.recipes import recipe as recipe
    from heredity.recipes.pretrain import Pretrain as Pretrain
    from heredity.records import Decoding as Decoding
    from heredity.records import Estimate as Estimate
    from heredity.records import Message as Message
    from heredity.records import Model as Model
    from heredity.records import Probe as Probe
    from heredity.records import Reply as Reply
    from heredity.records import Request as Request
    from heredity.records import Response as Response
    from heredity.records import Tool as Tool
    from heredity.records import Verdict as Verdict
    from heredity.report import write_report as write_report
    from heredity.study import Study as Study
    from heredity.train.dialogues import Data as Data

__version__ = "0.1.0"

_HOME = {
    "Application": "application",
    "Data": "train.dialogues",
    "Decoding": "records",
    "Display": "cli._progress",
    "Estimate": "records",
    "Estimates": "estimates",
    "Grown": "lineage",
    "HeredityError": "errors",
    "Message": "records",
    "Model": "records",
    "Pretrain": "recipes.pretrain",
    "Probe": "records",
    "Recipe": "lineage",
    "Reply": "records",
    "Request": "records",
    "Response": "records",
    "Store": "lineage",
    "Study": "study",
    "Tool": "records",
    "Verdict": "records",
    "build_corpus": "corpus",
    "expose": "exposure",
    "grow": "lineage",
    "recipe": "recipes",
    "write_report": "report",
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
