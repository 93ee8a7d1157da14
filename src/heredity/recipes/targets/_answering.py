"""Have a model answered by another engine: "llamacpp:NAME", "vllm:NAME". A child with its parent's files.

Two engines compute one model's answers in different arithmetic, so they are two models of the lineage. A
study has a row for each, and a paired comparison shows the effect of the arithmetic.

Promises: the files are hard links where the disk can (else copies); their hashes are the parent's.
Leaves to others: answering (engines/).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heredity.core.errors import UsageError
from heredity.core.files import explain_full_disk
from heredity.lineage.store import Store
from heredity.lineage.types import Description, Grown

_FORMS = ("dequantize", "merge_adapter")  # of these the child is its parent's weights and nothing else


@dataclass(frozen=True)
class EngineTarget:
    """The parent as it is, answered by this engine."""

    engine: str

    kind = "engine"

    def settings(self) -> dict[str, Any]:
        """The engine."""
        return {"engine": self.engine}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Link the one parent's files into `out`."""
        (parent,) = parents
        for file in parent.record.files:
            source, target = parent.folder / file.path, out / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:  # another file system, or one without links
                with explain_full_disk(out, file.bytes):
                    shutil.copyfile(source, target)
        said = parent.record
        return Description(
            f"{self.engine}:{said.name}",
            said.family,
            said.licence,
            said.format if said.format == "gguf" else "safetensors",
            said.modality,
            said.notes,
        )


def answered_by(engine: str, reads: str, store: Store, ref: str) -> tuple[EngineTarget, list[Grown]]:
    """The recipe and the parent that "ENGINE:NAME" means. Raises UsageError unless its format is `reads`."""
    name = ref.removeprefix(f"{engine}:")
    parent = store.get(name)
    if parent.record.format != reads:
        raise UsageError(
            f"'{name}' is of the format {parent.record.format}; the engine {engine} reads"
            f" {reads}.{_advice(store, engine, reads, parent)}",
            code="engine-format",
        )
    return EngineTarget(engine), [parent]


def _advice(store: Store, engine: str, reads: str, parent: Grown) -> str:
    """The same weights in a form that the engine reads, if they exist."""
    for model in store.models():
        is_form = model.recipe.kind in _FORMS and parent.record.id in model.parents
        if is_form and model.format == reads:
            return f" The same weights in that form: {engine}:{model.name}"
    is_made_by_asking = engine == "vllm" and parent.record.format == "gguf"
    return f" To make that form: heredity ask {parent.record.name} hello" if is_made_by_asking else ""
