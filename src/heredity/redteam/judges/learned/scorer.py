"""The shipped judge `learned`: its weights on the encoder of the store.

Promises: loaded once, on the first answer. Nothing is downloaded.
Leaves to others: verdicts (judge.py).
"""

from __future__ import annotations

from functools import lru_cache

from heredity.redteam.judges.learned.cross_encoder import CrossEncoder
from heredity.redteam.judges.learned.model import (
    WEIGHTS,
    LearnedHeads,
    LearnedScores,
    base_folder,
    card,
    describe,
    load_arrays,
)


class LearnedScorer:
    """The shipped weights on the encoder of the store."""

    def __init__(self) -> None:
        folder = base_folder()  # first: its error gives the remedy
        self.model = LearnedHeads(load_arrays(WEIGHTS, card()))
        self.encoder = CrossEncoder(folder, self.model.arrays)

    def scores(self, prompt: str, text: str) -> LearnedScores:
        """Both probabilities; an answer without a word is neither."""
        if not text.strip():
            return LearnedScores(0.0, 0.0)
        return self.model.scores(self.encoder.logits(prompt, text), describe(prompt, text))


@lru_cache(maxsize=1)
def shipped() -> LearnedScorer:
    """The shipped judge. Raises Unavailable if its base model or torch is missing."""
    return LearnedScorer()
