"""Predict masked tokens: an encoder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from heredity.core import registry
from heredity.core.errors import UsageError
from heredity.recipes.pretrain.objectives import causal
from heredity.recipes.pretrain.objectives.causal import fingerprint as fingerprint
from heredity.recipes.pretrain.objectives.causal import lower_instead as lower_instead
from heredity.recipes.pretrain.objectives.causal import preset as preset

if TYPE_CHECKING:
    from heredity.recipes.pretrain.recipe import Pretrain, Writer
    from heredity.train.forecast import Workload

ARCHITECTURE = "modernbert"
SETTINGS = causal.TEXT_SETTINGS | {"mask_rate", "noise"}
UNIT: Literal["tokens", "pairs"] = "tokens"
MODALITY = "text"


def check(recipe: Pretrain) -> None:
    """A chunk has an end token on each side, and one token between them. Raises UsageError."""
    if recipe.context < 3:
        raise UsageError(
            f"context must be at least 3 tokens, not {recipe.context}.", code="bad-setting", key="context"
        )
    if not 0 < recipe.mask_rate < 1:
        raise UsageError(
            f"mask_rate must lie between 0 and 1, not {recipe.mask_rate:g}.",
            code="bad-setting",
            key="mask_rate",
        )


def child_name(recipe: Pretrain) -> str:
    """The architecture's name."""
    return recipe.architecture


def workload(recipe: Pretrain, vocabulary: int, side: int) -> Workload:  # noqa: ARG001
    """The workload, for a plan. Raises UsageError."""
    return causal.text_workload(recipe, vocabulary, head_share(recipe))


def head_share(recipe: Pretrain) -> float:
    """Only masked tokens are predicted."""
    return recipe.mask_rate


def flops_per_token(recipe: Pretrain) -> float:
    """Forward and backward FLOPs of a token, in documents as long as the corpus's."""
    from heredity.train.data.packed import END_TOKENS

    built = registry.load("train.models.architectures", recipe.architecture)
    length = causal.document_length(recipe, END_TOKENS)
    flops: float = built.flops_per_token(recipe.dial.shape, length, recipe.mask_rate)
    return flops


def train(recipe: Pretrain, folder: Path) -> Writer:
    """See recipes/pretrain/masked.py."""
    from heredity.recipes.pretrain import masked

    return partial(masked.write, recipe, masked.train(recipe, folder))
