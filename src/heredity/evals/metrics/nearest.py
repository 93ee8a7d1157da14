"""The right option is the nearest one: the caption of an image, or the image of a caption.

By the similarity that a model gives to each. A tie is wrong: the model has not chosen an option.
"""

from __future__ import annotations

from heredity.evals.metrics import ItemAnswer, Marked

TITLE, UNIT, IS_SHARE, ASKS, NEEDS_OPTIONS, SHOWS_LETTERS = "nearest option", "%", True, "match", True, False


def score(item: Marked, answer: ItemAnswer) -> float | None:
    """1 if a reference is nearer than every other option; None if a similarity is missing."""
    if len(answer.logs) != len(item.options) or any(log != log for log in answer.logs):
        return None
    best = [i for i, one in enumerate(answer.logs) if one == max(answer.logs)]
    return float(len(best) == 1 and item.options[best[0]] in item.references)


def floor(item: Marked) -> float:
    """One of the options, blindly."""
    return 1 / len(item.options)
