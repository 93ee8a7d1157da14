"""Tune on pairs of a chosen and a rejected answer (DPO).

The loss penalizes a move away from the parent.

Source: Rafailov et al. 2023 (2305.18290).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from heredity.core.errors import UsageError
from heredity.core.progress import phase
from heredity.lineage.types import Description, Grown
from heredity.recipes import setting
from heredity.recipes._training_run import TrainingRecipe, run

if TYPE_CHECKING:
    from heredity.train.models.causal_lm import CausalLM


@dataclass(frozen=True, kw_only=True)
class Preference(TrainingRecipe):
    """Tune all weights of one parent on rows of prompt, chosen and rejected."""

    lr: float = setting(1e-6, "Peak learning rate.")
    beta: float = setting(0.1, "Weight of the penalty for moving away from the parent.")

    kind = "preference"
    EXAMPLE = "heredity derive preference smollm2-135m-instruct --data pairs.jsonl"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise UsageError(f"beta must be above 0, not {self.beta:g}.", key="beta")
        if bare := next((each.where for each in self.examples.dialogues if each.rejected is None), None):
            raise UsageError(f"{bare} has no rejected answer; rows need prompt, chosen and rejected.")

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Tune the one parent, which is also the reference; the child is whole safetensors."""
        with phase(self.watch, "loading the libraries"):
            from heredity.train.models import causal_lm
            from heredity.train.models.causal_lm import FullFinetune
            from heredity.train.objectives.preference import PreferenceObjective

        (parent,) = parents

        def objective(net: CausalLM) -> PreferenceObjective:
            dtype = str(net.model.dtype).removeprefix("torch.")
            with phase(self.watch, "loading the reference"):
                reference = causal_lm.load(parent.folder, dtype, self.device)
            reference.model.requires_grad_(False)
            return PreferenceObjective(reference, self.beta)

        return run(self, parent, out, FullFinetune(), objective)


DERIVES = Preference
