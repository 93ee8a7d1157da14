"""Run a model in float32: "float32:NAME"."""

from __future__ import annotations

from heredity.engines import DTYPE
from heredity.lineage.types import Grown, StoredModels
from heredity.recipes.targets._answering import TorchTarget, computed_with

WRAPS_MODEL = True


def resolve(store: StoredModels, ref: str) -> tuple[TorchTarget, list[Grown]]:
    """The recipe and the parent of "float32:NAME"."""
    return computed_with("float32", DTYPE, {"dtype": "float32"}, store, ref)
