"""Run a model in other arithmetic. The child has its files.

    llamacpp:NAME transformers:NAME vllm:NAME    in another engine
    float32:NAME bfloat16:NAME                   in the torch engine, in this dtype
    kv4:NAME kv8:NAME                            with a KV cache of 4 or 8 bits

Two engines compute one model's answers in different arithmetic, so they are two models of the lineage. So are
two settings of the torch engine: a rounded KV cache, another dtype. A study has a row for each, and a paired
comparison shows the effect of the arithmetic.

Promises: the files are hard links if the file system allows, otherwise copies; their hashes are the parent's.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from heredity import engines
from heredity.core.errors import UsageError
from heredity.core.records import why_not_generative
from heredity.lineage.types import Description, Grown, StoredModels
from heredity.recipes.adopt import link_files

WRAPS_MODEL = True
_READS = {  # by engine: the formats of models
    "llamacpp": ("gguf",),
    "transformers": ("safetensors", "adapter"),
    "vllm": ("safetensors", "adapter"),
}
_SETTINGS: dict[str, tuple[str, dict[str, object]]] = {  # of the torch engine: kind and value
    "bfloat16": (engines.DTYPE, {"dtype": "bfloat16"}),
    "float32": (engines.DTYPE, {"dtype": "float32"}),
    "kv4": (engines.KV_CACHE, {"bits": 4}),
    "kv8": (engines.KV_CACHE, {"bits": 8}),
}
_FORMS = ("dequantize", "merge_adapter")  # recipes whose child holds the same weights as its parent


@dataclass(frozen=True)
class EngineTarget:
    """The parent unchanged, run in this engine."""

    engine: str

    kind = "engine"

    def settings(self) -> dict[str, Any]:
        """The engine."""
        return {"engine": self.engine}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Link the first parent's files into `out`. Of an adapter the second is its base."""
        link_files(parents[0], out)
        model = parents[0].record
        form: Literal["gguf", "adapter", "safetensors"] = "safetensors"
        if model.format in ("gguf", "adapter"):
            form = model.format
        return Description(
            f"{self.engine}:{model.name}",
            model.family,
            model.licence,
            form,
            model.modality,
            model.notes,
        )


@dataclass(frozen=True)
class TorchTarget:
    """The parent unchanged, run in the torch engine with one setting. `name` is not recorded as a setting."""

    kind: str
    setting: dict[str, object]
    name: str = field(compare=False)

    def settings(self) -> dict[str, object]:
        """The one setting."""
        return self.setting

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Link the one parent's files into `out`."""
        (parent,) = parents
        link_files(parent, out)
        model = parent.record
        form: Literal["int8", "safetensors"] = "int8" if model.format == "int8" else "safetensors"
        return Description(self.name, model.family, model.licence, form, model.modality, model.notes)


def resolve(store: StoredModels, ref: str) -> tuple[EngineTarget | TorchTarget, list[Grown]]:
    """The recipe and the parents of "PREFIX:NAME". Raises UsageError for a model that cannot have it."""
    prefix = ref.partition(":")[0]
    return _answered_by(prefix, store, ref) if prefix in _READS else _computed_with(prefix, store, ref)


def _answered_by(engine: str, store: StoredModels, ref: str) -> tuple[EngineTarget, list[Grown]]:
    """The model, and of an adapter its base behind it. An adapter that vLLM cannot serve is refused."""
    name = ref.removeprefix(f"{engine}:")
    parent, reads = store.get(name), _READS[engine]
    if parent.record.format not in reads:
        raise UsageError(
            f"'{name}' has the format {parent.record.format}; the engine {engine} reads"
            f" {' or '.join(reads)}.{_advice(store, engine, reads[0], parent)}"
        )
    if parent.record.format != "adapter":
        return EngineTarget(engine), [parent]
    base = store.base(parent)
    if engine == "vllm":
        from heredity.engines.vllm import check_adapter

        check_adapter(parent.record.name, parent.folder, base.folder, base.record.name)
    return EngineTarget(engine), [parent, base]


def _advice(store: StoredModels, engine: str, reads: str, parent: Grown) -> str:
    """Name the same weights in a format that the engine reads, or the command that makes them."""
    for model in store.models():
        is_form = model.recipe.kind in _FORMS and parent.record.id in model.parents
        if is_form and model.format == reads:
            return f" The same weights in that format: {engine}:{model.name}"
    if parent.record.format == "adapter":
        return f" Write one, and pull it: heredity export {shlex.quote(parent.record.name)} --to gguf DIR"
    is_made_by_asking = engine != "llamacpp" and parent.record.format == "gguf"
    return f" To make it: heredity ask {parent.record.name} hello" if is_made_by_asking else ""


def _computed_with(prefix: str, store: StoredModels, ref: str) -> tuple[TorchTarget, list[Grown]]:
    """The model: a GGUF is dequantized first, as always in the torch engine.

    One of another engine, an adapter, and one that has such a setting already are refused.
    """
    named = store.get(ref.removeprefix(f"{prefix}:"))
    record = named.record
    name, why = f"{prefix}:{record.name}", ""
    if engines.choose(record) != "torch" or why_not_generative(record):
        why = "only a model that the torch engine answers can have this setting"
    elif record.format == "adapter":
        why = f"merge the adapter first: heredity derive merge_adapter {record.name} BASE"
    elif record.recipe.kind in (engines.KV_CACHE, engines.DTYPE):
        why = "a model has one setting of the engine, not two"
    if why:
        raise UsageError(f"'{name}': {why}.")
    return TorchTarget(*_SETTINGS[prefix], name), [store.ready(named)]
