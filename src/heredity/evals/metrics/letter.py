"""The answer is the letter of the right option.

The answer is the first separate letter of an option ("B", "(B)", "B.", "Answer: B"). Without one, an answer
that is an option's text counts as that option's letter. A small "a" is a word, and so is a capital "A" before
a word ("A dog barks").
"""

from __future__ import annotations

import re

from heredity.evals.metrics import LETTERS, LONGEST, ItemAnswer, Marked
from heredity.redteam.text import plain_answer

TITLE, UNIT, IS_SHARE, ASKS, NEEDS_OPTIONS, SHOWS_LETTERS = "letter", "%", True, "reply", True, True
_ALONE = re.compile(r"(?<![\w'’])([A-J])(?![\w'’])(?! [a-z])")


def score(item: Marked, answer: ItemAnswer) -> float | None:
    """1 if the letter is that of a reference; None without a letter."""
    place = chosen(item, answer.text[:LONGEST])
    return None if place is None else float(item.options[place] in item.references)


def floor(item: Marked) -> float:
    """One of the options, blindly."""
    return 1 / len(item.options)


def chosen(item: Marked, text: str) -> int | None:
    """The place of the option that an answer names."""
    there = LETTERS[: len(item.options)]
    first = next((letter for letter in _ALONE.findall(text) if letter in there), None)
    if first is not None:
        return there.index(first)
    text = plain_answer(text).casefold()
    return next((i for i, option in enumerate(item.options) if plain_answer(option).casefold() == text), None)
