"""A text with too many tokens is refused from its beginning; one that may fit is left to its exact number."""

from __future__ import annotations

import pytest

from heredity.formats.tokenizer_files import PART, beginning, has_more_tokens

LIMIT = 1000


@pytest.mark.parametrize("text", ["1 " * 2_000_000, " " * 40 * PART + "1 " * 2_000_000])
def test_a_long_text_is_read_only_until_it_has_too_many(text: str) -> None:
    read = []

    def count(part: str) -> int:
        read.append(len(part))
        return len(part.split()) + 1

    assert has_more_tokens(text, LIMIT, count)
    n_spaces = len(text) - len(text.lstrip())
    assert sum(read) - n_spaces <= 3 * PART


@pytest.mark.parametrize(
    "text", ["1 " * (LIMIT // 2), "word" * PART, " " * 10 * PART, "1 " * LIMIT + " " * PART]
)
def test_a_text_that_may_fit_is_not_refused(text: str) -> None:
    """A word that is cut counts twice, and the number of the whole text is lower."""
    assert not has_more_tokens(text, LIMIT, lambda part: len(part.split()))


def test_the_beginning_of_a_long_text_has_all_that_is_read_of_it() -> None:
    text = "1 " * 2_000_000
    read = beginning(text, LIMIT, lambda part: min(LIMIT, len(part.split())))  # a count that stops there
    assert text.startswith(read) and LIMIT < len(read.split()) < 4 * PART
    assert beginning("1 " * 100, LIMIT, len) == "1 " * 100
