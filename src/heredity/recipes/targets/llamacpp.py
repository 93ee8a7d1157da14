"""Run a model in llama.cpp: "llamacpp:NAME"."""

from __future__ import annotations

from heredity.lineage.types import Grown, StoredModels
from heredity.recipes.targets._answering import EngineTarget, answered_by

WRAPS_MODEL = True


def resolve(store: StoredModels, ref: str) -> tuple[EngineTarget, list[Grown]]:
    """The recipe and the parent of "llamacpp:NAME". The format must be gguf."""
    return answered_by("llamacpp", ("gguf",), store, ref)
