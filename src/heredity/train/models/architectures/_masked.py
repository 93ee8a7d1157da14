"""What all encoders of masked text have: heads that fill their width, and a mask among their tokens."""

from __future__ import annotations

from typing import Any

from heredity.core.errors import UsageError
from heredity.train.models.architectures import Specials
from heredity.train.models.shapes import TransformerShape


def check_encoder(name: str, shape: TransformerShape, specials: Specials) -> None:
    """Raise UsageError for heads that an encoder cannot have, and for a tokenizer without a mask."""
    if shape.kv_heads != shape.heads or shape.heads * shape.head != shape.width:
        raise UsageError(
            f"{name} has as many heads for keys as for queries, and they fill its width: not"
            f" {shape.heads} and {shape.kv_heads} heads of {shape.head} columns in {shape.width}."
        )
    if specials.mask is None:
        raise UsageError("The tokenizer has no <|mask|>, which stands in a gap. Build the corpus with it.")


def special_tokens(specials: Specials) -> dict[str, Any]:
    """The numbers of an encoder's special tokens: the end stands on both sides of a text."""
    return {
        "bos_token_id": specials.end,
        "eos_token_id": specials.end,
        "cls_token_id": specials.end,
        "sep_token_id": specials.end,
        "pad_token_id": specials.pad,
        "mask_token_id": specials.mask,
    }
