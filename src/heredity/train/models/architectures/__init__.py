"""Architectures of new models: each file gives a configuration that transformers, vLLM and llama.cpp support.

    config(shape, specials) -> dict    the contents of config.json
    OBJECTIVE                          "causal", "masked" or "contrastive"
    SHAPE                              of text models: a class of models/shapes.py

Promises: nothing here builds a network; transformers does.
Leaves to others: width and depth (models/shapes.py), and initialization (models/causal_lm.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from heredity.core.errors import UsageError
from heredity.train.models.shapes import TransformerShape


def check_encoder(name: str, shape: TransformerShape, specials: Specials) -> None:
    """Raise UsageError for unsupported heads, and for a tokenizer without a mask token."""
    if shape.kv_heads != shape.heads or shape.heads * shape.head != shape.width:
        raise UsageError(
            f"{name} needs equal numbers of query and key heads that fill its width, not {shape.heads} and "
            f"{shape.kv_heads} heads of {shape.head} columns for a width of {shape.width}."
        )
    if specials.mask is None:
        raise UsageError("The tokenizer has no <|mask|> token. Build the corpus with one.")


def special_tokens(specials: Specials) -> dict[str, Any]:
    """Ids of an encoder's special tokens. The end token is on both sides of a text."""
    return {
        "bos_token_id": specials.end,
        "eos_token_id": specials.end,
        "cls_token_id": specials.end,
        "sep_token_id": specials.end,
        "pad_token_id": specials.pad,
        "mask_token_id": specials.mask,
    }


class Specials(NamedTuple):
    """Ids of the special tokens that a configuration names. None: the vocabulary has none."""

    end: int
    pad: int
    mask: int | None = None


class Architecture(Protocol):
    """A file of this folder."""

    OBJECTIVE: str

    def config(self, shape: TransformerShape, specials: Specials) -> dict[str, Any]:
        """The configuration of a model of this shape."""
