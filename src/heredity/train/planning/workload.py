"""The work of a pre-training: everything that a plan needs to know of a recipe."""

from __future__ import annotations

from typing import Literal

import msgspec

from heredity.core.records import Record
from heredity.train.models.shapes import DualShape, TransformerShape

ARCHITECTURES = ("bert", "clip", "llama", "modernbert", "qwen3", "siglip")


class Workload(Record, frozen=True):
    """The work of a run, counted in units: tokens, or image-caption pairs.

    `bytes`: of a number in matmuls, 2 for bfloat16.
    """

    shape: TransformerShape  # with a picture: of both towers, and `context` is of captions
    tokens: int  # units to read
    batch: int  # units per step
    optimizer: Literal["muon", "adamw"] = "muon"
    architecture: str = "qwen3"
    bytes: int = 2
    is_on_cpu: bool = False  # there, norms keep less for the backward pass (kernels/patch.py)
    head_share: float = 1.0  # share of tokens on which the head runs
    picture: tuple[int, int] | None = None  # sides of image and patch, in pixels
    n_evaluated: int = 0  # units of all evaluations

    @property
    def unit(self) -> Literal["token", "pair"]:
        """The unit of counts."""
        return "token" if self.picture is None else "pair"

    @property
    def chunk(self) -> int:
        """Units that are never split between devices: a context, or one pair."""
        return self.shape.context if self.picture is None else 1

    @property
    def is_whole(self) -> bool:
        """Whether a device has its share of a step in one microbatch: pairs are compared with all others."""
        return self.picture is not None

    @property
    def towers(self) -> DualShape:
        """The shape with its image."""
        assert self.picture is not None
        side, patch = self.picture
        return DualShape(**msgspec.structs.asdict(self.shape), side=side, patch=patch)

    @property
    def has_qk_norm(self) -> bool:
        """Whether queries and keys are normalized."""
        return self.architecture == "qwen3"

    @property
    def n_steps(self) -> int:
        """Optimizer steps."""
        return max(1, -(-self.tokens // self.batch))
