"""Tune a low-rank adapter beside frozen weights (LoRA): the child is the adapter alone, over its base.

Source: Hu et al. 2021 (2106.09685); rank-stabilized by default, Kalajdzievski 2023 (2312.03732).
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

EXAMPLE = "heredity derive lora smollm2-135m-instruct --data tickets.jsonl --rank 8"


@dataclass(frozen=True)
class Lora:
    """An adapter over one parent, tuned on `data`."""

    data: Data
    training: Training = field(default_factory=lambda: Training(rate=2e-4))
    rank: int = setting(16, "Rank of the adapter.")
    alpha: float = setting(16.0, "Its strength: alpha / sqrt(rank), or alpha / rank where not stabilized.")
    is_stabilized: bool = setting(True, "Whether the strength is divided by the root of the rank (rsLoRA).")
    targets: tuple[str, ...] = setting(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "The linear layers that it lies beside.",
    )
    name: str = field(default="", compare=False)
    watch: Watch | None = field(default=None, compare=False)
    folder: Path | None = field(default=None, compare=False)

    kind = "lora"

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not self.targets:
            raise UsageError(f"An adapter of rank {self.rank} and alpha {self.alpha:g} is none.")

    def settings(self) -> dict[str, Any]:
        """Every setting, and the digest of the data."""
        return settings_of(self)

    def at(self, folder: Path) -> Lora:
        """This recipe, its checkpoints in a folder."""
        return dataclasses.replace(self, folder=folder)

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Tune an adapter over the one parent, in PEFT's files."""
        from heredity.train.models.lora import LowRankAdapters as Adapter
        from heredity.train.objectives.causal import Causal

        (parent,) = parents
        adapter = Adapter(self.rank, self.alpha, self.is_stabilized, self.targets)
        return run(self, parent, out, adapter, lambda _: Causal(), "adapter")


DERIVES = Lora
