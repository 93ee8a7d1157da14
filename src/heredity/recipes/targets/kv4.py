"""Run a model with its KV cache in 4 bits: "kv4:NAME"."""

from __future__ import annotations

from heredity.engines import KV_CACHE
from heredity.lineage.types import Grown, StoredModels
from heredity.recipes.targets._answering import TorchTarget, computed_with

WRAPS_MODEL = True


def resolve(store: StoredModels, ref: str) -> tuple[TorchTarget, list[Grown]]:
    """The recipe and the parent of "kv4:NAME"."""
    return computed_with("kv4", KV_CACHE, {"bits": 4}, store, ref)
