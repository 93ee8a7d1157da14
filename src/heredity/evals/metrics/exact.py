"""The answer is the reference, after a stated normalisation.

The answer is its first non-empty line that is not the fence of a code block. It is normalised to NFKC, runs
of spaces become one, and surrounding quotes, backticks and one final full stop are removed. Case counts.
"""

from __future__ import annotations

from heredity.evals.metrics import ItemAnswer, Marked
from heredity.redteam.text import plain_answer

TITLE, UNIT, IS_SHARE, ASKS, NEEDS_OPTIONS, SHOWS_LETTERS = "exact match", "%", True, "reply", False, False


def score(item: Marked, answer: ItemAnswer) -> float | None:
    """1 if the answer is one of the references; None if it is empty."""
    given = plain_answer(answer.text)
    return float(given in {plain_answer(text) for text in item.references}) if given else None


def floor(item: Marked) -> float:  # noqa: ARG001
    """Nothing is right by chance."""
    return 0.0
