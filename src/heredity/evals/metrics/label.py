"""The answer names one of the options, and it is the right one.

An option is named if it occurs as a separate word, in any case. An answer that names none, or
more than one, is unclear.
"""

from __future__ import annotations

import re

from heredity.evals.metrics import LONGEST, ItemAnswer, Marked

TITLE, UNIT, IS_SHARE, ASKS, NEEDS_OPTIONS, SHOWS_LETTERS = "label", "%", True, "reply", True, False


def score(item: Marked, answer: ItemAnswer) -> float | None:
    """1 if the one option named is a reference; None unless exactly one is named."""
    text = answer.text[:LONGEST].casefold()
    named = [o for o in item.options if re.search(rf"\b{re.escape(o.casefold())}\b", text)]
    return float(named[0] in item.references) if len(named) == 1 else None


def floor(item: Marked) -> float:
    """One of the options, blindly."""
    return 1 / len(item.options)
