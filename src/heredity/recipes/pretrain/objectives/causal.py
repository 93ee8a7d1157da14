"""Predict the next token: a decoder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from heredity.core.errors import UsageError

if TYPE_CHECKING:
    from heredity.recipes.pretrain.recipe import Pretrain, Writer
    from heredity.train.forecast import Workload
    from heredity.train.models.shapes import SizePreset

TEXT_SETTINGS = frozenset({"context", "tokens", "z_loss", "validation_tokens", "reduce"})


def fingerprint(recipe: Pretrain) -> str:
    """The digest of the corpus."""
    return recipe.text.fingerprint


def lower_instead(recipe: Pretrain) -> str:
    """A shorter context."""
    return f"context ({recipe.context})"


def preset(recipe: Pretrain, vocabulary: int = 0) -> SizePreset:
    """The shape and settings that follow from the size. vocabulary: 0: the corpus's. Raises UsageError."""
    from heredity.train.models import shapes

    n_tokens = vocabulary or recipe.text.n_vocabulary
    return shapes.size_preset(recipe.size, n_tokens, recipe.context, recipe.sizes("tokens"), recipe.made_of)


def text_workload(recipe: Pretrain, vocabulary: int, head_share: float) -> Workload:
    """The workload, for a plan; the corpus is only needed if no vocabulary is given. Raises UsageError."""
    from heredity.train.forecast import Workload

    is_new = recipe.base is None
    dial = preset(recipe, vocabulary or _vocabulary(recipe)) if is_new else recipe.dial
    n_evaluated = _validation_tokens(recipe)
    return Workload(dial.shape, dial.tokens, dial.batch, head_share=head_share, n_evaluated=n_evaluated)


def document_length(recipe: Pretrain, n_added: int = 0) -> float:
    """Mean length in tokens of the documents that a token is in. n_added: tokens put around a chunk."""
    from heredity.train.models import shapes

    return shapes.mean_chunk_length(recipe.text.lengths("train"), recipe.dial.shape.context - n_added)


def _validation_tokens(recipe: Pretrain) -> int:
    """Tokens of one evaluation. Without the corpus, as many as the recipe asks for."""
    from heredity.corpus.storage import NAME, read_card

    if not (recipe.corpus / NAME).is_file():
        return recipe.validation_tokens
    n_tokens = sum(row.tokens for row in read_card(recipe.corpus).splits if row.split == "validation")
    return min(recipe.validation_tokens, n_tokens)


def _vocabulary(recipe: Pretrain) -> int:
    from heredity.corpus.storage import NAME, read_card

    if not (recipe.corpus / NAME).is_file():
        raise UsageError(
            f"{recipe.corpus} holds no corpus yet, so its vocabulary is unknown. "
            "Give one: --vocab-size 65536."
        )
    return read_card(recipe.corpus).tokenizer.vocabulary


ARCHITECTURE = "qwen3"
SETTINGS = TEXT_SETTINGS | {"kv_heads", "head_dim", "compile"}
UNIT: Literal["tokens", "pairs"] = "tokens"
MODALITY = "text"


def check(recipe: Pretrain) -> None:
    """Every setting is checked by the recipe itself."""


def child_name(recipe: Pretrain) -> str:  # noqa: ARG001
    """A base, whatever its architecture."""
    return "base"


def workload(recipe: Pretrain, vocabulary: int, side: int) -> Workload:  # noqa: ARG001
    """The workload, for a plan. Raises UsageError."""
    return text_workload(recipe, vocabulary, head_share(recipe))


def head_share(recipe: Pretrain) -> float:  # noqa: ARG001
    """Every token is predicted."""
    return 1.0


def flops_per_token(recipe: Pretrain) -> float:
    """Forward and backward FLOPs of a token, in documents as long as the corpus's."""
    from heredity.train.models import shapes

    return shapes.flops_per_token(recipe.dial.shape, document_length(recipe))


def train(recipe: Pretrain, folder: Path) -> Writer:
    """See recipes/pretrain/causal.py."""
    from heredity.recipes.pretrain import causal

    return partial(causal.write, recipe, causal.train(recipe, folder))
