"""The last number of the answer equals the reference as a number, so `1,200` equals `1200`.

A comma between three digits groups them; a minus counts unless it is between two numbers. The last, since
a model that shows its work says the result at the end.
"""

from __future__ import annotations

import re
from decimal import Decimal

from heredity.evals.metrics import LONGEST, ItemAnswer, Marked

TITLE, UNIT, IS_SHARE, ASKS, NEEDS_OPTIONS, SHOWS_LETTERS = "number match", "%", True, "reply", False, False
_NUMBER = re.compile(r"(?<![\w.,])[-−]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?![\w])")


def score(item: Marked, answer: ItemAnswer) -> float | None:
    """1 if the last number equals a reference; None without a number."""
    said = last(answer.text)
    return None if said is None else float(said in [last(text) for text in item.references])


def floor(item: Marked) -> float:  # noqa: ARG001
    """Nothing is right by chance."""
    return 0.0


def last(text: str) -> Decimal | None:
    """The last number of a text."""
    found = _NUMBER.findall(text[-LONGEST:])
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None
