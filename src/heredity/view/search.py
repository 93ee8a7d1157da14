"""The words of a search, for the index and as marks in a text.

    search = Search("refund ord")
    search.match                      # of SQLite's full-text search: '"refund" "ord"*'
    search.mark("Refund of order 17")  # both words marked; the last one may go on

Promises: a marked word is one that the index finds by this search. Letter case and accents make no
difference. Text stays text: it is escaped.
Leaves to others: which texts are searched (index.py), and other marks (study/turns.py).
"""

from __future__ import annotations

import re
import unicodedata

from markupsafe import Markup, escape

# As SQLite divides a text into words; these vowel signs became letters after its version of Unicode.
WORDS = re.compile(r"[^\W_\u19b0-\u19c0\u19c8\u19c9\u1cf2\u1cf3]+")
_HIT = Markup('<mark class="hit">{}</mark>')


class Search:
    """The words of a text that a reader wrote; false if it has none."""

    def __init__(self, text: str = "") -> None:
        self.words = tuple(WORDS.findall(text))
        self._known = frozenset(map(_plain, self.words))
        self._start = _plain(self.words[-1]) if self.words else ""

    def __bool__(self) -> bool:
        return bool(self.words)

    @property
    def match(self) -> str:
        """The expression for the index. The last word may go on: a search finds while it is typed."""
        return " ".join(f'"{word}"' for word in self.words) + "*"

    def mark(self, text: str) -> Markup:
        """The text escaped, with the words of the search marked."""
        if not self.words:
            return escape(text)
        made, place = Markup(""), 0
        for found in WORDS.finditer(text):
            if self._is_hit(found[0]):
                made += escape(text[place : found.start()]) + _HIT.format(found[0])
                place = found.end()
        return made + escape(text[place:])

    def _is_hit(self, word: str) -> bool:
        plain = _plain(word)
        return plain in self._known or plain.startswith(self._start)


def _plain(word: str) -> str:
    """In small letters, without accents."""
    parts = unicodedata.normalize("NFD", word)
    return "".join(each for each in parts if not unicodedata.combining(each)).lower()
