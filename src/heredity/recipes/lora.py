"""Train a low-rank adapter (LoRA) on conversations. The child is the adapter; the base stays as it is.

Source: Hu et al. 2021 (2106.09685). Rank-stabilized by default: Kalajdzievski 2023 (2312.03732).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from heredity.core.errors import UsageError
from heredity.core.progress import phase
from heredity.lineage.types import Description, Grown
from heredity.recipes import setting
from heredity.recipes._training_run import AnswerRecipe, run
from heredity.train.models.shapes import LINEAR_LAYERS


@dataclass(frozen=True, kw_only=True)
class Lora(AnswerRecipe):
    """Train a LoRA adapter of one parent on `data`."""

    lr: float = setting(2e-4, "Peak learning rate.")
    rank: int = setting(16, "Rank of the adapter's matrices.")
    alpha: float = setting(
        16.0, "The update is scaled by alpha / sqrt(rank), or by alpha / rank without use_rslora."
    )
    use_rslora: bool = setting(True, "Divide alpha by the square root of the rank (rsLoRA).")
    target_modules: tuple[str, ...] = setting(
        LINEAR_LAYERS,
        "The linear layers that get an adapter; in an architecture without these, all but routers.",
    )

    kind = "lora"
    EXAMPLE = "heredity derive lora smollm2-135m-instruct --data tickets.jsonl --rank 8"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1 or self.alpha <= 0 or not self.target_modules:
            raise UsageError(
                "rank must be at least 1, alpha above 0, and target_modules not empty. Given: "
                f"rank {self.rank}, alpha {self.alpha:g}, {len(self.target_modules)} target_modules."
            )

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Train the adapter of the one parent; the child has PEFT's files."""
        with phase(self.watch, "loading the libraries"):
            from heredity.train.models.causal_lm import LowRankAdapters
            from heredity.train.objectives.causal import Causal

        adapters = LowRankAdapters(self.rank, self.alpha, self.use_rslora, self.target_modules)
        return run(self, self.start(parents), out, adapters, lambda _: Causal())


DERIVES = Lora
