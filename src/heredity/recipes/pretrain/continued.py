"""Continue the pre-training of a base on a corpus: a child with an edge to the base, not a resumed run.

The base sets shape, architecture and tokenizer. The corpus must have the base's tokens: build it with
`folder` under [tokenizer]. Without `lr` the peak is a tenth of a new model's: a high one forgets more.

Source: continual pre-training with a learning rate that rises and decays again, Ibrahim et al. 2024
(2403.08763).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from heredity.core.errors import UsageError
from heredity.lineage.types import Grown

if TYPE_CHECKING:
    from heredity.recipes.pretrain.recipe import Pretrain
    from heredity.train.models.shapes import SizePreset, TransformerShape

LR_SHARE = 0.1  # of the peak of a new model of this shape
_SHAPE = {
    "layers": "layers", "hidden_size": "width", "heads": "heads", "kv_heads": "kv_heads", "head_dim": "head",
    "ffn_size": "wide",
}  # fmt: skip


def architecture(base: Grown) -> str:
    """The architecture of a base, by transformers' name. Raises Unavailable if none can be trained."""
    from heredity.formats.weights import read_config

    return str(read_config(base.folder).model_type)


def shape_of(base: Grown, context: int) -> TransformerShape:
    """The shape of a base, for chunks of `context` tokens. Raises UsageError if they are too long for it."""
    from heredity.formats.weights import read_config, setting
    from heredity.train.models.shapes import TransformerShape

    config = read_config(base.folder)
    if context > (longest := int(config.max_position_embeddings)):
        raise UsageError(
            f"context ({context:,}) must be at most the {longest:,} tokens of '{base.record.name}'.",
            code="bad-setting",
            key="context",
        )
    return TransformerShape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=setting(config, "num_key_value_heads", config.num_attention_heads),
        head=setting(config, "head_dim", config.hidden_size // config.num_attention_heads),
        wide=config.intermediate_size,
        context=context,
        vocabulary=config.vocab_size,
        is_tied=bool(config.tie_word_embeddings),
    )


def preset(recipe: Pretrain, base: Grown) -> SizePreset:
    """The base's shape; one pass over the corpus, unless tokens are given. Raises UsageError."""
    from heredity.train.models import shapes

    shape = shape_of(base, recipe.context)
    for name, field in _SHAPE.items():
        if (given := getattr(recipe, name)) and given != getattr(shape, field):
            raise UsageError(
                f"{name} is {getattr(shape, field)} in '{base.record.name}', not {given}. Leave it out.",
                code="set-by-base",
                key=name,
            )
    figures = {"tokens": recipe.tokens or recipe.text.n_tokens("train")}
    if recipe.batch_size:
        figures["batch"] = recipe.batch_size
    found = shapes.preset_of(shape, figures)
    return msgspec.structs.replace(found, rate=recipe.lr or found.rate * LR_SHARE)


def refuse_other_tokens(corpus: Path, base: Grown) -> None:
    """Raise UsageError if the corpus was built with another tokenizer than the base's."""
    from tokenizers import Tokenizer

    mine, theirs = (
        Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab() for folder in (corpus, base.folder)
    )
    if mine != theirs:
        raise UsageError(
            f"{corpus} has other tokens than '{base.record.name}'. Build it with the base's tokenizer: "
            f'folder = "{base.folder}" under [tokenizer].',
            code="tokenizers-differ",
            key="corpus",
        )
