"""A decoder with an activated LoRA (aLoRA), which changes a row from its invocation on.

A token on which the adapter acts is marked (prefixes.py), so every place that compares tokens tells the two
apart. A computed prefix, and a cached part of a prompt, hold no marked token, unless the row that begins with
them has the same ones. Before the invocation all keys and values have the bits of the base; a pass without a
marked token multiplies nothing but the base.

Promises: the numbers of a row depend only on that row: the update is computed at the width of the pass. Its
widths are proven with every row changed, which multiplies all that a pass may multiply.
Leaves to others: the arithmetic (decoder.py), and the adapter (formats/adapted.py, formats/activation.py).
"""

from __future__ import annotations

import torch

from heredity.engines.torch.decoder import Attend, Decoder, ResidualHook
from heredity.engines.torch.prefixes import marked
from heredity.formats.activation import find_last
from heredity.formats.weights import Weights


class ActivatedDecoder(Decoder):
    """A decoder whose adapter changes the marked tokens of a pass."""

    def _forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, attend: Attend, is_read: bool = True
    ) -> torch.Tensor:
        is_marked = tokens < 0
        assert self.weights.gate is not None
        with self.weights.gate.only(is_marked):
            return super()._forward(torch.where(is_marked, ~tokens, tokens), positions, attend, is_read)

    def _like(self, weights: Weights, hook: ResidualHook | None) -> Decoder:
        return ActivatedDecoder(weights, self.dtype, hook)


def activated(decoder: Decoder) -> Decoder:
    """Return a decoder that heeds the invocation of its adapter, if it has an activated one.

    Before, it changes every row, which is how it is probed.
    """
    weights = decoder.weights
    return decoder if weights.gate is None else ActivatedDecoder(weights, decoder.dtype)


def placed(decoder: Decoder, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """Return a whole prompt with the tokens marked on which an activated adapter of the decoder acts."""
    invocation = decoder.weights.invocation
    return marked_from(prompt, invocation, 1) if invocation else prompt


def marked_from(prompt: tuple[int, ...], invocation: tuple[int, ...], number: int) -> tuple[int, ...]:
    """Return a prompt with its tokens marked from the last occurrence of an adapter's invocation on."""
    start = find_last(prompt, invocation)
    return prompt if start is None else (*prompt[:start], *marked(prompt[start:], number))
