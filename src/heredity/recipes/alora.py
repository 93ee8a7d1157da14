"""Train an aLoRA adapter, which acts from its invocation on. The base stays as it is.

Everything before the invocation keeps the keys and values of the base. A cache of the base serves all its
activated adapters. By default the invocation is the template's generation prompt, the text
behind which an assistant answers: a plain chat wakes the adapter.

Source: Greenewald et al. 2025 (2504.12397). The files are PEFT's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from heredity.core.progress import phase
from heredity.lineage.types import Description, Grown
from heredity.recipes import setting
from heredity.recipes._training_run import invocation_note, invocation_tokens, run
from heredity.recipes.lora import Lora


@dataclass(frozen=True, kw_only=True)
class Alora(Lora):
    """Train an activated LoRA adapter of one parent on `data`. It acts from its invocation on."""

    invocation: str = setting(
        "", "Text that wakes the adapter; by default the template's, behind which an assistant answers."
    )

    kind = "alora"
    EXAMPLE = "heredity derive alora smollm2-135m-instruct --data tickets.jsonl --rank 16"

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Train the adapter of the one parent; the child has PEFT's files. Raises UsageError."""
        with phase(self.watch, "loading the libraries"):
            from heredity.train.models.causal_lm import LowRankAdapters
            from heredity.train.objectives.causal import Causal

        parent = self.start(parents)
        tokens = invocation_tokens(parent.folder, self.invocation)
        adapters = LowRankAdapters(self.rank, self.alpha, self.use_rslora, self.target_modules, tokens)
        made = run(self, parent, out, adapters, lambda _: Causal(), invocation=tokens)
        return dataclasses.replace(made, notes={**made.notes, **invocation_note(parent.folder, tokens)})


DERIVES = Alora
