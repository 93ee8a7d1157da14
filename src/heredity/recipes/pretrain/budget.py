"""A recipe as what a plan needs to know of it.

Promises: no torch, and no corpus where a vocabulary is given.
Leaves to others: the plan (train/planning/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from heredity.core.errors import UsageError
from heredity.core.readers import naming
from heredity.train.planning.workload import ARCHITECTURES, Workload

if TYPE_CHECKING:
    from heredity.corpus.images.card import PictureCard
    from heredity.recipes.pretrain.recipe import Pretrain

_SHAPE = ("layers", "width", "heads", "kv_heads", "head", "wide")


def every(n_steps: int, checks: int) -> int:
    """Steps between two looks at what is held out; there is one after the last, too."""
    return max(1, n_steps // checks)


def work(recipe: Pretrain, vocabulary: int = 0, side: int = 0, is_on_cpu: bool = False) -> Workload:
    """vocabulary: its tokens; 0: the corpus's. side: of a picture, in points; 0: the corpus's.

    What is held out is taken to be as much as is asked for where the corpus is not there, and no pair.
    Raises UsageError.
    """
    if recipe.architecture not in ARCHITECTURES:
        raise UsageError(
            f"'{recipe.architecture}' cannot be planned yet; these can: {', '.join(ARCHITECTURES)}.",
            key="architecture",
        )
    if side and recipe.objective != "contrastive":
        raise UsageError(
            f'--image-size is for images, and objective = "{recipe.objective}" has none. Leave it out.'
        )
    is_text = recipe.objective != "contrastive"
    with naming(recipe.file):
        of = _of_text(recipe, vocabulary) if is_text else _of_pairs(recipe, vocabulary, side)
    looks = -(-of.n_steps // every(of.n_steps, recipe.checks))
    return msgspec.structs.replace(
        of,
        looked_at=looks * of.looked_at,
        optimizer=recipe.optimizer,
        architecture=recipe.architecture,
        bytes=4 if recipe.dtype == "float32" else 2,
        is_on_cpu=is_on_cpu,
    )


def _of_text(recipe: Pretrain, vocabulary: int) -> Workload:
    from heredity.train.models import shapes

    is_encoder = recipe.objective == "masked"
    given = {name: getattr(recipe, name) for name in ("tokens", "batch", "rate", *_SHAPE)}
    dial = shapes.size_preset(
        recipe.size, vocabulary or _vocabulary(recipe), recipe.context, given, recipe.made_of
    )
    hidden = recipe.hidden if is_encoder else 1.0
    return Workload(dial.shape, dial.tokens, dial.batch, hidden=hidden, looked_at=_held_out(recipe))


def _of_pairs(recipe: Pretrain, vocabulary: int, side: int) -> Workload:
    from heredity.train.models import shapes as towers
    from heredity.train.models.shapes import TransformerShape

    n_pairs, held_out = recipe.pairs, 0
    if not (vocabulary and side and n_pairs):
        card = _pictures(recipe)
        n_pairs, held_out = (
            sum(row.pairs for row in card.splits if row.split == split) for split in ("train", "validation")
        )
        vocabulary, side = vocabulary or card.tokenizer.vocabulary, side or card.side
    given = {name: getattr(recipe, name) for name in ("pairs", "batch", "rate", *_SHAPE)}
    dial = towers.dual_size_preset(
        recipe.size, vocabulary, recipe.caption, (side, recipe.patch), n_pairs, given
    )
    shape = TransformerShape(
        **{name: getattr(dial.shape, name) for name in TransformerShape.__struct_fields__}
    )
    return Workload(shape, dial.tokens, dial.batch, picture=(side, recipe.patch), looked_at=held_out)


def _held_out(recipe: Pretrain) -> int:
    """Tokens that are looked at each time."""
    from heredity.corpus.integrity import NAME
    from heredity.corpus.reader import read_card

    if not (recipe.corpus / NAME).is_file():
        return recipe.held_out
    has = sum(row.tokens for row in read_card(recipe.corpus).splits if row.split == "validation")
    return min(recipe.held_out, has)


def _vocabulary(recipe: Pretrain) -> int:
    from heredity.corpus.integrity import NAME
    from heredity.corpus.reader import read_card

    if not (recipe.corpus / NAME).is_file():
        raise UsageError(
            f"{recipe.corpus} holds no corpus yet to take the vocabulary from. Give --vocab-size 65536."
        )
    return read_card(recipe.corpus).tokenizer.vocabulary


def _pictures(recipe: Pretrain) -> PictureCard:
    from heredity.corpus.images.reader import read_card
    from heredity.corpus.integrity import NAME

    if not (recipe.corpus / NAME).is_file():
        raise UsageError(
            f"{recipe.corpus} holds no corpus yet, whose vocabulary, pictures and pairs would count. Say"
            " --vocab-size 49408 --image-size 224, and pairs in the recipe."
        )
    return read_card(recipe.corpus)
