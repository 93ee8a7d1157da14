"""Run a model in vLLM: "vllm:NAME"."""

from __future__ import annotations

from heredity.engines.vllm import check_adapter
from heredity.lineage.types import Grown, StoredModels
from heredity.recipes.targets._answering import EngineTarget, answered_by

WRAPS_MODEL = True


def resolve(store: StoredModels, ref: str) -> tuple[EngineTarget, list[Grown]]:
    """The recipe and the parent of "vllm:NAME". The format must be safetensors or adapter."""
    recipe, parents = answered_by("vllm", ("safetensors", "adapter"), store, ref)
    if len(parents) > 1:  # an adapter that vLLM cannot serve is refused before anything is asked
        adapter, base = parents
        check_adapter(adapter.record.name, adapter.folder, base.folder, base.record.name)
    return recipe, parents
