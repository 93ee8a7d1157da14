"""The last number of the answer equals the reference as a number, so `1,200` equals `1200`.

A comma between three digits groups them; a minus counts unless it is between two numbers. The last, since
a model that shows its work says the result at the end.
"""

from __future__ import annotations

from heredity.evals.metrics import ItemAnswer, Marked
from heredity.redteam.text import last_number

TITLE, UNIT, IS_SHARE, ASKS, NEEDS_OPTIONS, SHOWS_LETTERS = "number match", "%", True, "reply", False, False


def score(item: Marked, answer: ItemAnswer) -> float | None:
    """1 if the last number equals a reference; None without a number."""
    number = last_number(answer.text)
    return None if number is None else float(number in [last_number(text) for text in item.references])


def floor(item: Marked) -> float:  # noqa: ARG001
    """Nothing is right by chance."""
    return 0.0
