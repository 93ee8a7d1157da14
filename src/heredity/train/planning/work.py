"""What a pre-training has to do: all that a plan needs to know of a recipe."""

from __future__ import annotations

from typing import Literal

from heredity.records import Record
from heredity.train.sizes import Shape

KNOWN = ("llama", "qwen3")


class Work(Record, frozen=True):
    """`bytes`: of a number that is multiplied, 2 for bfloat16."""

    shape: Shape
    tokens: int  # to read
    batch: int  # tokens a step
    optimizer: Literal["muon", "adamw"] = "muon"
    architecture: str = "qwen3"
    bytes: int = 2
    is_on_cpu: bool = False  # where norms keep less for their way back (train/norms.py)

    @property
    def has_qk_norm(self) -> bool:
        """Whether queries and keys are normalized."""
        return self.architecture == "qwen3"

    @property
    def n_steps(self) -> int:
        """Steps until all tokens are read."""
        return max(1, -(-self.tokens // self.batch))
