"""Whether a text has more tokens than fit, found without reading all of it.

Tokenizing a body of a few megabytes can take minutes, in which an engine answers nobody.

Promises: time in proportion to the tokens that fit. A text that is refused has more tokens than that.
Leaves to others: the exact number of a text that is not refused.
"""

from __future__ import annotations

from collections.abc import Callable

PART = 16_384  # characters that are tokenized at once
_CUT = 16  # tokens that a cut between two parts may add, such as those of a special token


def has_more_tokens(text: str, n_tokens: int, count: Callable[[str], int]) -> bool:
    """Whether a text surely has more tokens than `n_tokens`. Parts of it are counted until it has.

    count: the number of tokens of a text.
    """
    return _end(text, n_tokens, count) is not None


def beginning(text: str, n_tokens: int, count: Callable[[str], int]) -> str:
    """The beginning of a long text, with surely more tokens than the `n_tokens` that are read of it."""
    return text[: _end(text, n_tokens, count)]


def _end(text: str, n_tokens: int, count: Callable[[str], int]) -> int | None:
    """The end of the first parts that surely have more tokens; None if the whole text need not."""
    if len(text) <= PART:
        return None
    n_found = 0
    for start in range(0, len(text), PART):
        n_found += max(0, count(text[start : start + PART]) - _CUT)
        if n_found > n_tokens:
            return start + PART
    return None
