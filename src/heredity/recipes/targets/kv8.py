"""Run a model with its KV cache in 8 bits: "kv8:NAME"."""

from __future__ import annotations

from heredity.engines import KV_CACHE
from heredity.lineage.types import Grown, StoredModels
from heredity.recipes.targets._answering import TorchTarget, computed_with

WRAPS_MODEL = True


def resolve(store: StoredModels, ref: str) -> tuple[TorchTarget, list[Grown]]:
    """The recipe and the parent of "kv8:NAME"."""
    return computed_with("kv8", KV_CACHE, {"bits": 8}, store, ref)
