"""The right option is the likeliest: by log-probability over the option's length in bytes.

The score is the sum over an option's tokens divided by the bytes of its text in UTF-8. Long options are not
at a disadvantage, and tokenizers are comparable. A tie is wrong: the model has not chosen an option.
"""

from __future__ import annotations

from heredity.evals.metrics import ItemAnswer, Marked

TITLE, UNIT, IS_SHARE, ASKS, NEEDS_OPTIONS, SHOWS_LETTERS = (
    "likeliest option",
    "%",
    True,
    "score",
    True,
    False,
)


def score(item: Marked, answer: ItemAnswer) -> float | None:
    """1 if a reference is likelier than every other option; None if a probability is missing."""
    if len(answer.logs) != len(item.options) or any(log != log for log in answer.logs):
        return None
    each = [log / len(text.encode()) for log, text in zip(answer.logs, item.options, strict=True)]
    best = [i for i, one in enumerate(each) if one == max(each)]
    return float(len(best) == 1 and item.options[best[0]] in item.references)


def floor(item: Marked) -> float:
    """One of the options, blindly."""
    return 1 / len(item.options)
