"""Predict the next token: a decoder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from heredity.recipes.pretrain.objectives import _text
from heredity.recipes.pretrain.objectives._text import fingerprint as fingerprint
from heredity.recipes.pretrain.objectives._text import lower_instead as lower_instead
from heredity.recipes.pretrain.objectives._text import preset as preset

if TYPE_CHECKING:
    from heredity.recipes.pretrain.recipe import Pretrain, Writer
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


def workload(recipe: Pretrain, vocabulary: int, side: int) -> Workload:  # noqa: ARG001
    """The workload, for a plan. Raises UsageError."""
    return _text.workload(recipe, vocabulary, head_share(recipe))


def head_share(recipe: Pretrain) -> float:  # noqa: ARG001
    """Every token is predicted."""
    return 1.0


def flops_per_token(recipe: Pretrain) -> float:
    """Forward and backward FLOPs of a token, in documents as long as the corpus's."""
    from heredity.train.models import shapes

    return shapes.flops_per_token(recipe.dial.shape, _text.document_length(recipe))


def train(recipe: Pretrain, folder: Path) -> Writer:
    """See recipes/pretrain/causal.py."""
    from heredity.recipes.pretrain import causal

    return partial(causal.write, recipe, causal.train(recipe, folder))
