"""Run a model in bfloat16: "bfloat16:NAME"."""

from __future__ import annotations

from heredity.engines import DTYPE
from heredity.lineage.types import Grown, StoredModels
from heredity.recipes.targets._answering import TorchTarget, computed_with

WRAPS_MODEL = True


def resolve(store: StoredModels, ref: str) -> tuple[TorchTarget, list[Grown]]:
    """The recipe and the parent of "bfloat16:NAME"."""
    return computed_with("bfloat16", DTYPE, {"dtype": "bfloat16"}, store, ref)
