"""Fine-tune all weights on conversations: the whole model learns what the assistant says in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heredity.core.progress import Watch
from heredity.lineage.types import Description, Grown
from heredity.recipes._training_run import Training, run, settings_of
from heredity.train.data.chat import Data

EXAMPLE = "heredity derive finetune smollm2-135m-instruct --data tickets.jsonl --epochs 2"


@dataclass(frozen=True)
class Finetune:
    """All weights of one parent, tuned on `data`."""

    data: Data
    training: Training = field(default_factory=Training)
    name: str = field(default="", compare=False)
    watch: Watch | None = field(default=None, compare=False)
    folder: Path | None = field(default=None, compare=False)

    kind = "finetune"

    def settings(self) -> dict[str, Any]:
        """Every setting, and the digest of the data."""
        return settings_of(self)

    def at(self, folder: Path) -> Finetune:
        """This recipe, its checkpoints in a folder."""
        return dataclasses.replace(self, folder=folder)

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Tune the one parent, whole safetensors."""
        from heredity.train.models.lora import Everything
        from heredity.train.objectives.causal import Causal

        (parent,) = parents
        return run(self, parent, out, Everything(), lambda _: Causal(), "safetensors")


DERIVES = Finetune
