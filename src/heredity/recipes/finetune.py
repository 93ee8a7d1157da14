"""Fine-tune all weights on conversations. The model learns the assistant's messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from heredity.core.progress import phase
from heredity.lineage.types import Description, Grown
from heredity.recipes._training_run import AnswerRecipe, run


@dataclass(frozen=True, kw_only=True)
class Finetune(AnswerRecipe):
    """Fine-tune all weights of one parent on `data`."""

    kind = "finetune"
    EXAMPLE = "heredity derive finetune smollm2-135m-instruct --data tickets.jsonl --epochs 2"

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Tune the one parent; the child is whole safetensors."""
        with phase(self.watch, "loading the libraries"):
            from heredity.train.models.causal_lm import FullFinetune
            from heredity.train.objectives.causal import Causal

        return run(self, self.start(parents), out, FullFinetune(), lambda _: Causal())


DERIVES = Finetune
