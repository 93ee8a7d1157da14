"""The interface of an objective of pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from heredity.recipes.pretrain.recipe import Pretrain
    from heredity.recipes.pretrain.training import PretrainRun
    from heredity.train.models.shapes import SizePreset
    from heredity.train.planning.workload import Workload


@runtime_checkable
class PretrainObjective(Protocol):
    """A file of this folder."""

    ARCHITECTURE: str  # the default one
    SETTINGS: frozenset[str]  # settings that not every objective has
    UNIT: Literal["tokens", "pairs"]  # what is counted
    MODALITY: str  # of the child

    def check(self, recipe: Pretrain) -> None:
        """Raise UsageError for impossible values of this objective's settings."""

    def child_name(self, recipe: Pretrain) -> str:
        """The child's name before its size, if the recipe gives no name."""

    def fingerprint(self, recipe: Pretrain) -> str:
        """The digest of the corpus."""

    def preset(self, recipe: Pretrain) -> SizePreset:
        """The shape and settings that follow from the size, for this corpus. Raises UsageError."""

    def workload(self, recipe: Pretrain, vocabulary: int, side: int) -> Workload:
        """The workload, for a plan. vocabulary, side of an image in pixels; 0: the corpus's."""

    def lower_instead(self, recipe: Pretrain) -> str:
        """The setting, other than size, that lowers the memory of a run."""

    def head_share(self, recipe: Pretrain) -> float:
        """Share of the tokens for which logits are computed."""

    def flops_per_token(self, recipe: Pretrain) -> float:
        """Forward and backward FLOPs of a token; 0: unknown, so that no time is predicted."""

    def train(self, recipe: Pretrain, folder: Path) -> PretrainRun:
        """Draw weights from the seed and run every step. Raises OutOfMemory before the first."""

    def write(self, recipe: Pretrain, run: PretrainRun, out: Path) -> dict[str, str]:
        """Write the child's files. Returns the notes of its record."""
