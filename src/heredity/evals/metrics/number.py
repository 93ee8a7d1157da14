"""The last number of the answer is the reference, as a number: 1,200 is 1200 and 3.50 is 3.5.

A comma between three digits groups them; a minus counts unless it stands between two numbers. The last, since
a model that shows its work says the result at the end.
"""

from __future__ import annotations

import re
from decimal import Decimal

from heredity.evals.metrics import LONGEST, ItemAnswer, Marked

TITLE, UNIT, IS_SHARE, ASKS, NEEDS_OPTIONS, SHOWS_LETTERS = "number match", "%", True, "reply", False, False
_NUMBER = re.compile(r"(?<![\w.,])[-−]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?![\w])")


def score(item: Marked, answer: ItemAnswer) -> float | None:
    """1 where the last number is that of a reference; None where there is no number."""
    said = last(answer.text)
    return None if said is None else float(said in [last(text) for text in item.references])


def floor(item: Marked) -> float:  # noqa: ARG001
    """Nothing is right by chance."""
    return 0.0


def last(text: str) -> Decimal | None:
    """The last number of a text."""
    found = _NUMBER.findall(text[-LONGEST:])
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None
