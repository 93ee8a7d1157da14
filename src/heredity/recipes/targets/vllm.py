"""Run a model in vLLM: "vllm:NAME"."""

from __future__ import annotations

from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.targets._answering import EngineTarget, answered_by

WRAPS_MODEL = True


def resolve(store: Store, ref: str) -> tuple[EngineTarget, list[Grown]]:
    """The recipe and the parent of "vllm:NAME". The format must be safetensors or adapter."""
    return answered_by("vllm", ("safetensors", "adapter"), store, ref)
