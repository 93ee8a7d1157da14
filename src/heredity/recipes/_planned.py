"""A recipe as what a plan needs to know of it.

Promises: no torch, and no corpus where a vocabulary is given.
Leaves to others: the plan (train/planning/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from heredity.errors import UsageError
from heredity.train.planning.work import KNOWN, Work

if TYPE_CHECKING:
    from heredity.recipes.pretrain import Pretrain

_SHAPE = ("layers", "width", "heads", "kv_heads", "head", "wide")


def work(recipe: Pretrain, vocabulary: int = 0, is_on_cpu: bool = False) -> Work:
    """vocabulary: its tokens; 0: the corpus's. Raises UsageError."""
    from heredity.train import sizes

    if recipe.architecture not in KNOWN:
        raise UsageError(f"'{recipe.architecture}' cannot be planned yet; these can: {', '.join(KNOWN)}.")
    given = {name: getattr(recipe, name) for name in ("tokens", "batch", "rate", *_SHAPE)}
    dial = sizes.dial(recipe.size, vocabulary or _vocabulary(recipe), recipe.context, given)
    size = 4 if recipe.dtype == "float32" else 2
    return Work(dial.shape, dial.tokens, dial.batch, recipe.optimizer, recipe.architecture, size, is_on_cpu)


def _vocabulary(recipe: Pretrain) -> int:
    from heredity.train.corpus.checked import NAME
    from heredity.train.corpus.reader import read_card

    if not (recipe.corpus / NAME).is_file():
        raise UsageError(
            f"{recipe.corpus} holds no corpus yet, whose vocabulary would count. Say one: --vocabulary 65536."
        )
    return read_card(recipe.corpus).tokenizer.vocabulary
