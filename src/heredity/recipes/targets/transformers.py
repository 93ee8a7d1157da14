"""Run a model in transformers: "transformers:NAME"."""

from __future__ import annotations

from heredity.lineage.types import Grown, StoredModels
from heredity.recipes.targets._answering import EngineTarget, answered_by

WRAPS_MODEL = True


def resolve(store: StoredModels, ref: str) -> tuple[EngineTarget, list[Grown]]:
    """The recipe and the parent of "transformers:NAME". The format must be safetensors or adapter."""
    return answered_by("transformers", ("safetensors", "adapter"), store, ref)
