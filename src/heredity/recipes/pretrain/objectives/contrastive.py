"""Match images with their captions: a dual encoder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from heredity.core.errors import UsageError

if TYPE_CHECKING:
    from heredity.recipes.pretrain.recipe import Pretrain, Writer
    from heredity.train.forecast import Workload
    from heredity.train.models.shapes import SizePreset

ARCHITECTURE = "clip"
SETTINGS = frozenset({"pairs", "caption_tokens", "patch_size", "shift"})
UNIT: Literal["tokens", "pairs"] = "pairs"
MODALITY = "image-text"


def check(recipe: Pretrain) -> None:
    """A caption has one token and an end. Raises UsageError."""
    if recipe.caption_tokens < 2:
        raise UsageError(
            f"caption_tokens must be at least 2, not {recipe.caption_tokens}.",
            code="bad-setting",
            key="caption_tokens",
        )


def child_name(recipe: Pretrain) -> str:
    """The architecture's name."""
    return recipe.architecture


def fingerprint(recipe: Pretrain) -> str:
    """The digest of the corpus."""
    return recipe.images.fingerprint


def preset(recipe: Pretrain) -> SizePreset:
    """The shape and settings that follow from the size. Raises UsageError."""
    corpus = recipe.images
    return _preset(recipe, corpus.n_vocabulary, corpus.card.side, len(corpus.split("train")))


def _preset(recipe: Pretrain, vocabulary: int, side: int, n_pairs: int) -> SizePreset:
    from heredity.train.models import shapes

    picture = (side, recipe.patch_size)
    return shapes.dual_size_preset(
        recipe.size, vocabulary, recipe.caption_tokens, picture, n_pairs, recipe.sizes("pairs")
    )


def workload(recipe: Pretrain, vocabulary: int, side: int) -> Workload:
    """The workload, for a plan. Raises UsageError."""
    from heredity.train.forecast import Workload
    from heredity.train.models.shapes import TransformerShape

    n_pairs, n_validation = recipe.pairs, 0
    if not (vocabulary and side and n_pairs):
        from heredity.corpus.storage import NAME, read_image_card

        if not (recipe.corpus / NAME).is_file():
            raise UsageError(
                f"{recipe.corpus} holds no corpus yet, so its vocabulary, images and pairs are unknown. "
                "Give --vocab-size 49408 --image-size 224, and pairs in the recipe."
            )
        card = read_image_card(recipe.corpus)
        n_pairs, n_validation = (
            sum(row.pairs for row in card.splits if row.split == split) for split in ("train", "validation")
        )
        vocabulary, side = vocabulary or card.tokenizer.vocabulary, side or card.side
    dial = _preset(recipe, vocabulary, side, n_pairs)
    shape = TransformerShape(
        **{name: getattr(dial.shape, name) for name in TransformerShape.__struct_fields__}
    )
    picture = (side, recipe.patch_size)
    return Workload(shape, dial.tokens, dial.batch, picture=picture, n_evaluated=n_validation)


def lower_instead(recipe: Pretrain) -> str:
    """A smaller batch: each image is compared with every caption of it."""
    return f"batch_size ({recipe.dial.batch} pairs)"


def head_share(recipe: Pretrain) -> float:  # noqa: ARG001
    """Every caption is embedded."""
    return 1.0


def flops_per_token(recipe: Pretrain) -> float:  # noqa: ARG001
    """Unknown: the two encoders' matmuls were not measured."""
    return 0.0


def train(recipe: Pretrain, folder: Path) -> Writer:
    """See recipes/pretrain/contrastive.py."""
    from heredity.recipes.pretrain import contrastive

    return partial(contrastive.write, recipe, contrastive.train(recipe, folder))
