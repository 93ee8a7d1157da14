"""Foreign text on its way to a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.core.sanitize import plain, plural, shorten

ANYTHING = st.text(st.characters(exclude_categories=()), max_size=200)


@given(ANYTHING)
def test_no_character_that_a_terminal_obeys_gets_through(text: str) -> None:
    for shown in (plain(text), plain(text, lines=True), shorten(text, 40)):
        left = [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
        assert set(left) <= {"\n", "\t", "\u200c", "\u200d"}
        shown.encode()


@given(ANYTHING)
def test_one_line_stays_one_line(text: str) -> None:
    assert len(plain(text).splitlines()) <= 1
    assert len(shorten(text, 40)) <= 40


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), max_size=200))
def test_readable_text_is_unchanged(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize(
    ("hostile", "name"),
    [
        ("\x1b[31mred", "a colour"),
        ("\x1b]52;c;ZWNobw==\x07", "the clipboard"),
        ("\x9b2J", "a one-byte CSI"),
        ("user\u202egnp.exe", "a reversed name"),
        ("a\u2066b\u2069", "an isolate"),
        ("line\rover", "a carriage return"),
        ("\U000e0041\U000e0042", "tag characters"),
        ("a\ud800b", "a lone surrogate"),
    ],
)
def test_known_tricks_become_visible(hostile: str, name: str) -> None:
    shown = plain(hostile, lines=True)
    assert shown.isprintable(), name
    assert shown != hostile


def test_a_megabyte_on_one_line_is_no_trouble() -> None:
    assert len(shorten("\x1b" * 1_000_000, 80)) == 80
    assert len(plain("a" * 1_000_000)) == 1_000_000


@pytest.mark.parametrize(
    ("n", "noun", "words"),
    [(1, "step", "1 step"), (0, "step", "0 steps"), (1204, "row", "1,204 rows"), (2, "try", "2 tries"),
     (2, "survey", "2 surveys"), (2, "child", "2 children"), (3, "more child", "3 more children"),
     (2, "analysis", "2 analyses"), (2, "breach", "2 breaches"), (1, "breach", "1 breach"),
     (2, "study", "2 studies"), (1, "study", "1 study")],
)  # fmt: skip
def test_a_noun_follows_its_count(n: int, noun: str, words: str) -> None:
    assert plural(n, noun) == words
