"""Kinds of new models: each file gives a configuration that transformers, vLLM, llama.cpp and PEFT know.

    config(shape, specials) -> dict    what stands in config.json, `model_type` and all
    OBJECTIVE                          what such a model learns: "causal", "masked" or "contrastive"
    SHAPE                              of text: what it is made of, a class of sizes.py

Promises: nothing here is a network; transformers makes it.
Leaves to others: how wide and deep (sizes.py), and the drawing of weights (network.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from heredity.train.models.shapes import TransformerShape


class Specials(NamedTuple):
    """The numbers of the tokens that a configuration names; None: the vocabulary has none."""

    end: int
    pad: int
    mask: int | None = None


class Architecture(Protocol):
    """A file of this folder."""

    OBJECTIVE: str

    def config(self, shape: TransformerShape, specials: Specials) -> dict[str, Any]:
        """The configuration of a model of this shape."""
