"""What a pre-training has to do: all that a plan needs to know of a recipe."""

from __future__ import annotations

from typing import Literal

import msgspec

from heredity.core.records import Record
from heredity.train.models.shapes import DualShape, TransformerShape

ARCHITECTURES = ("bert", "clip", "llama", "modernbert", "qwen3", "siglip")


class Workload(Record, frozen=True):
    """What is read is counted in units: tokens, or pairs where there is a picture.

    `bytes`: of a number that is multiplied, 2 for bfloat16.
    """

    shape: TransformerShape  # with a picture: of both towers, and `context` is a caption's
    tokens: int  # units to read
    batch: int  # units a step
    optimizer: Literal["muon", "adamw"] = "muon"
    architecture: str = "qwen3"
    bytes: int = 2
    is_on_cpu: bool = False  # where norms keep less for their way back (train/norms.py)
    hidden: float = 1.0  # share of the tokens on which the head is run
    picture: tuple[int, int] | None = None  # its side, and that of a patch, in points
    looked_at: int = 0  # units that are told on the way and not learned, of all looks

    @property
    def unit(self) -> Literal["token", "pair"]:
        """What is counted."""
        return "token" if self.picture is None else "pair"

    @property
    def piece(self) -> int:
        """Units that no two devices share: a context, or one pair."""
        return self.shape.context if self.picture is None else 1

    @property
    def is_whole(self) -> bool:
        """Whether a device multiplies its share of a step at once: each pair is told from all others."""
        return self.picture is not None

    @property
    def towers(self) -> DualShape:
        """The shape with its picture."""
        assert self.picture is not None
        side, patch = self.picture
        return DualShape(**msgspec.structs.asdict(self.shape), side=side, patch=patch)

    @property
    def has_qk_norm(self) -> bool:
        """Whether queries and keys are normalized."""
        return self.architecture == "qwen3"

    @property
    def n_steps(self) -> int:
        """Steps until all is read."""
        return max(1, -(-self.tokens // self.batch))
