"""Have a model answered by vLLM: "vllm:NAME"."""

from __future__ import annotations

from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.targets._answering import Answering, answered_by

WRAPS_MODEL = True


def resolve(store: Store, ref: str) -> tuple[Answering, list[Grown]]:
    """The recipe and the parent that "vllm:NAME" means. Its format must be safetensors."""
    return answered_by("vllm", "safetensors", store, ref)
