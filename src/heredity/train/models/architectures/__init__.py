"""Architectures of new models: each file gives a configuration that transformers, vLLM and llama.cpp support.

    config(shape, specials) -> dict    the contents of config.json
    OBJECTIVE                          "causal", "masked" or "contrastive"
    SHAPE                              of text models: a class of models/shapes.py

Promises: nothing here builds a network; transformers does.
Leaves to others: width and depth (models/shapes.py), and initialization (models/causal_lm.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from heredity.train.models.shapes import TransformerShape


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
