"""Tune on pairs of a better and a worse answer, held near the parent (DPO).

Source: Rafailov et al. 2023 (2305.18290).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heredity.core.errors import UsageError
from heredity.core.progress import Watch
from heredity.lineage.types import Description, Grown
from heredity.recipes._training_run import Training, run, setting, settings_of
from heredity.train.data.chat import Data

EXAMPLE = "heredity derive preference smollm2-135m-instruct --data pairs.jsonl"


@dataclass(frozen=True)
class Preference:
    """All weights of one parent, on rows of prompt, chosen and rejected."""

    data: Data
    training: Training = field(default_factory=lambda: Training(rate=1e-6))
    strength: float = setting(0.1, "How dear it is to move away from the parent (beta).")
    name: str = field(default="", compare=False)
    watch: Watch | None = field(default=None, compare=False)
    folder: Path | None = field(default=None, compare=False)

    kind = "preference"

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise UsageError(f"strength must be above 0, not {self.strength:g}.")
        if bare := next((each.where for each in self.data.dialogues if each.rejected is None), None):
            raise UsageError(
                f"{bare} has no rejected answer; rows need prompt, chosen and rejected.",
                code="rejected-missing",
            )

    def settings(self) -> dict[str, Any]:
        """Every setting, and the digest of the data."""
        return settings_of(self)

    def at(self, folder: Path) -> Preference:
        """This recipe, its checkpoints in a folder."""
        return dataclasses.replace(self, folder=folder)

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Tune the one parent, whole safetensors; the reference is the parent itself."""
        from heredity.train.models import causal_lm
        from heredity.train.models.lora import Everything
        from heredity.train.objectives.preference import PreferenceObjective

        (parent,) = parents

        def objective(net: Any) -> PreferenceObjective:
            reference = causal_lm.load(parent.folder, str(net.model.dtype).removeprefix("torch."))
            reference.model.requires_grad_(False)
            return PreferenceObjective(reference, self.strength)

        return run(self, parent, out, Everything(), objective, "safetensors")


DERIVES = Preference
