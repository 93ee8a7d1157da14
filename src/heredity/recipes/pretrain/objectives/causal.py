"""Predict the next token: a decoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from heredity.recipes.pretrain.objectives import _text

if TYPE_CHECKING:
    from heredity.recipes.pretrain.causal import PretrainRun
    from heredity.recipes.pretrain.recipe import Pretrain
    from heredity.train.models.shapes import SizePreset
    from heredity.train.planning.workload import Workload

ARCHITECTURE = "qwen3"
SETTINGS = _text.SETTINGS | {"kv_heads", "head_dim", "compile"}
UNIT: Literal["tokens", "pairs"] = "tokens"
MODALITY = "text"


def check(recipe: Pretrain) -> None:
    """Every setting is checked by the recipe itself."""


def child_name(recipe: Pretrain) -> str:  # noqa: ARG001
    """A base, whatever its architecture."""
    return "base"


def fingerprint(recipe: Pretrain) -> str:
    """The digest of the corpus."""
    return recipe.text.fingerprint


def preset(recipe: Pretrain) -> SizePreset:
    """The shape and settings that follow from the size. Raises UsageError."""
    return _text.preset(recipe)


def workload(recipe: Pretrain, vocabulary: int, side: int) -> Workload:  # noqa: ARG001
    """The workload, for a plan. Raises UsageError."""
    return _text.workload(recipe, vocabulary, head_share(recipe))


def lower_instead(recipe: Pretrain) -> str:
    """A shorter context."""
    return f"context ({recipe.context})"


def head_share(recipe: Pretrain) -> float:  # noqa: ARG001
    """Every token is predicted."""
    return 1.0


def flops_per_token(recipe: Pretrain) -> float:
    """Forward and backward FLOPs of a token, in documents as long as the corpus's."""
    from heredity.train.models import shapes

    return shapes.flops_per_token(recipe.dial.shape, _text.document_length(recipe))


def train(recipe: Pretrain, folder: Path) -> PretrainRun:
    """See recipes/pretrain/causal.py."""
    from heredity.recipes.pretrain import causal

    return causal.train(recipe, folder)


def write(recipe: Pretrain, run: PretrainRun, out: Path) -> dict[str, str]:
    """See recipes/pretrain/causal.py."""
    from heredity.recipes.pretrain import causal

    return causal.write(recipe, run, out)
