"""An activated LoRA (aLoRA) over a model of transformers: which tokens of a pass it changes.

Promises: a prompt is changed from its last invocation on, and an answer as the prompt's last token is, as in
PEFT. A prompt without an invocation is the base's.
Leaves to others: the update and the passes (engine.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch

from heredity.formats.activation import Gate, find_last


class Activation:
    """The invocation of an adapter, and its gate in every adapted module."""

    def __init__(self, invocation: tuple[int, ...], device: torch.device) -> None:
        self._invocation, self._device = invocation, device
        self.gate = Gate()

    def start(self, prompt: Sequence[int]) -> int | None:
        """Return the first token of a prompt that is changed; None if the adapter stays off."""
        return find_last(prompt, self._invocation)

    def over(self, prompt: Sequence[int], n_more: int = 0) -> AbstractContextManager[None]:
        """Run one row: passes that end with the prompt and `n_more` tokens, and steps behind it."""
        start, n = self.start(prompt), len(prompt) + n_more
        places = torch.arange(n, device=self._device)
        return self.gate.only((places >= (n if start is None else start))[None])

    def rows(self, prompts: Sequence[Sequence[int]], width: int) -> AbstractContextManager[None]:
        """Run a step of one token for each of these rows, and for idle ones up to `width`."""
        awake = [self.start(prompt) is not None for prompt in prompts]
        awake += [False] * (width - len(awake))
        return self.gate.only(torch.tensor(awake, device=self._device)[:, None])
